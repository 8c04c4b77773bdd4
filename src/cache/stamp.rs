use std::{fs::File, io, os::unix::fs::MetadataExt, sync::OnceLock};

use super::condemned::Condemned;

/// What identifies the state of a data file's content: as long as it is the same, nothing has written to the file
/// since. A changed boot id makes every stamp stale, because after a crash of the machine the content may be older than
/// its metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Nanoseconds since 1970.
    changed: i128,
}

impl Stamp {
    /// The file's stamp, and whether it still belongs to the cache.
    pub(super) fn of(file: &File) -> io::Result<(Self, bool)> {
        let metadata = file.metadata()?;
        let stamp = Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: i128::from(metadata.ctime()) * 1_000_000_000
                + i128::from(metadata.ctime_nsec()),
        };
        let is_there = metadata.nlink() > 0 && !Condemned::is_mode(metadata.mode());
        Ok((stamp, is_there))
    }

    /// As the index stores it; the boot id is part of it.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = boot_id().as_bytes().to_vec();
        bytes.extend(self.device.to_le_bytes());
        bytes.extend(self.inode.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.changed.to_le_bytes());
        bytes
    }
}

fn boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_else(|_| {
            // Without one, no stamp may outlive this process.
            format!(
                "pid {} at {:?}",
                std::process::id(),
                std::time::SystemTime::now()
            )
        })
    })
}
