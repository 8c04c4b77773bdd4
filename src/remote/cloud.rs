use std::{future::poll_fn, io, pin::Pin, str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::StatusCode;
use http_body::Body;
use object_store::{
    ClientConfigKey, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpResponseBody, HttpService, ReqwestConnector,
    },
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    http::HttpBuilder,
    memory::InMemory,
    prefix::PrefixStore,
};
use url::Url;

use super::{AddressError, Fault};

/// A store over a network.
pub(super) struct Cloud {
    pub(super) store: Arc<dyn ObjectStore>,
    /// Whether objects can be listed.
    pub(super) lists: bool,
}

/// Whether an address without its `objectstore+` is one of a store that this module opens.
pub(super) fn knows(url: &Url) -> bool {
    matches!(ObjectStoreScheme::parse(url), Ok((scheme, _)) if scheme != ObjectStoreScheme::Local)
}

/// Whether it is a plain web server.
pub(super) fn is_http(url: &Url) -> bool {
    matches!(
        ObjectStoreScheme::parse(url),
        Ok((ObjectStoreScheme::Http, _))
    )
}

/// Opens a store: options come from the environment, as the `object_store` crate names them, and from the address.
pub(super) fn open(url: &Url, shown: &str) -> Result<Cloud, AddressError> {
    let failed = |error: &(dyn std::error::Error + 'static)| AddressError::Store {
        address: shown.to_owned(),
        cause: explain(error),
    };
    let (scheme, prefix) = ObjectStoreScheme::parse(url).map_err(|error| failed(&error))?;
    let mut bare = url.clone();
    bare.set_query(None);
    let options: Vec<(String, String)> = url
        .query_pairs()
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect();
    let unknown = |option: &str| AddressError::Option {
        address: shown.to_owned(),
        option: option.to_owned(),
        hint: "; options are those of the object_store crate for this kind of store",
    };
    macro_rules! build {
        ($builder:expr, $key:ident) => {{
            let mut builder = $builder
                .with_url(bare.as_str())
                .with_retry(no_retries())
                .with_http_connector(Watched);
            for (option, value) in &options {
                let key = $key::from_str(option).map_err(|_| unknown(option))?;
                builder = builder.with_config(key, value);
            }
            for (key, value) in DEFAULTS {
                let key = $key::Client(key);
                if builder.get_config_value(&key).is_none() {
                    builder = builder.with_config(key, value);
                }
            }
            builder
        }};
    }
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::AmazonS3 => {
            let mut builder = build!(AmazonS3Builder::from_env(), AmazonS3ConfigKey);
            let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
            if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
                // Who writes http means it.
                builder = builder.with_allow_http(true);
            }
            Arc::new(builder.build().map_err(|error| failed(&error))?)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let builder = build!(GoogleCloudStorageBuilder::from_env(), GoogleConfigKey);
            Arc::new(builder.build().map_err(|error| failed(&error))?)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let mut builder = build!(MicrosoftAzureBuilder::from_env(), AzureConfigKey);
            let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
            if endpoint.is_some_and(|endpoint| endpoint.starts_with("http://")) {
                builder = builder.with_allow_http(true);
            }
            Arc::new(builder.build().map_err(|error| failed(&error))?)
        }
        ObjectStoreScheme::Http => {
            let mut builder = HttpBuilder::new()
                .with_url(bare.as_str())
                .with_retry(no_retries())
                .with_http_connector(Watched)
                .with_client_options(ClientOptions::new().with_allow_http(true));
            for (option, value) in &options {
                let key = ClientConfigKey::from_str(option).map_err(|_| unknown(option))?;
                builder = builder.with_config(key, value);
            }
            for (key, value) in DEFAULTS {
                if !options.iter().any(|(option, _)| option == key.as_ref()) {
                    builder = builder.with_config(key, value);
                }
            }
            let store = builder.build().map_err(|error| failed(&error))?;
            // The path is a part of the address that the builder was given.
            let (store, lists) = (Arc::new(store), false);
            return Ok(Cloud { store, lists });
        }
        _ => {
            if let Some((option, _)) = options.first() {
                return Err(unknown(option));
            }
            Arc::new(InMemory::new())
        }
    };
    let store = match prefix.as_ref().is_empty() {
        true => store,
        false => Arc::new(PrefixStore::new(store, prefix)),
    };
    Ok(Cloud { store, lists: true })
}

