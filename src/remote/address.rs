use std::{path::PathBuf, sync::Arc};

use url::Url;

use super::{
    GrpcRemote, ObjectStoreRemote, Policy, Publish, Remote, RemoteError,
    cloud::{self, Cloud},
    grpc::Server,
};

/// Why an address names no remote. Never shows what may be a secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?} is not the address of a remote: {1}")]
    Url(String, url::ParseError),
    #[error(
        "the remote {0:?} is of a kind that this version does not know, and no name in castore.toml; write \
         objectstore+file:///absolute/path, objectstore+s3://bucket/prefix (or gs, az, http, https, memory), \
         grpc+http://host:port, grpc+https://host:port or grpc+unix:///absolute/path"
    )]
    Scheme(String),
    #[error("{0:?} names no absolute path; write objectstore+file:///absolute/path")]
    Path(String),
    #[error("{0:?} names no host")]
    Host(String),
    #[error("the remote {address:?} has an option {option:?} that it does not know{hint}")]
    Option {
        address: String,
        option: String,
        hint: &'static str,
    },
    #[error("the remote {address:?} has a bad value for {option:?}: {cause}")]
    Value {
        address: String,
        option: String,
        cause: String,
    },
    #[error("the remote {address:?} cannot be used: {cause}")]
    Store { address: String, cause: String },
    #[error("the remote {0:?} can only be read")]
    ReadOnly(String),
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// An address that was understood.
#[derive(Debug, Clone)]
pub struct Address {
    /// Without secrets.
    shown: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Directory(PathBuf),
    Cloud(Url),
    /// Servers that share the work.
    Grpc(Vec<Server>),
}

/// Opens the remotes that an address names, for reading: several where servers share the work. That one cannot be reached
/// shows only when it is asked for something.
///
/// # Errors
/// When the address is not understood, or a file that it names cannot be read.
pub fn open(address: &str, policy: &Policy) -> Result<Vec<Arc<dyn Remote>>, AddressError> {
    let address = Address::parse(address)?;
    match &address.kind {
        Kind::Directory(path) => Ok(vec![Arc::new(ObjectStoreRemote::directory(path))]),
        Kind::Cloud(url) => Ok(vec![Arc::new(address.cloud(url, policy)?)]),
        Kind::Grpc(servers) => {
            let remotes = servers.iter().map(|server| {
                GrpcRemote::new(server, policy)
                    .map(|remote| Arc::new(remote) as Arc<dyn Remote>)
                    .map_err(|cause| address.store(&cause))
            });
            remotes.collect()
        }
    }
}

/// Opens a remote for writing; a directory is created when it is not there.
///
/// # Errors
/// When the address is not understood, the directory cannot be created or the remote can only be read.
pub fn open_for_writing(address: &str, policy: &Policy) -> Result<Arc<dyn Publish>, AddressError> {
    let address = Address::parse(address)?;
    let publish: Arc<dyn Publish> = match &address.kind {
        Kind::Directory(path) => return Ok(Arc::new(ObjectStoreRemote::create_directory(path)?)),
        Kind::Cloud(url) if matches!(url.scheme(), "http" | "https") && cloud::is_http(url) => {
            return Err(AddressError::ReadOnly(address.shown));
        }
        Kind::Cloud(url) => Arc::new(address.cloud(url, policy)?),
        Kind::Grpc(servers) => {
            let server = servers
                .first()
                .ok_or_else(|| AddressError::Host(address.shown.clone()))?;
            Arc::new(GrpcRemote::new(server, policy).map_err(|cause| address.store(&cause))?)
        }
    };
    Ok(Arc::new(super::steady::Steady::new(publish, *policy)))
}

