use std::{
    io::{self, Read},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{ImportError, Progress, pipeline};
use crate::{model::Digest, remote::Publish};

/// Publishes what a source gives as one blob, and answers its digest. When it returns, the blob is there and synced.
///
/// # Errors
/// When the source cannot be read or the store cannot be written.
pub async fn import_blob(
    publish: Arc<dyn Publish>,
    source: impl Read + Send + 'static,
) -> Result<Digest, ImportError> {
    let source = Arc::new(Mutex::new(Some(source)));
    let cut = move |cutter: pipeline::Cutter| {
        let source = source.lock().unwrap_or_else(PoisonError::into_inner).take();
        cutter.cut(
            Path::new("a blob that is put"),
            source.ok_or(ImportError::Stopped)?,
        )
    };
    let progress = Arc::new(Progress::default());
    let cut = pipeline::run(publish.as_ref(), &progress, 1, cut).await?;
    publish.sync().await?;
    let (digest, _) = cut.into_iter().next().ok_or(ImportError::Stopped)?;
    Ok(digest)
}

/// Pieces of a blob from async code, as a source for [`import_blob`]. A sender that goes away without an end is an error.
#[derive(Debug)]
pub struct Pipe {
    pieces: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    ended: bool,
}

impl Pipe {
    /// `None` is the end.
    #[must_use]
    pub fn new(pieces: mpsc::Receiver<Option<Bytes>>) -> Self {
        Self {
            pieces,
            piece: Bytes::new(),
            ended: false,
        }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let len = buffer.len().min(self.piece.len());
        buffer[..len].copy_from_slice(&self.piece.split_to(len));
        Ok(len)
    }
}
