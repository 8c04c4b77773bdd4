//! The gRPC server: a cache and its remotes, offered to others under the protocol of tvix and snix.
//!
//! - [`Hub`]: what is served, and to whom
//! - `blobs`, `chunks`, `directories`, `roots`, `path_infos`: the services
//! - `gate`: what every request passes: package names, tokens, the rate
//! - `admission`: how much is served at once, and who is turned away first
//! - `patience`: how long clients are waited for, and wait
//! - `status`: what the cache's errors are called on the wire
//! - [`Listener`], [`Tls`]: where it listens
//! - [`metrics`]: counters for Prometheus, and whether all is well

mod admission;
mod blobs;
mod chunks;
mod directories;
mod gate;
mod listen;
pub mod metrics;
mod path_infos;
mod patience;
mod roots;
mod status;

use std::{future::Future, sync::Arc, time::Duration};

use tonic::transport::Server;
use tonic_health::{ServingStatus, server::health_reporter};

use self::{admission::Admission, gate::Gate, listen::Closing};
pub use self::{
    gate::Token,
    listen::{ListenError, Listener, Tls},
};
use crate::{
    cache::Cache,
    proto::{
        self,
        castore::v1::{
            chunk_service_server::{self, ChunkServiceServer},
            root_service_server::{self, RootServiceServer},
        },
        tvix::{
            castore::v1::{
                blob_service_server::{self, BlobServiceServer},
                directory_service_server::{self, DirectoryServiceServer},
            },
            store::v1::path_info_service_server::{self, PathInfoServiceServer},
        },
    },
    remote::Publish,
};

/// A stream's flow-control window for what is put, in bytes.
const STREAM_WINDOW: u32 = 4 << 20;
/// A connection's, in bytes.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// A connection that is dead is noticed within twice this time.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How much a server does for its clients.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest message that is taken, in bytes.
    pub message: usize,
    /// Requests under way on one connection.
    pub streams: u32,
    /// Reads under way at once, over all connections.
    pub reads: usize,
    /// Requests a second over all connections; `None`: as many as come.
    pub rate: Option<std::num::NonZeroU32>,
}

/// What is served, and to whom.
pub struct Hub {
    pub cache: Arc<Cache>,
    /// Where things are put; `None`: nothing can be.
    pub publish: Option<Arc<dyn Publish>>,
    /// What a client must show; `None`: nothing.
    pub token: Option<Token>,
    /// What a client must show to change a name; `None`: nobody may.
    pub names_token: Option<Token>,
    pub limits: Limits,
}

/// What the services share.
pub(super) struct Shared {
    cache: Arc<Cache>,
    publish: Option<Arc<dyn Publish>>,
    names_token: Option<Token>,
    admission: Admission,
}

impl Shared {
    fn publish(&self) -> Result<&Arc<dyn Publish>, tonic::Status> {
        self.publish.as_ref().ok_or_else(|| {
            tonic::Status::permission_denied(
                "this server takes nothing; `castore serve --writable` does",
            )
        })
    }
}

/// Serves until `shutdown` resolves, then lets what is under way end. Must be called within a tokio runtime.
///
/// # Errors
/// When the server cannot be set up or its listener fails.
pub async fn serve(
    hub: Hub,
    listener: Listener,
    tls: Option<Tls>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ListenError> {
    let Limits {
        message, streams, ..
    } = hub.limits;
    let (health, health_service) = health_reporter();
    for name in [
        "",
        blob_service_server::SERVICE_NAME,
        directory_service_server::SERVICE_NAME,
        chunk_service_server::SERVICE_NAME,
        root_service_server::SERVICE_NAME,
        path_info_service_server::SERVICE_NAME,
        "snix.castore.v1.BlobService",
        "snix.castore.v1.DirectoryService",
        "snix.store.v1.PathInfoService",
    ] {
        health
            .set_service_status(name, ServingStatus::Serving)
            .await;
    }
    let gate = Gate::new(hub.token, hub.limits.rate);
    let shared = Arc::new(Shared {
        admission: Admission::new(hub.limits.reads),
        cache: hub.cache,
        publish: hub.publish,
        names_token: hub.names_token,
    });
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let setup = |error: &dyn std::error::Error| ListenError::Setup(error.to_string());
    let mut server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(streams)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE));
    if let Some(tls) = tls {
        server = server
            .tls_config(tls.config())
            .map_err(|error| setup(&error))?;
    }
    let router = server
        .layer(gate)
        .add_service(health_service)
        .add_service(reflection().build_v1().map_err(|error| setup(&error))?)
        .add_service(
            reflection()
                .build_v1alpha()
                .map_err(|error| setup(&error))?,
        )
        .add_service(
            BlobServiceServer::new(blobs::Blobs(Arc::clone(&shared)))
                .max_decoding_message_size(message),
        )
        .add_service(
            DirectoryServiceServer::new(directories::Directories(Arc::clone(&shared)))
                .max_decoding_message_size(message),
        )
        .add_service(
            ChunkServiceServer::new(chunks::Chunks(Arc::clone(&shared)))
                .max_decoding_message_size(message),
        )
        .add_service(
            RootServiceServer::new(roots::Roots(Arc::clone(&shared)))
                .max_decoding_message_size(message),
        )
        .add_service(PathInfoServiceServer::new(path_infos::PathInfos(shared)));
    let stopping = async move {
        shutdown.await;
        // Who balances load goes elsewhere from now on.
        health
            .set_service_status("", ServingStatus::NotServing)
            .await;
    };
    let closing = Closing::default();
    let incoming = listener.incoming(closing.clone());
    let served = router
        .serve_with_incoming_shutdown(incoming, stopping)
        .await;
    closing.done().await;
    served.map_err(|error| setup(&error))
}
