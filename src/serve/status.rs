use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    cache::CacheError,
    remote::{AWAY, Fault, PENDING, RETRY_AFTER, RemoteError, UPSTREAM},
};

/// What a client is told of a failure. The message names what could not be had; addresses in it are without secrets.
pub(super) fn of(error: &CacheError) -> Status {
    match error {
        CacheError::Remote(error) => of_remote(error),
        CacheError::BlobMismatch { .. }
        | CacheError::BadDirectory { .. }
        | CacheError::IncompleteClosure { .. }
        | CacheError::UnexpectedDirectory { .. } => Status::data_loss(error.to_string()),
        CacheError::Guard(_)
        | CacheError::Io { .. }
        | CacheError::Index { .. }
        | CacheError::NewerSchema { .. }
        | CacheError::TooSmall { .. }
        | CacheError::Recut { .. }
        | CacheError::Aborted => Status::internal(error.to_string()),
    }
}

pub(super) fn of_remote(error: &RemoteError) -> Status {
    let message = error.to_string();
    match error {
        RemoteError::NotFound { .. } => Status::not_found(message),
        RemoteError::Corrupt { .. } => Status::data_loss(message),
        RemoteError::Offline { .. } => upstream(message, AWAY),
        RemoteError::Read { fault, .. } | RemoteError::Write { fault, .. } => match fault {
            Fault::Unavailable | Fault::Upstream => upstream(message, AWAY),
            Fault::Pending => upstream(message, PENDING),
            Fault::Overload(after) | Fault::Shed(after) => overloaded(message, *after),
            Fault::Refused => Status::failed_precondition(message),
        },
    }
}

/// What a client gets where this server is well, and those are not that it would have to ask.
pub(super) fn upstream(message: impl Into<String>, what: &'static str) -> Status {
    let mut status = Status::unavailable(message);
    let what = MetadataValue::from_static(what);
    status.metadata_mut().insert(UPSTREAM, what);
    status
}

/// What a client gets that is to come back later, and when.
pub(super) fn overloaded(message: impl Into<String>, after: Option<std::time::Duration>) -> Status {
    let mut status = Status::new(Code::ResourceExhausted, message);
    if let Some(after) = after {
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        status.metadata_mut().insert(RETRY_AFTER, millis.into());
    }
    status
}
