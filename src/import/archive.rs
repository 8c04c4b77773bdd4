use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tar::{Archive, EntryType};

use super::{
    ImportError, Imported, Options, Unkept,
    pipeline::{self, Cutter, Progress},
    tree::{self, Item},
};
use crate::{
    model::{Name, Node, Target},
    remote::Publish,
};

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The longest path of an entry, in bytes: as long as Linux takes them.
const MAX_PATH: usize = 4096;

type Items = BTreeMap<Name, Item<Node>>;

/// Imports a tar stream, plain or compressed by gzip or zstd. A later entry of the same path wins; a hard link becomes
/// a file equal to the one it links to.
///
/// # Errors
/// When the stream cannot be read or its content not published, or an entry is absolute, has `..` in its path, lies
/// below something that is no directory, or is of a kind that the model cannot hold.
pub async fn import_tar(
    publish: Arc<dyn Publish>,
    source: impl Read + Send + 'static,
    options: Options,
    progress: Arc<Progress>,
) -> Result<Imported, ImportError> {
    // The one thread takes the source out; the pipeline wants to be able to start several.
    let source = Arc::new(Mutex::new(Some(source)));
    let cut_all = move |cutter: Cutter| {
        let source = source
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .ok_or(ImportError::Stopped)?;
        let mut reader = TarReader {
            cutter,
            options,
            root: Items::new(),
            unkept: Unkept::default(),
            skipped: 0,
        };
        reader.read(source)?;
        // The cutter must go: the pipeline ends when nobody can send chunks any more.
        Ok((reader.root, reader.unkept, reader.skipped))
    };
    let (root, unkept, skipped) = pipeline::run(publish.as_ref(), &progress, 1, cut_all)
        .await?
        .pop()
        .ok_or(ImportError::Stopped)?;
    let tree = tree::build(
        Item::Directory(root),
        options.size_rule,
        &std::convert::identity,
    )?;
    Ok(Imported {
        root: pipeline::put_tree(publish.as_ref(), tree).await?,
        unkept,
        skipped,
    })
}

struct TarReader {
    cutter: Cutter,
    options: Options,
    root: Items,
    unkept: Unkept,
    skipped: u64,
}

impl TarReader {
    fn read(&mut self, source: impl Read + 'static) -> Result<(), ImportError> {
        let mut source = BufReader::with_capacity(1 << 20, source);
        let start = source.fill_buf().map_err(ImportError::Archive)?;
        let source: Box<dyn Read> = if start.starts_with(GZIP_MAGIC) {
            Box::new(flate2::bufread::MultiGzDecoder::new(source))
        } else if start.starts_with(ZSTD_MAGIC) {
            let decoder = zstd::stream::read::Decoder::with_buffer(source);
            Box::new(decoder.map_err(ImportError::Archive)?)
        } else {
            Box::new(source)
        };
        let mut archive = Archive::new(source);
        for entry in archive.entries().map_err(ImportError::Archive)? {
            self.entry(entry.map_err(ImportError::Archive)?)?;
        }
        Ok(())
    }

    fn entry(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<(), ImportError> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let path = entry.path().map_err(ImportError::Archive)?.into_owned();
        if path.as_os_str().len() > MAX_PATH {
            let reason = format!("its path has more than {MAX_PATH} bytes");
            return Err(ImportError::Entry { path, reason });
        }
        let xattrs = read_pax(&mut entry, &path)?;
        let names = components(&path, &path)?;
        let Some((name, parents)) = names.split_last() else {
            return Ok(()); // The root itself, "./".
        };
        let item = match kind {
            EntryType::Directory => {
                let parent = directory(&mut self.root, &path, parents)?;
                match parent.get(name) {
                    Some(Item::Directory(_)) => None,
                    Some(Item::File(_) | Item::Symlink(_)) | None => {
                        Some(Item::Directory(Items::new()))
                    }
                }
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mode = entry.header().mode().map_err(ImportError::Archive)?;
                let executable = mode & 0o100 != 0;
                let (digest, size) = self.cutter.cut(&path, &mut entry)?;
                Some(Item::File(Node::File {
                    digest,
                    size,
                    executable,
                }))
            }
            EntryType::Link => {
                let target = link_target(&entry)?;
                Some(self.linked(&path, &target)?)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = Target::new(target).map_err(|cause| ImportError::Target {
                    path: path.clone(),
                    cause,
                })?;
                Some(Item::Symlink(Node::Symlink { target }))
            }
            _ if self.options.skip_special => {
                self.skipped += 1;
                return Ok(());
            }
            EntryType::Fifo => return Err(special(path, "a fifo")),
            EntryType::Block => return Err(special(path, "a block device")),
            EntryType::Char => return Err(special(path, "a character device")),
            _ => return Err(special(path, "of an unknown kind")),
        };
        if let Some(item) = item {
            directory(&mut self.root, &path, parents)?.insert(name.clone(), item);
        }
        let header = entry.header();
        self.unkept.count(
            header.mode().unwrap_or_default(),
            header.uid().unwrap_or_default(),
            header.gid().unwrap_or_default(),
            xattrs,
            header.mtime().is_ok_and(|time| time > 0),
        );
        Ok(())
    }

