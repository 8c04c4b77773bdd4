use std::{
    future::Future,
    num::NonZeroU32,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    state::{InMemoryState, NotKeyed},
};
use http::{HeaderMap, Request, Response, Uri};
use subtle::ConstantTimeEq;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::status::overloaded;

/// A secret that a client shows.
#[derive(Clone)]
pub struct Token(Arc<[u8]>);

impl Token {
    /// Reads a token from a file: its first line.
    ///
    /// # Errors
    /// When the file cannot be read or is empty.
    pub fn read(path: &Path) -> Result<Self, std::io::Error> {
        let text = std::fs::read_to_string(path)?;
        let token = text.trim();
        if token.is_empty() || token.lines().count() > 1 {
            return Err(std::io::Error::other("it must be one line of plain text"));
        }
        Ok(Self(token.as_bytes().into()))
    }

    /// Whether it is the one. Takes as long whatever is shown.
    pub(super) fn is(&self, shown: &[u8]) -> bool {
        self.0.ct_eq(shown).into()
    }
}

/// What every request passes.
#[derive(Clone)]
pub(super) struct Gate(Arc<Rules>);

struct Rules {
    token: Option<Token>,
    rate: Option<RateLimiter<NotKeyed, InMemoryState, governor::clock::DefaultClock>>,
}

impl Gate {
    pub(super) fn new(token: Option<Token>, rate: Option<NonZeroU32>) -> Self {
        let rate = rate.map(|rate| RateLimiter::direct(Quota::per_second(rate)));
        Self(Arc::new(Rules { token, rate }))
    }
}

impl Rules {
    fn check(&self, path: &str, headers: &HeaderMap) -> Result<(), Status> {
        // Whoever watches over servers has no token, and learns nothing but that this one is there.
        if path.starts_with("/grpc.health.") {
            return Ok(());
        }
        if let Some(token) = &self.token {
            let shown = headers
                .get(http::header::AUTHORIZATION)
                .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
            if !shown.is_some_and(|shown| token.is(shown)) {
                return Err(Status::unauthenticated(
                    "a token is needed, and the right one",
                ));
            }
        }
        if let Some(rate) = &self.rate
            && let Err(not_until) = rate.check()
        {
            let wait = not_until.wait_time_from(governor::clock::DefaultClock::default().now());
            return Err(overloaded(
                "more requests than this server takes",
                Some(wait),
            ));
        }
        Ok(())
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        let rules = Arc::clone(&self.0);
        Gated { rules, inner }
    }
}

/// A service behind the gate.
#[derive(Clone)]
pub(super) struct Gated<S> {
    rules: Arc<Rules>,
    inner: S,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Err(status) = self.rules.check(request.uri().path(), request.headers()) {
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        // The messages are the same, only the package has another name.
        if let Some(rest) = request.uri().path().strip_prefix("/snix.")
            && let Ok(uri) = format!("/tvix.{rest}").parse::<Uri>()
        {
            *request.uri_mut() = uri;
        }
        Box::pin(self.inner.call(request))
    }
}
