use std::{error::Error, sync::Arc, time::Duration};

use tonic::{Code, Status};

use super::{AWAY, PENDING, RETRY_AFTER, SHED, UPSTREAM};
use crate::remote::{Fault, Object, RemoteError};

/// What a status says when something was to be read.
pub(super) fn read_failed(remote: Arc<str>, object: Object, status: &Status) -> RemoteError {
    match status.code() {
        Code::NotFound => RemoteError::NotFound { remote, object },
        Code::DataLoss => RemoteError::Corrupt {
            remote,
            object,
            cause: cause(status),
        },
        _ => RemoteError::Read {
            remote,
            object,
            fault: fault(status),
            cause: cause(status),
        },
    }
}

/// What a status says when something was to be written.
pub(super) fn write_failed(remote: Arc<str>, object: Object, status: &Status) -> RemoteError {
    RemoteError::Write {
        remote,
        object,
        fault: fault(status),
        cause: cause(status),
    }
}

fn fault(status: &Status) -> Fault {
    match status.code() {
        Code::ResourceExhausted => {
            let after = status.metadata().get(RETRY_AFTER);
            let after = after
                .and_then(|after| after.to_str().ok())
                .and_then(|after| after.parse().ok());
            let after = after.map(Duration::from_millis);
            match status.metadata().contains_key(SHED) {
                true => Fault::Shed(after),
                false => Fault::Overload(after),
            }
        }
        Code::Unavailable if is_upstream(status, AWAY) => Fault::Upstream,
        Code::Unavailable if is_upstream(status, PENDING) => Fault::Pending,
        // Not heard, broken off, or the server's own trouble.
        Code::Unavailable
        | Code::Cancelled
        | Code::Aborted
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Unknown
        | Code::DataLoss => Fault::Unavailable,
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => Fault::Refused,
    }
}

/// Whether a hub says so of its own remotes.
fn is_upstream(status: &Status, what: &str) -> bool {
    let said = status.metadata().get(UPSTREAM);
    said.is_some_and(|said| said == what)
}

/// Whether a status can only come from a service that knows the method.
pub(super) fn is_from_service(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition | Code::DataLoss
    )
}

/// Whether an error is that the server does not know the method.
pub(super) fn is_unimplemented(error: &RemoteError) -> bool {
    let (RemoteError::Read { cause, .. } | RemoteError::Write { cause, .. }) = error else {
        return false;
    };
    cause
        .downcast_ref::<Told>()
        .is_some_and(|told| told.code == Code::Unimplemented)
}

/// What a person is told of a status.
#[derive(Debug, thiserror::Error)]
#[error("{}{}{message}{}", self.code.description(), if message.is_empty() { "" } else { ": " }, self.hint())]
struct Told {
    code: Code,
    message: String,
}

impl Told {
    const fn hint(&self) -> &'static str {
        match self.code {
            Code::Unauthenticated => "; the token is that of ?token-file=/path",
            _ => "",
        }
    }
}

fn cause(status: &Status) -> Arc<dyn Error + Send + Sync> {
    let message = match status.source() {
        // The innermost says what happened, such as "connection refused".
        Some(source) => innermost(source),
        None => status.message().to_owned(),
    };
    Arc::new(Told {
        code: status.code(),
        message,
    })
}

/// The text of the error that began it all.
pub(super) fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
