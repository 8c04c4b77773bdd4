//! One fetch for what several processes want. Whoever asks a remote for a chunk holds a lock, which dies with its process: one byte of a
//! file of the cache, at an offset that the digest gives. The others look for what it brings, and never wait in the kernel.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Blob, Cache, CacheError, ChunkData};
use crate::{model::Digest, remote::Urgency};

/// The file, in the cache directory.
const NAME: &str = "flights";
/// Locks of one process, at the most: what one costs grows with their number.
const MOST: usize = 256;
/// Of each process that has the cache open: it is shared by all, and says that there are others.
const PRESENCE: i64 = 0;
/// Whether there are others is looked at so often, in milliseconds.
const LOOK_EVERY: u64 = 100;
/// Somebody who waits for another process looks again after this time at first …
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// … and later after this.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// What is estimated may be far from what is.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// No reader waits longer, unless two transfers take longer …
const READER_WAITS: Duration = Duration::from_millis(250);
/// … and nobody else longer than this.
const OTHERS_WAIT: Duration = Duration::from_secs(1);

/// The locks of one process.
#[derive(Debug)]
pub(super) struct SharedFlights {
    /// `None` where there can be none.
    file: Option<Arc<File>>,
    held: Arc<AtomicUsize>,
    opened: Instant,
    /// When it was last looked whether there are others, in milliseconds since `opened`, and one more.
    looked_at: AtomicU64,
    has_company: AtomicBool,
}

/// A chunk that this process fetches. Other processes are told when this is dropped.
#[derive(Debug)]
pub(super) struct SharedFlight {
    file: Arc<File>,
    held: Arc<AtomicUsize>,
    offset: i64,
}

/// What to do about a chunk.
enum Begun {
    /// To fetch it, without telling anybody.
    Alone,
    Ours(SharedFlight),
    /// Another process fetches it.
    Theirs,
}

impl Drop for SharedFlight {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
        // It goes with the process at the latest.
        let _ = lock(&self.file, libc::F_UNLCK, self.offset);
    }
}

impl SharedFlights {
    /// `None` for a cache that this process writes nothing to.
    pub(super) fn open(cache_dir: Option<&Path>) -> Self {
        let unwritable = || Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
        let present = cache_dir.map_or_else(unwritable, Self::enter);
        Self {
            file: present
                .inspect_err(|error| tracing::debug!(%error, "fetches are not shared"))
                .ok()
                .map(Arc::new),
            held: Arc::default(),
            opened: Instant::now(),
            looked_at: AtomicU64::new(0),
            has_company: AtomicBool::new(false),
        }
    }

    fn enter(cache_dir: &Path) -> io::Result<File> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(cache_dir.join(NAME))?;
        lock(&file, libc::F_RDLCK, PRESENCE)?;
        Ok(file)
    }

    fn begin(&self, chunk: Digest) -> Begun {
        let Some(file) = self.file.as_ref().filter(|file| self.has_company(file)) else {
            return Begun::Alone;
        };
        if self.held.fetch_add(1, Ordering::Relaxed) >= MOST {
            self.held.fetch_sub(1, Ordering::Relaxed);
            return Begun::Alone;
        }
        let offset = offset_of(chunk);
        let locked = lock(file, libc::F_WRLCK, offset);
        if !matches!(locked, Ok(true)) {
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
        match locked {
            Ok(true) => Begun::Ours(SharedFlight {
                file: Arc::clone(file),
                held: Arc::clone(&self.held),
                offset,
            }),
            Ok(false) => Begun::Theirs,
            Err(_) => Begun::Alone,
        }
    }

    /// Whether another process has the cache open, as of a moment ago.
    fn has_company(&self, file: &File) -> bool {
        let now = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX) + 1;
        let before = self.looked_at.load(Ordering::Relaxed);
        if before == 0 || before.saturating_add(LOOK_EVERY) <= now {
            self.looked_at.store(now, Ordering::Relaxed);
            let has_company = !is_free(file, PRESENCE).unwrap_or(true);
            self.has_company.store(has_company, Ordering::Relaxed);
        }
        self.has_company.load(Ordering::Relaxed)
    }
}