/// Of an answer that is an error no more is read than this, in bytes, …
const MAX_ERROR: usize = 64 << 10;
/// … nor longer.
const ERROR_WITHIN: Duration = Duration::from_secs(2);

/// Requests are given up by us, not by the crate.
const DEFAULTS: [(ClientConfigKey, &str); 2] = [
    (ClientConfigKey::Timeout, "1day"),
    (ClientConfigKey::ConnectTimeout, "5s"),
];

/// We try again ourselves, because we know of other remotes and of who waits.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// An answer that is an error, and what the crate does not tell of it.
#[derive(Debug, thiserror::Error)]
#[error("{status}{}", code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default())]
struct Answered {
    status: StatusCode,
    /// `Retry-After`.
    after: Option<Duration>,
    /// As S3 and Azure name the error.
    code: Option<String>,
}

/// Connects as the crate does, and looks at answers that are errors for what the crate does not tell.
#[derive(Debug)]
struct Watched;

#[derive(Debug)]
struct Watching(HttpClient);

impl HttpConnector for Watched {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Watching(client)))
    }
}

#[async_trait]
impl HttpService for Watching {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.0.execute(request).await?;
        let status = response.status();
        if !(status.is_client_error() || status.is_server_error()) {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let body = beginning(body).await;
        // The crate knows these.
        if matches!(
            status,
            StatusCode::NOT_FOUND | StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED
        ) {
            return Ok(HttpResponse::from_parts(parts, body.into()));
        }
        let after = parts
            .headers
            .get(http::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().parse().ok())
            .map(Duration::from_secs);
        let code = code(&String::from_utf8_lossy(&body)).map(str::to_owned);
        // A kind that the crate does not try again.
        Err(HttpError::new(
            HttpErrorKind::Unknown,
            Answered {
                status,
                after,
                code,
            },
        ))
    }
}

/// The first bytes of an answer that is an error; there may be no end to them.
async fn beginning(mut body: HttpResponseBody) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = async {
        while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        {
            bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if bytes.len() >= MAX_ERROR {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(ERROR_WITHIN, read).await;
    bytes.truncate(MAX_ERROR);
    bytes
}

/// What to make of an error of the `object_store` crate.
pub(super) fn fault(error: &object_store::Error) -> Fault {
    match error {
        object_store::Error::NotSupported { .. }
        | object_store::Error::NotImplemented { .. }
        | object_store::Error::InvalidPath { .. }
        | object_store::Error::AlreadyExists { .. }
        | object_store::Error::Precondition { .. }
        | object_store::Error::UnknownConfigurationKey { .. } => return Fault::Refused,
        _ => {}
    }
    let Some(answered) = answered(error) else {
        return Fault::Unavailable;
    };
    let slow_down = answered.code.as_deref() == Some("SlowDown");
    match answered.status.as_u16() {
        429 | 503 => Fault::Overload(answered.after),
        _ if slow_down => Fault::Overload(answered.after),
        // Some of the 4xx pass: a time-out, too early.
        408 | 425 | 500..=599 => Fault::Unavailable,
        _ => Fault::Refused,
    }
}

/// Whether this process, or the machine, had as many files open as it may.
pub(super) fn lacks_descriptors(error: &object_store::Error) -> bool {
    let mut at: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = at {
        let code = (error.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
        if matches!(code, Some(libc::EMFILE | libc::ENFILE)) {
            return true;
        }
        at = error.source();
    }
    false
}

fn answered<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Answered> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(answered) = error.downcast_ref() {
            return Some(answered);
        }
        at = error.source();
    }
    None
}

/// The text of an error, without what servers and the crate put into theirs: addresses with signatures, keys, whole pages.
pub(super) fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(answered) = answered(error) {
        return answered.to_string();
    }
    // The innermost says what happened, such as "connection refused".
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// `<Code>…</Code>` of an S3 or Azure error.
fn code(body: &str) -> Option<&str> {
    let (_, rest) = body.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    code.chars()
        .all(|char| char.is_ascii_alphanumeric())
        .then_some(code)
}
