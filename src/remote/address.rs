use std::{path::PathBuf, sync::Arc};

use url::Url;

use super::{ObjectStoreRemote, Publish, Remote, RemoteError};

/// Why an address names no remote.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?} is not the address of a remote: {1}")]
    Url(String, url::ParseError),
    #[error(
        "the remote {0:?} is of a kind that this version does not know; \
         write objectstore+file:///absolute/path"
    )]
    Scheme(String),
    #[error("{0:?} names no absolute path; write objectstore+file:///absolute/path")]
    Path(String),
    #[error("the remote {0:?} has an option {1:?}, and a directory takes none")]
    Option(String, String),
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// Opens a remote for reading. That it cannot be reached shows only when it is asked for something.
///
/// # Errors
/// When the address is not understood.
pub fn open(address: &str) -> Result<Arc<dyn Remote>, AddressError> {
    Ok(Arc::new(ObjectStoreRemote::directory(&parse(address)?)))
}

/// Opens a remote for writing; a directory is created when it is not there.
///
/// # Errors
/// When the address is not understood or the directory cannot be created.
pub fn open_for_writing(address: &str) -> Result<Arc<dyn Publish>, AddressError> {
    let path = parse(address)?;
    Ok(Arc::new(ObjectStoreRemote::create_directory(&path)?))
}

fn parse(address: &str) -> Result<PathBuf, AddressError> {
    let Some(rest) = address.strip_prefix("objectstore+") else {
        return Err(AddressError::Scheme(address.to_owned()));
    };
    let url = Url::parse(rest).map_err(|error| AddressError::Url(address.to_owned(), error))?;
    if url.scheme() != "file" {
        return Err(AddressError::Scheme(address.to_owned()));
    }
    if let Some((key, _)) = url.query_pairs().next() {
        return Err(AddressError::Option(address.to_owned(), key.into_owned()));
    }
    // `file:relative` becomes absolute in a URL, so the text itself is looked at.
    if !rest.starts_with("file:///") {
        return Err(AddressError::Path(address.to_owned()));
    }
    url.to_file_path()
        .map_err(|()| AddressError::Path(address.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        assert_eq!(
            parse("objectstore+file:///a/b%20c").unwrap(),
            PathBuf::from("/a/b c")
        );
        for (address, part) in [
            ("/some/path", "objectstore+file:///absolute/path"),
            ("grpc+http://localhost:8000", "does not know"),
            ("objectstore+ftp://x/y", "does not know"),
            ("objectstore+file://relative/path", "no absolute path"),
            ("objectstore+file:relative", "no absolute path"),
            ("objectstore+file:///a?region=x", "region"),
            ("objectstore+", "not the address"),
        ] {
            let error = parse(address).unwrap_err().to_string();
            assert!(error.contains(part), "{address}: {error}");
        }
    }
}
