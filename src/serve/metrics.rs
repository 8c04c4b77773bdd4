//! What a process counts, for Prometheus at `/metrics`, and whether all is well at `/healthz`.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::net::TcpListener;

use crate::cache::{Cache, Counter};

/// A value that is looked up when it is asked for.
pub struct Gauge {
    pub name: &'static str,
    pub help: &'static str,
    pub value: Box<dyn Fn() -> u64 + Send + Sync>,
}

struct Source {
    cache: Arc<Cache>,
    gauges: Vec<Gauge>,
}

/// Serves them until the task is aborted or dropped with its runtime.
///
/// # Errors
/// When it cannot listen there.
pub async fn start(
    address: SocketAddr,
    cache: Arc<Cache>,
    gauges: Vec<Gauge>,
) -> io::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .with_state(Arc::new(Source { cache, gauges }));
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "metrics are not served any more");
        }
    });
    Ok((address, task))
}

async fn metrics(State(source): State<Arc<Source>>) -> Result<String, StatusCode> {
    // The index is read from disk.
    let text = tokio::task::spawn_blocking(move || {
        let mut registry = Registry::with_prefix("castore");
        registry.register_collector(Box::new(Values(source)));
        let mut text = String::new();
        encode(&mut text, &registry).map(|()| text)
    });
    match text.await {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(_)) | Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Well is a process that can read its index. A remote that is away is told and is no reason to end the process: what is
/// cached is served all the same.
async fn healthz(State(source): State<Arc<Source>>) -> (StatusCode, String) {
    let cache = Arc::clone(&source.cache);
    let usage = tokio::task::spawn_blocking(move || cache.usage());
    match usage.await {
        Ok(Ok(_)) => {
            let remotes = source.cache.remote_status();
            let away = remotes.iter().filter(|remote| remote.away);
            let away = away.map(|remote| format!("{} is away\n", remote.address));
            (StatusCode::OK, format!("ok\n{}", away.collect::<String>()))
        }
        Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "no answer\n".to_owned()),
    }
}

struct Values(Arc<Source>);

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Values")
    }
}

impl Collector for Values {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Source { cache, gauges } = &*self.0;
        for counter in Counter::ALL {
            let metric = ConstCounter::new(cache.stats().get(*counter));
            let encoder = encoder.encode_descriptor(
                counter.name(),
                counter.help(),
                None,
                metric.metric_type(),
            )?;
            metric.encode(encoder)?;
        }
        let mut gauge = |name: &str, help: &str, value: u64| {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let encoder = encoder.encode_descriptor(name, help, None, metric.metric_type())?;
            metric.encode(encoder)
        };
        if let Ok((usage, _)) = cache.usage() {
            gauge("cache_data_bytes", "Bytes of data files", usage.data_bytes)?;
            gauge(
                "cache_other_bytes",
                "Bytes of all else in the cache",
                usage.other_bytes,
            )?;
            gauge(
                "cache_quota_bytes",
                "The most that the cache may take",
                usage.quota_bytes,
            )?;
            gauge("cache_chunks", "Chunks in the cache", usage.chunks)?;
            gauge(
                "cache_directories",
                "Directories in the cache",
                usage.directories,
            )?;
        }
        for extra in gauges {
            gauge(extra.name, extra.help, (extra.value)())?;
        }
        let remotes = cache.remote_status();
        if remotes.is_empty() {
            return Ok(());
        }
        let help = "Whether a remote is skipped because it does not answer";
        let kind = ConstGauge::new(0_i64).metric_type();
        let mut family = encoder.encode_descriptor("remote_away", help, None, kind)?;
        for remote in remotes {
            let labels = [("remote", remote.address.as_str())];
            let encoder = family.encode_family(&labels)?;
            ConstGauge::new(i64::from(remote.away)).encode(encoder)?;
        }
        Ok(())
    }
}