impl Address {
    /// # Errors
    /// When the text is no address that this version knows.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let shown = shown(text);
        let url =
            |rest: &str| Url::parse(rest).map_err(|error| AddressError::Url(shown.clone(), error));
        if text.starts_with("grpc+") {
            let servers = Server::parse(text, &shown)?;
            let kind = Kind::Grpc(servers);
            return Ok(Self { shown, kind });
        }
        let Some(rest) = text.strip_prefix("objectstore+") else {
            return Err(AddressError::Scheme(shown));
        };
        let url = url(rest)?;
        if url.scheme() == "file" {
            if let Some((key, _)) = url.query_pairs().next() {
                return Err(AddressError::Option {
                    address: shown,
                    option: key.into_owned(),
                    hint: "; a directory takes none",
                });
            }
            // `file:relative` becomes absolute in a URL, so the text itself is looked at.
            if !rest.starts_with("file:///") {
                return Err(AddressError::Path(shown));
            }
            let path = url
                .to_file_path()
                .map_err(|()| AddressError::Path(shown.clone()))?;
            let kind = Kind::Directory(path);
            return Ok(Self { shown, kind });
        }
        if !cloud::knows(&url) {
            return Err(AddressError::Scheme(shown));
        }
        let kind = Kind::Cloud(url);
        Ok(Self { shown, kind })
    }

    /// The address without secrets.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    fn cloud(&self, url: &Url, policy: &Policy) -> Result<ObjectStoreRemote, AddressError> {
        let Cloud { store, lists } = cloud::open(url, &self.shown)?;
        Ok(ObjectStoreRemote::over(
            store,
            &self.shown,
            policy.idle(),
            lists,
        ))
    }

    fn store(&self, cause: &str) -> AddressError {
        AddressError::Store {
            address: self.shown.clone(),
            cause: cause.to_owned(),
        }
    }
}

/// What may be shown of an address: neither user and password nor options, but for those that tell where it is.
fn shown(text: &str) -> String {
    const TOLD: [&str; 7] = [
        "endpoint",
        "aws_endpoint",
        "region",
        "aws_region",
        "account",
        "protocol",
        "hub",
    ];
    let (base, query) = text.split_once('?').unwrap_or((text, ""));
    let base = match base.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest
                .find('/')
                .map_or((rest, ""), |slash| rest.split_at(slash));
            let keeps_user = scheme.contains("az") || scheme.contains("abfs");
            let host = match authority.rsplit_once('@') {
                Some((_, host)) if !keeps_user => host,
                _ => authority,
            };
            format!("{scheme}://{host}{path}")
        }
        None => base.to_owned(),
    };
    let told: Vec<String> = url::form_urlencoded::parse(query.as_bytes())
        .filter(|(key, value)| TOLD.contains(&&**key) && !value.contains('@'))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    match told.is_empty() {
        true => base,
        false => format!("{base}?{}", told.join("&")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        let address = Address::parse("objectstore+file:///a/b%20c").unwrap();
        assert!(
            matches!(address.kind, Kind::Directory(path) if path == std::path::Path::new("/a/b c"))
        );
        for text in [
            "objectstore+s3://bucket/prefix?region=x",
            "objectstore+gs://bucket",
            "objectstore+az://container?account=x",
            "objectstore+http://localhost:1/x",
            "objectstore+memory:///",
        ] {
            let address = Address::parse(text).unwrap();
            assert!(matches!(address.kind, Kind::Cloud(_)), "{text}");
        }
        for text in [
            "grpc+http://localhost",
            "grpc+https://[::1]:9000?protocol=snix",
            "grpc+unix:///run/castore.sock",
        ] {
            assert!(matches!(Address::parse(text).unwrap().kind, Kind::Grpc(_)));
        }
        for (address, part) in [
            ("/some/path", "objectstore+file:///absolute/path"),
            ("grpc+ftp://localhost:8000", "does not know"),
            ("grpc+http://", "host"),
            ("grpc+http://h?colour=red", "colour"),
            ("grpc+http://h?protocol=red", "protocol"),
            ("grpc+unix://relative", "absolute"),
            ("objectstore+ftp://x/y", "does not know"),
            ("objectstore+file://relative/path", "no absolute path"),
            ("objectstore+file:relative", "no absolute path"),
            ("objectstore+file:///a?region=x", "region"),
            ("objectstore+", "not the address"),
        ] {
            let error = Address::parse(address).unwrap_err().to_string();
            assert!(error.contains(part), "{address}: {error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        for text in [
            "objectstore+s3://bucket/p?aws_secret_access_key=hush&region=here",
            "objectstore+http://me:hush@host/p",
            "objectstore+https://me:hush@host:99x/p",
            "objectstore+s3://b?endpoint=http://me:hush@host",
            "grpc+http://me:hush@host:1",
            "nonsense://me:hush@host?x=hush",
        ] {
            let told = match Address::parse(text) {
                Ok(address) => address.shown().to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(!told.contains("hush"), "{text}: {told}");
        }
        let address = Address::parse("objectstore+s3://b/p?region=here&secret_access_key=x");
        assert_eq!(address.unwrap().shown(), "objectstore+s3://b/p?region=here");
    }
}
