use std::{io::Write, net::SocketAddr, num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{
    args::{CacheArgs, RemoteArgs},
    open, runtime,
};
use crate::{
    cache::Quota,
    remote::{self, parse_duration},
    serve::{self, Hub, Limits, Listener, Tls, Token, metrics},
};

/// Memory for each read under way, in bytes: two pieces of an answer, and what HTTP/2 has in its window.
const READ_MEMORY: u64 = 1 << 20;

/// Offer a cache and its remotes to others, over gRPC
///
/// Speaks the protocols of tvix and snix (BlobService, DirectoryService), castore's own for names, health and reflection.
/// What is not in the cache is fetched from the remotes, once for all clients. Prints its address once it listens.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  castore serve
  castore serve --listen unix:///run/castore.sock --writable
  castore serve --listen 0.0.0.0:8000 --tls-cert hub.pem --tls-key hub.key --token-file token --remote objectstore+s3://bucket
  castore serve --listen [::]:8000 --insecure --metrics 127.0.0.1:9100 --remote grpc+http://origin:8000")]
pub(super) struct Args {
    /// Where to listen: host:port or unix:///absolute/path; port 0 is any free one
    #[arg(
        long,
        env = "CASTORE_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8000"
    )]
    listen: String,

    /// Listen at an address that others reach without TLS and a token
    #[arg(long, env = "CASTORE_INSECURE")]
    insecure: bool,

    /// Take what clients put, into the first remote
    #[arg(long, env = "CASTORE_WRITABLE")]
    writable: bool,

    /// File with the token that clients must show (?token-file= in their address)
    #[arg(long, env = "CASTORE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// File with the token that clients must show to change names (?names-token-file=); without it nobody may, and without
    /// --writable neither
    #[arg(long, env = "CASTORE_NAMES_TOKEN_FILE", value_name = "FILE")]
    names_token_file: Option<PathBuf>,

    /// Certificate of this server, with those that vouch for it, in PEM
    #[arg(
        long,
        env = "CASTORE_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,

    /// Key of the certificate, in PEM
    #[arg(
        long,
        env = "CASTORE_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,

    /// Take only clients with a certificate that this one vouches for, in PEM
    #[arg(
        long,
        env = "CASTORE_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_client_ca: Option<PathBuf>,

    /// Largest message that is taken, in B, KiB, MiB; at least 64KiB
    #[arg(
        long,
        env = "CASTORE_MAX_MESSAGE",
        value_name = "SIZE",
        default_value = "32MiB"
    )]
    max_message: Quota,

    /// Most requests under way on one connection
    #[arg(
        long,
        env = "CASTORE_MAX_STREAMS",
        value_name = "N",
        default_value = "256"
    )]
    max_streams: NonZeroU32,

    /// Most reads under way over all connections; prefetch may take half of them [default: one for each MiB of --memory]
    #[arg(long, env = "CASTORE_MAX_READS", value_name = "N")]
    max_reads: Option<NonZeroU32>,

    /// Most requests a second, over all connections [default: no limit]
    #[arg(long, env = "CASTORE_MAX_RATE", value_name = "N")]
    max_rate: Option<NonZeroU32>,

    /// Serve /metrics (for Prometheus) and /healthz over HTTP at this address
    #[arg(long, env = "CASTORE_METRICS", value_name = "ADDR")]
    metrics: Option<SocketAddr>,

    /// How long requests under way may take to end after SIGTERM
    #[arg(long, env = "CASTORE_GRACE", value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    grace: Duration,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    runtime::block_on(serve_until_told(args))
}

async fn serve_until_told(args: &Args) -> anyhow::Result<()> {
    let token = |path: &Option<PathBuf>| {
        let read = |path: &PathBuf| Token::read(path).with_context(|| format!("{path:?}"));
        path.as_ref().map(read).transpose()
    };
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => {
            Some(Tls::read(certificate, key, args.tls_client_ca.as_deref())?)
        }
        _ => None,
    };
    let message = match args.max_message {
        Quota::Bytes(bytes) if bytes >= 64 << 10 => usize::try_from(bytes)?,
        Quota::Bytes(_) | Quota::Share(_) => bail!("--max-message is a size of at least 64KiB"),
    };
    let hub_token = token(&args.token_file)?;
    let names_token = token(&args.names_token_file)?;
    let listener = Listener::bind(&args.listen)?;
    let is_safe = tls.is_some() && (hub_token.is_some() || args.tls_client_ca.is_some());
    if !(listener.is_local() || is_safe || args.insecure) {
        bail!(
            "others can reach {}: give the server --tls-cert, --tls-key and --token-file (or --tls-client-ca), \
             or pass --insecure if the network is to be trusted",
            args.listen
        );
    }
    let publish = match args.writable {
        true => {
            let addresses = args.remotes.addresses()?;
            let first = addresses.first().context("no remote to write to")?;
            Some(remote::open_for_writing(first, &args.remotes.policy())?)
        }
        false => None,
    };
    let cache = open::resized_cache(&args.cache, &args.remotes)?;
    let reads = args.max_reads.map_or_else(
        || (args.cache.config(false).memory / READ_MEMORY).clamp(16, 4096),
        |reads| u64::from(reads.get()),
    );
    let reads = usize::try_from(reads)?;
    let address = listener.address(tls.is_some());
    let metrics = match args.metrics {
        Some(at) => {
            let started = metrics::start(at, Arc::clone(&cache), Vec::new()).await;
            let (at, task) = started.with_context(|| format!("--metrics {at}"))?;
            tracing::info!("metrics at http://{at}/metrics");
            Some(task)
        }
        None => None,
    };
    let hub = Hub {
        cache: Arc::clone(&cache),
        publish,
        token: hub_token,
        names_token,
        limits: Limits {
            message,
            streams: args.max_streams.get(),
            reads,
            rate: args.max_rate,
        },
    };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (stop, stopped) = watch::channel(false);
    let told = |mut stopped: watch::Receiver<bool>| async move {
        // An error is that nobody can tell any more.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let serving = serve::serve(hub, listener, tls, told(stopped.clone()));
    let signals = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("ending; requests under way have {:?}", args.grace);
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        stop.send_replace(true);
        tokio::time::sleep(args.grace).await;
    };
    {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{address}")?;
        out.flush()?;
    }
    tracing::info!(remotes = cache.remote_address(), "serving at {address}");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let result = tokio::select! {
        result = serving => result,
        () = signals => {
            tracing::warn!("requests under way are broken off");
            Ok(())
        }
    };
    if let Some(task) = metrics {
        task.abort();
    }
    tokio::task::spawn_blocking(move || cache.close()).await?;
    Ok(result?)
}