    /// What a hard link links to.
    fn linked(&self, path: &Path, target: &Path) -> Result<Item<Node>, ImportError> {
        let names = components(path, target)?;
        let mut items = Some(&self.root);
        let mut found = None;
        for name in &names {
            found = items.and_then(|items| items.get(name));
            items = match found {
                Some(Item::Directory(items)) => Some(items),
                Some(Item::File(_) | Item::Symlink(_)) | None => None,
            };
        }
        match found {
            Some(Item::Directory(_)) | None => Err(ImportError::Entry {
                path: path.to_owned(),
                reason: format!("it is a hard link to {target:?}, which is no earlier file"),
            }),
            Some(item) => Ok(item.clone()),
        }
    }
}

/// Whether the pax records of an entry have extended attributes. Records that mean something which is not understood are
/// refused.
fn read_pax(entry: &mut tar::Entry<'_, impl Read>, path: &Path) -> Result<bool, ImportError> {
    /// A name of this length may have been cut off in the header.
    const HEADER_NAME: usize = 100;
    let refused = |reason: &str| ImportError::Entry {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let header = entry.header();
    let whole = header.path_bytes().len() < HEADER_NAME
        && header
            .link_name_bytes()
            .is_none_or(|name| name.len() < HEADER_NAME);
    let mut xattrs = false;
    let records = entry.pax_extensions().map_err(ImportError::Archive)?;
    for record in records.into_iter().flatten() {
        match record {
            Ok(record) if record.key_bytes().starts_with(b"GNU.sparse.") => {
                return Err(refused(
                    "sparse files in the pax format are not understood; make the archive without --sparse, or with \
                     --format=gnu",
                ));
            }
            Ok(record) => xattrs |= record.key_bytes().starts_with(b"SCHILY.xattr."),
            // The reader takes a line break in a name for the end of the record; the header has the name too.
            Err(_) if whole => break,
            Err(_) => return Err(refused("its pax header cannot be read")),
        }
    }
    Ok(xattrs)
}

fn link_target(entry: &tar::Entry<'_, impl Read>) -> Result<PathBuf, ImportError> {
    let target = entry.link_name().map_err(ImportError::Archive)?;
    Ok(target.unwrap_or_default().into_owned())
}

/// The directory at `names`, made where it is not there yet.
fn directory<'a>(
    root: &'a mut Items,
    path: &Path,
    names: &[Name],
) -> Result<&'a mut Items, ImportError> {
    names.iter().try_fold(root, |items, name| {
        let item = items
            .entry(name.clone())
            .or_insert_with(|| Item::Directory(Items::new()));
        match item {
            Item::Directory(below) => Ok(below),
            Item::File(_) | Item::Symlink(_) => Err(ImportError::Entry {
                path: path.to_owned(),
                reason: format!("its parent {name:?} is an earlier file or symlink"),
            }),
        }
    })
}

/// The names in `path`, which belongs to the entry `entry`.
fn components(entry: &Path, path: &Path) -> Result<Vec<Name>, ImportError> {
    let refused = |reason: &str| ImportError::Entry {
        path: entry.to_owned(),
        reason: reason.to_owned(),
    };
    path.components()
        .filter(|component| *component != Component::CurDir)
        .map(|component| match component {
            Component::Normal(name) => {
                let name = std::os::unix::ffi::OsStrExt::as_bytes(name).to_vec();
                Name::new(name).map_err(|cause| ImportError::Name {
                    path: entry.to_owned(),
                    cause,
                })
            }
            Component::ParentDir => Err(refused("a path with .. is refused")),
            Component::RootDir | Component::Prefix(_) | Component::CurDir => {
                Err(refused("an absolute path is refused"))
            }
        })
        .collect()
}

const fn special(path: PathBuf, kind: &'static str) -> ImportError {
    ImportError::Special { path, kind }
}
