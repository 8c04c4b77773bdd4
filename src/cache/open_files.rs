use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use super::{DataFile, index::FileRow};

/// The data files that are open, bounded in number.
#[derive(Debug)]
pub(super) struct OpenFiles {
    dir: PathBuf,
    limit: usize,
    /// By number. The lock is not held while a file is opened.
    files: RwLock<HashMap<u64, Arc<DataFile>>>,
}

impl OpenFiles {
    /// `limit`: how many stay open; those in use beyond it stay open too.
    pub(super) fn new(cache_dir: &Path, limit: usize) -> Self {
        Self {
            dir: cache_dir.join("data"),
            limit,
            files: RwLock::default(),
        }
    }

    /// Where the data files are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:016x}"))
    }

    /// The file, if it is open.
    pub(super) fn get(&self, number: u64) -> Option<Arc<DataFile>> {
        self.files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&number)
            .cloned()
    }

    /// Opens the file of a row, unless it is open already.
    pub(super) fn open(&self, row: &FileRow, writable: bool) -> io::Result<Arc<DataFile>> {
        if !writable && let Some(file) = self.get(row.number) {
            return Ok(file);
        }
        let file = Arc::new(DataFile::open(&self.path(row.number), row, writable)?);
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if !writable && let Some(file) = files.get(&row.number) {
            return Ok(Arc::clone(file));
        }
        if files.len() >= self.limit {
            let mut ages: Vec<_> = files
                .iter()
                .map(|(number, file)| (file.used_at(), *number))
                .collect();
            ages.sort_unstable();
            for (_, number) in ages.into_iter().take(self.limit / 4 + 1) {
                files.remove(&number);
            }
        }
        files.insert(row.number, Arc::clone(&file));
        Ok(file)
    }

    /// Closes a file for whoever does not hold it.
    pub(super) fn remove(&self, number: u64) {
        self.files
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&number);
    }

    /// Closes the files whose names are gone.
    pub(super) fn close_unlinked(&self) {
        let open: Vec<_> = {
            let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
            files.values().cloned().collect()
        };
        for file in open.into_iter().filter(|file| file.is_unlinked()) {
            self.remove(file.number());
        }
    }

    /// Number and last use (seconds since 1970) of each open file.
    pub(super) fn uses(&self) -> Vec<(u64, u64)> {
        self.files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(number, file)| (*number, file.used_at()))
            .collect()
    }
}
