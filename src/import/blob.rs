use std::{
    io::Read,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

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
