use std::{
    collections::BTreeMap,
    fs::{self, File, FileType, Metadata},
    io,
    os::unix::{
        ffi::OsStringExt,
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    ImportError, Imported, Options, Unkept,
    pipeline::{self, Cutter, Progress},
    tree::{self, Item},
};
use crate::{
    model::{Name, Node, Target},
    remote::Publish,
};

/// Imports a directory, a file or a symlink.
///
/// # Errors
/// When something cannot be read or published, or the tree holds what the model cannot (see [`ImportError`]). Nothing
/// that refers to missing data is left in the store.
pub async fn import_path(
    publish: Arc<dyn Publish>,
    path: &Path,
    options: Options,
    progress: Arc<Progress>,
) -> Result<Imported, ImportError> {
    let mut walk = Walk {
        options,
        progress: Arc::clone(&progress),
        files: Vec::new(),
        unkept: Unkept::default(),
        skipped: 0,
    };
    let path = path.to_owned();
    let (root, walk) = tokio::task::spawn_blocking(move || {
        let metadata = fs::symlink_metadata(&path).map_err(|error| read_failed(&path, error))?;
        let root = walk
            .item(&path, &metadata)?
            .ok_or_else(|| special(&path, metadata.file_type()))?;
        Ok::<_, ImportError>((root, walk))
    })
    .await
    .map_err(|_| ImportError::Stopped)??;

    let files: Arc<[PathBuf]> = walk.files.into();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = Arc::new(AtomicUsize::new(0));
    let all = Arc::clone(&files);
    let cut_all = move |cutter: Cutter| {
        let mut cut = Vec::new();
        while let Some(path) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            cut.push((path.clone(), cut_file(&cutter, path)?));
        }
        Ok(cut)
    };
    let nodes: BTreeMap<PathBuf, Node> =
        pipeline::run(publish.as_ref(), &progress, threads, cut_all)
            .await?
            .into_iter()
            .flatten()
            .collect();
    let node = |index: usize| nodes[&files[index]].clone();
    let tree = tree::build(root, options.size_rule, &node)?;
    Ok(Imported {
        root: pipeline::put_tree(publish.as_ref(), tree).await?,
        unkept: walk.unkept,
        skipped: walk.skipped,
    })
}

struct Walk {
    options: Options,
    progress: Arc<Progress>,
    files: Vec<PathBuf>,
    unkept: Unkept,
    skipped: u64,
}

impl Walk {
    /// The item at `path`, `None` for a special file that is left out. Files are numbered as in `files`.
    fn item(
        &mut self,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<Option<Item<usize>>, ImportError> {
        let kind = metadata.file_type();
        let item = if kind.is_dir() {
            Item::Directory(self.directory(path)?)
        } else if kind.is_file() {
            self.progress.files_total.fetch_add(1, Ordering::Relaxed);
            self.progress
                .bytes_total
                .fetch_add(metadata.len(), Ordering::Relaxed);
            self.files.push(path.to_owned());
            Item::File(self.files.len() - 1)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|error| read_failed(path, error))?;
            let target = Target::new(target.into_os_string().into_vec()).map_err(|cause| {
                ImportError::Target {
                    path: path.to_owned(),
                    cause,
                }
            })?;
            Item::Symlink(Node::Symlink { target })
        } else if self.options.skip_special {
            self.skipped += 1;
            return Ok(None);
        } else {
            return Err(special(path, kind));
        };
        let xattrs = rustix::fs::llistxattr(path, &mut [0_u8; 0]).is_ok_and(|len| len > 0);
        self.unkept.count(
            metadata.mode(),
            metadata.uid().into(),
            metadata.gid().into(),
            xattrs,
            true,
        );
        Ok(Some(item))
    }

    fn directory(&mut self, path: &Path) -> Result<BTreeMap<Name, Item<usize>>, ImportError> {
        let failed = |error| read_failed(path, error);
        let mut items = BTreeMap::new();
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let metadata = entry
                .metadata()
                .map_err(|error| read_failed(&path, error))?;
            if let Some(item) = self.item(&path, &metadata)? {
                let name = Name::new(entry.file_name().into_vec())
                    .map_err(|cause| ImportError::Name { path, cause })?;
                items.insert(name, item);
            }
        }
        Ok(items)
    }
}

fn cut_file(cutter: &Cutter, path: &Path) -> Result<Node, ImportError> {
    let failed = |error| read_failed(path, error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let executable = metadata.permissions().mode() & 0o100 != 0;
    let (digest, size) = cutter.cut(path, file)?;
    Ok(Node::File {
        digest,
        size,
        executable,
    })
}

fn read_failed(path: &Path, cause: io::Error) -> ImportError {
    ImportError::Read {
        path: path.to_owned(),
        cause,
    }
}

fn special(path: &Path, kind: FileType) -> ImportError {
    let kind = if kind.is_socket() {
        "a socket"
    } else if kind.is_fifo() {
        "a fifo"
    } else if kind.is_block_device() {
        "a block device"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "of an unknown kind"
    };
    ImportError::Special {
        path: path.to_owned(),
        kind,
    }
}