/// Where the lock of a chunk is: a byte behind that of presence.
fn offset_of(chunk: Digest) -> i64 {
    let bytes = chunk.as_bytes().first_chunk::<8>();
    let number = bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes) >> 2);
    i64::try_from(number).unwrap_or_default() + 1
}

fn range(kind: libc::c_int, offset: i64) -> libc::flock {
    // SAFETY: zeros are a value of it.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the constants are small, and of another type in the structure"
    )]
    let (kind, whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    range.l_type = kind;
    range.l_whence = whence;
    range.l_start = offset;
    range.l_len = 1;
    range
}

/// Takes or gives back a lock of the open file description. False where another process has one that does not go with it.
fn lock(file: &File, kind: libc::c_int, offset: i64) -> io::Result<bool> {
    let range = range(kind, offset);
    // SAFETY: it reads the structure, which lives until it returns.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) };
    if done == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Whether no other process has a lock at an offset.
fn is_free(file: &File, offset: i64) -> io::Result<bool> {
    let mut range = range(libc::F_WRLCK, offset);
    // SAFETY: it writes to the structure, which lives until it returns.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) };
    match done {
        0 => Ok(libc::c_int::from(range.l_type) == libc::F_UNLCK),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a look at other processes comes to.
pub(super) enum Turn {
    /// Another process has brought it.
    Here(ChunkData),
    /// It is to be fetched.
    Fetch(Option<SharedFlight>),
}

impl Cache {
    /// Waits while another process fetches a chunk, and not for long: it may have been stopped. To be asked when the request would be sent
    /// at once.
    pub(super) async fn turn(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        position: usize,
        urgency: &Urgency,
    ) -> Result<Turn, CacheError> {
        let chunk = *blob.chunk(position).ok_or(CacheError::Aborted)?;
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.shared_flights.begin(chunk.digest) {
                Begun::Alone => return Ok(Turn::Fetch(None)),
                Begun::Ours(flight) => {
                    // It may have come since it was looked for.
                    let found = self.find_here(blob, position).await?;
                    return Ok(found.map_or(Turn::Fetch(Some(flight)), Turn::Here));
                }
                Begun::Theirs => {}
            }
            let at_least = match urgency.is_reader() {
                true => READER_WAITS,
                false => OTHERS_WAIT,
            };
            let transfer = self.pace().time_of(chunk.size).unwrap_or_default();
            if begun.elapsed() >= at_least.max((2 * transfer).min(LONGEST_WAIT)) {
                return Ok(Turn::Fetch(None));
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
            if let Some(data) = self.find_here(blob, position).await? {
                return Ok(Turn::Here(data));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins(flights: &SharedFlights, chunk: &[u8]) -> Option<SharedFlight> {
        match flights.begin(Digest::of(chunk)) {
            Begun::Ours(flight) => Some(flight),
            Begun::Alone => panic!("alone"),
            Begun::Theirs => None,
        }
    }

    #[test]
    fn one_of_two_fetches() {
        let dir = tempfile::tempdir().unwrap();
        let [ours, theirs] = [(); 2].map(|()| SharedFlights::open(Some(dir.path())));
        let one = begins(&ours, b"one").unwrap();
        assert!(begins(&theirs, b"one").is_none());
        let two = begins(&theirs, b"two").unwrap();
        assert!(begins(&ours, b"two").is_none());
        drop(one);
        let one = begins(&theirs, b"one").unwrap();
        assert!(begins(&ours, b"one").is_none());
        drop((one, two, theirs));
        let later = Instant::now() + Duration::from_secs(10);
        while matches!(ours.begin(Digest::of(b"one")), Begun::Ours(_)) {
            assert!(Instant::now() < later, "the other one is gone");
        }
        assert_eq!(ours.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn they_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let [ours, _theirs] = [(); 2].map(|()| SharedFlights::open(Some(dir.path())));
        let held: Vec<_> = (0..MOST)
            .map(|number| begins(&ours, &number.to_le_bytes()).unwrap())
            .collect();
        assert!(matches!(ours.begin(Digest::of(b"one more")), Begun::Alone));
        drop(held);
        assert!(begins(&ours, b"one more").is_some());
    }
}
