use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use tonic::metadata::{Ascii, MetadataValue};
use url::Url;

use crate::remote::AddressError;

/// Where a server is and how to get there.
#[derive(Debug, Clone)]
pub struct Server {
    /// What messages call it.
    pub(super) shown: String,
    pub(super) place: Place,
    /// `tvix` or `snix`; found out where nobody says.
    pub(super) protocol: Option<String>,
    /// Certificates to trust instead of the system's.
    pub(super) ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
    pub(super) token_file: Option<PathBuf>,
    /// For changing names.
    pub(super) names_token_file: Option<PathBuf>,
    /// HTTP/2 connections at the most.
    pub(super) connections: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// `http` or `https`, host and port.
    Host(String),
    Socket(PathBuf),
}

/// The port of the protocol.
const PORT: u16 = 8000;
/// One connection moves what one core can; more help against packet loss and servers with one thread for each.
const CONNECTIONS: usize = 4;

impl Server {
    /// The servers of an address: the one it is for, and one for each `hub=host:port`.
    pub(crate) fn parse(text: &str, shown: &str) -> Result<Vec<Self>, AddressError> {
        let scheme = || AddressError::Scheme(shown.to_owned());
        let rest = text.strip_prefix("grpc+").ok_or_else(scheme)?;
        let url = Url::parse(rest).map_err(|error| match error {
            url::ParseError::EmptyHost => AddressError::Host(shown.to_owned()),
            error => AddressError::Url(shown.to_owned(), error),
        })?;
        let value = |option: &str, cause: &str| AddressError::Value {
            address: shown.to_owned(),
            option: option.to_owned(),
            cause: cause.to_owned(),
        };
        let mut server = Self {
            shown: shown.split('?').next().unwrap_or_default().to_owned(),
            place: Place::Host(String::new()),
            protocol: None,
            ca: None,
            identity: None,
            token_file: None,
            names_token_file: None,
            connections: CONNECTIONS,
        };
        let (mut cert, mut key, mut hubs) = (None, None, Vec::new());
        for (option, text) in url.query_pairs() {
            let path = || Some(PathBuf::from(text.as_ref()));
            match option.as_ref() {
                "protocol" if ["tvix", "snix"].contains(&text.as_ref()) => {
                    server.protocol = Some(text.into_owned());
                }
                "protocol" => return Err(value("protocol", "it is tvix or snix")),
                "ca" => server.ca = path(),
                "cert" => cert = path(),
                "key" => key = path(),
                "token-file" => server.token_file = path(),
                "names-token-file" => server.names_token_file = path(),
                "hub" => hubs.push(text.into_owned()),
                "connections" => {
                    server.connections = text
                        .parse()
                        .ok()
                        .filter(|connections| (1..=64).contains(connections))
                        .ok_or_else(|| value("connections", "it is a number from 1 to 64"))?;
                }
                option => {
                    return Err(AddressError::Option {
                        address: shown.to_owned(),
                        option: option.to_owned(),
                        hint: "; it knows protocol, ca, cert, key, token-file, names-token-file, hub and connections",
                    });
                }
            }
        }
        server.identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err(value("cert", "it needs key=FILE too")),
            (None, Some(_)) => return Err(value("key", "it needs cert=FILE too")),
        };
        let tls = url.scheme() == "https";
        if !tls && (server.ca.is_some() || server.identity.is_some()) {
            return Err(value("ca, cert, key", "they are for grpc+https"));
        }
        match url.scheme() {
            "unix" => {
                if url.host_str().is_some_and(|host| !host.is_empty()) || !hubs.is_empty() {
                    return Err(value("the path", "write grpc+unix:///absolute/path"));
                }
                let path = percent_decoded(url.path());
                server.place = Place::Socket(path);
                Ok(vec![server])
            }
            "http" | "https" => {
                if !matches!(url.path(), "" | "/") {
                    return Err(value("the path", "a gRPC server has none"));
                }
                let host = url
                    .host_str()
                    .ok_or_else(|| AddressError::Host(shown.to_owned()))?;
                let first = (host.to_owned(), url.port());
                let mut places = vec![first];
                for hub in hubs {
                    // A URL knows where the host ends, also in [::1]:9000.
                    let parsed = Url::parse(&format!("grpc://{hub}")).ok();
                    let place = parsed.as_ref().and_then(|url| {
                        let plain = matches!(url.path(), "" | "/") && url.username().is_empty();
                        plain.then(|| Some((url.host_str()?.to_owned(), url.port())))?
                    });
                    places.push(place.ok_or_else(|| value("hub", "it is host:port"))?);
                }
                let scheme = url.scheme();
                let servers = places.into_iter().map(|(host, port)| {
                    let port = port.unwrap_or(match url.port_or_known_default() {
                        // The standard ports of http are none of the protocol's.
                        Some(80 | 443) | None => PORT,
                        Some(port) => port,
                    });
                    Self {
                        shown: format!("grpc+{scheme}://{host}:{port}"),
                        place: Place::Host(format!("{scheme}://{host}:{port}")),
                        ..server.clone()
                    }
                });
                Ok(servers.collect())
            }
            _ => Err(scheme()),
        }
    }

    /// The bearer token, from its file.
    pub(super) fn token(&self) -> Result<Option<MetadataValue<Ascii>>, String> {
        let path = self.token_file.as_deref();
        path.map(|path| secret("Bearer ", path)).transpose()
    }

    /// The token for changing names, from its file.
    pub(super) fn names_token(&self) -> Result<Option<MetadataValue<Ascii>>, String> {
        let path = self.names_token_file.as_deref();
        path.map(|path| secret("", path)).transpose()
    }
}

fn secret(prefix: &str, path: &Path) -> Result<MetadataValue<Ascii>, String> {
    let token = fs::read_to_string(path).map_err(|error| format!("{path:?}: {error}"))?;
    let none = || format!("{path:?} holds no token: it must be one line of plain text");
    if token.trim().is_empty() {
        return Err(none());
    }
    let mut value: MetadataValue<Ascii> = format!("{prefix}{}", token.trim())
        .parse()
        .map_err(|_| none())?;
    value.set_sensitive(true);
    Ok(value)
}

fn percent_decoded(path: &str) -> PathBuf {
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(text: &str) -> Vec<String> {
        let servers = Server::parse(text, text).unwrap();
        let place = |server: Server| match server.place {
            Place::Host(host) => host,
            Place::Socket(path) => path.display().to_string(),
        };
        servers.into_iter().map(place).collect()
    }

    #[test]
    fn places_have_a_port() {
        assert_eq!(places("grpc+http://h"), ["http://h:8000"]);
        assert_eq!(places("grpc+https://[::1]:9"), ["https://[::1]:9"]);
        assert_eq!(places("grpc+unix:///run/a%20b"), ["/run/a b"]);
        assert_eq!(
            places("grpc+http://a:1?hub=b:2&hub=[::1]:3&hub=c"),
            ["http://a:1", "http://b:2", "http://[::1]:3", "http://c:1"]
        );
    }

    #[test]
    fn halves_and_nonsense_are_refused() {
        for text in [
            "grpc+https://h?cert=/x",
            "grpc+https://h?key=/x",
            "grpc+http://h?ca=/x",
            "grpc+http://h?connections=0",
            "grpc+http://h/path",
            "grpc+http://h?hub=a/b",
            "grpc+unix://host/path",
        ] {
            assert!(Server::parse(text, text).is_err(), "{text}");
        }
    }
}
