use std::{
    fmt, io,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::runtime::Handle;
use vhost_user_backend::{VringState, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};

use super::{
    Memory, Ring, SharedMemory,
    chain::{Chain, WriteError},
    unanswered::{Meanwhile, NotNow, Position, RingState, State, Unanswered},
};
use crate::fs::dispatch::{Answer, Body, Capabilities, MAX_TRANSFER, Transport};

/// An answer of at most so many bytes is kept while its ring is stopped; what would be longer is found again.
const KEPT: u64 = 4096;
/// A monitor that starts a ring says how to interrupt the guest a little later.
const LOOK_FOR_CALL: Duration = Duration::from_millis(1);
const LOOKS_FOR_CALL: usize = 5000;

/// A device for the filesystem of one guest: its memory, and its requests that are not answered yet.
pub struct Device {
    memory: SharedMemory,
    /// Numbers of requests.
    next: AtomicU64,
    /// Held, shared, while a ring is read or written. Whoever stops one holds it alone, so nothing is written to a ring that was
    /// stopped. Taken before the others.
    running: RwLock<()>,
    state: Mutex<State>,
    /// No requests are taken any more.
    is_closed: AtomicBool,
    /// For interrupts that the monitor could not take yet.
    runtime: Handle,
}

/// What a ring gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A request, by its number.
    Request(u64),
    /// Something that is no request, and was given back.
    Rubbish,
    Nothing,
    /// The ring was stopped or is broken: it is not to be touched before it is started.
    Idle,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").finish_non_exhaustive()
    }
}

impl Device {
    /// Must be called within a tokio runtime.
    pub(super) fn new() -> Self {
        Self {
            memory: GuestMemoryAtomic::new(Memory::new()),
            next: AtomicU64::new(1),
            running: RwLock::new(()),
            state: Mutex::default(),
            is_closed: AtomicBool::new(false),
            runtime: Handle::current(),
        }
    }

    pub(super) fn memory(&self) -> SharedMemory {
        self.memory.clone()
    }

    /// Takes the next request off a ring and copies it. Where there is none, the driver is to kick when it adds one; until then it
    /// is not asked to, so it does so without need only where it has no `EVENT_IDX`.
    pub(super) fn take(&self, number: usize, ring: &Ring, request: &mut Vec<u8>) -> Next {
        let _running = self.running();
        if !self.is_running(number) || self.is_closed.load(Ordering::Acquire) {
            return Next::Idle;
        }
        let memory = self.memory.memory();
        let mut state = ring.get_mut();
        let queue = state.get_queue_mut();
        if !queue.ready() {
            return Next::Idle;
        }
        let size = queue.size();
        let mut told = false;
        loop {
            let available = queue.avail_idx(&*memory, Ordering::Acquire);
            let waiting = available.map(|index| index.0.wrapping_sub(queue.next_avail()));
            match waiting {
                // Once: what a driver has added stays.
                Ok(0) if told => return Next::Nothing,
                Ok(0) => match queue.enable_notification(&*memory) {
                    // Something was added meanwhile.
                    Ok(true) => told = true,
                    Ok(false) => return Next::Nothing,
                    Err(error) => {
                        tracing::debug!(%error, number, "a ring cannot be written");
                        return Next::Nothing;
                    }
                },
                Ok(waiting) if waiting <= size => break,
                _ => {
                    drop(state);
                    tracing::warn!(
                        number,
                        "the guest has broken a ring, which is left alone now"
                    );
                    self.state().rings.insert(number, RingState::Broken);
                    return Next::Idle;
                }
            }
        }
        let Some(descriptors) = queue.pop_descriptor_chain(memory.clone()) else {
            return Next::Nothing;
        };
        drop(state);
        let (head, chain) = Chain::new(descriptors);
        let chain = chain.filter(|chain| chain.read(&memory, request).is_ok());
        let mut state = self.state();
        // A driver has no more on their way than a ring has entries.
        let is_full = state.unanswered.len() >= usize::from(size)
            && state.under_way(number) >= usize::from(size);
        let Some(chain) = chain.filter(|_| !is_full) else {
            drop(state);
            self.put(ring, head, 0);
            return Next::Rubbish;
        };
        let slot = self.next.fetch_add(1, Ordering::Relaxed);
        let unanswered = Unanswered {
            number,
            ring: ring.clone(),
            chain,
            meanwhile: None,
        };
        state.unanswered.insert(slot, unanswered);
        Next::Request(slot)
    }

    /// Copies a request again; false when it is not there any more.
    pub(super) fn read(&self, slot: u64, request: &mut Vec<u8>) -> bool {
        let state = self.state();
        let found = state.unanswered.get(&slot);
        found.is_some_and(|found| found.chain.read(&self.memory.memory(), request).is_ok())
    }

    /// Gives a request back that has no answer.
    pub(super) fn give_back(&self, slot: u64) {
        let _running = self.running();
        if let Ok(found) = self.state().answer(slot, || Meanwhile::Done) {
            self.put(&found.ring, found.chain.head(), 0);
        }
    }

    /// A ring was stopped: from now on nothing is written to it. Waits for answers that are being written, and so for the disk.
    pub(super) fn stop(&self, number: usize, ring: &Ring) {
        let _none_runs = self.none_runs();
        let position = Position::of(ring);
        self.state()
            .rings
            .insert(number, RingState::Stopped(position));
    }

    /// A ring was started, or runs. Where it goes on from where it was stopped, the machine was paused: what was answered meanwhile is sent,
    /// and the numbers of those requests are returned that are to be run again. Otherwise its guest began anew, and its requests are
    /// forgotten. A kick from before the stop may come after it, and starts nothing.
    pub(super) fn start(&self, number: usize, ring: &Ring) -> Vec<u64> {
        let _running = self.running();
        if !ring.get_ref().get_queue().ready() {
            return Vec::new();
        }
        let mut state = self.state();
        let Some(&RingState::Stopped(stopped)) = state.rings.get(&number) else {
            return Vec::new();
        };
        state.rings.remove(&number);
        if stopped != Position::of(ring) {
            state.unanswered.retain(|_, found| found.number != number);
            return Vec::new();
        }
        let of_ring = state.unanswered.iter_mut();
        let mut meanwhile: Vec<_> = of_ring
            .filter(|(_, found)| found.number == number)
            .filter_map(|(slot, found)| Some((*slot, found.meanwhile.take()?)))
            .collect();
        drop(state);
        meanwhile.sort_unstable_by_key(|(slot, _)| *slot);
        let mut lost = Vec::new();
        for (slot, what) in meanwhile {
            match what {
                Meanwhile::Lost => lost.push(slot),
                Meanwhile::Done => {
                    if let Some(found) = self.state().unanswered.remove(&slot) {
                        self.put(&found.ring, found.chain.head(), 0);
                    }
                }
                Meanwhile::Answered { id, errno, body } => {
                    let answer = Answer {
                        to: id,
                        errno,
                        body: Body::Bytes(&[&body]),
                    };
                    if let Some(found) = self.state().unanswered.remove(&slot) {
                        let _ = self.write(&found, &answer);
                    }
                }
            }
        }
        lost
    }

    /// Takes no more requests.
    pub(super) fn close(&self) {
        let _none_runs = self.none_runs();
        self.is_closed.store(true, Ordering::Release);
    }

    /// Whether each request was answered.
    pub(super) fn is_idle(&self) -> bool {
        self.state().unanswered.is_empty()
    }

    /// Forgets all requests, of which none is answered, and the guest's memory: its machine is gone.
    pub(super) fn forget(&self) {
        let _none_runs = self.none_runs();
        *self.state() = State::default();
        let memory = self.memory.lock();
        memory
            .unwrap_or_else(PoisonError::into_inner)
            .replace(Memory::new());
    }

    /// Writes an answer and tells the guest.
    fn write(&self, found: &Unanswered, answer: &Answer<'_>) -> Result<(), WriteError> {
        let memory = self.memory.memory();
        match found.chain.write(&memory, answer) {
            Ok(len) => {
                self.put(&found.ring, found.chain.head(), len);
                Ok(())
            }
            Err(WriteError::Guest(error)) => {
                tracing::debug!(%error, "a guest has no room for its answer");
                let failed = Answer {
                    to: answer.to,
                    errno: libc::EIO,
                    body: Body::Bytes(&[]),
                };
                let len = found.chain.write(&memory, &failed).unwrap_or(0);
                self.put(&found.ring, found.chain.head(), len);
                Err(WriteError::Guest(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Puts an entry into a ring's list of what was used, and interrupts the guest if it wants that.
    fn put(&self, ring: &Ring, head: u16, len: u32) {
        let mut state = ring.get_mut();
        let put = state.add_used(head, len);
        let wanted = put.and_then(|()| state.needs_notification());
        match wanted {
            Ok(true) if state.get_call().is_none() => {
                drop(state);
                self.interrupt_later(ring.clone());
            }
            Ok(true) => interrupt(&state),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "an answer did not reach the guest"),
        }
    }

    /// The driver has said that it wants to know of this one: nothing will have it told again.
    fn interrupt_later(&self, ring: Ring) {
        self.runtime.spawn(async move {
            for _ in 0..LOOKS_FOR_CALL {
                tokio::time::sleep(LOOK_FOR_CALL).await;
                let state = ring.get_ref();
                if state.get_call().is_some() {
                    return interrupt(&state);
                }
            }
        });
    }

    fn is_running(&self, number: usize) -> bool {
        !self.state().rings.contains_key(&number)
    }

    fn running(&self) -> RwLockReadGuard<'_, ()> {
        self.running.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn none_runs(&self) -> RwLockWriteGuard<'_, ()> {
        self.running.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Device {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_transfer: MAX_TRANSFER,
            interrupts: false,
            notifications: false,
            backing_files: false,
        }
    }

    fn send(&self, answer: &Answer<'_>) -> io::Result<()> {
        let nobody = || io::Error::from_raw_os_error(libc::ENODEV);
        let _running = self.running();
        let kept = match answer.body {
            Body::Bytes(parts) if answer.body.len() <= KEPT => Some(parts),
            Body::Bytes(_) | Body::Slices(_) => None,
        };
        let meanwhile = || match kept {
            Some(parts) => Meanwhile::Answered {
                id: answer.to,
                errno: answer.errno,
                body: parts.concat(),
            },
            None => Meanwhile::Lost,
        };
        let found = match self.state().answer(answer.to.slot, meanwhile) {
            Ok(found) => found,
            Err(NotNow::Stopped) if kept.is_some() => return Ok(()),
            Err(NotNow::Stopped | NotNow::Gone) => return Err(nobody()),
        };
        match self.write(&found, answer) {
            Ok(()) => Ok(()),
            // It has been told of an error.
            Err(WriteError::Guest(_)) => Err(nobody()),
            Err(WriteError::Disk(error)) => {
                // It still waits for an answer.
                self.state().unanswered.insert(answer.to.slot, found);
                Err(error)
            }
        }
    }

    fn notify(&self, _: i32, _: &[&[u8]]) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }
}

fn interrupt(state: &VringState<SharedMemory>) {
    if let Err(error) = state.signal_used_queue() {
        tracing::debug!(%error, "the guest cannot be interrupted");
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::fs::dispatch::RequestId;

    const SIZE: u16 = 8;
    const TABLE: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const REQUEST: u64 = 0x10000;
    const ANSWER: u64 = 0x20000;

    /// A guest's driver of one ring, as the structures of virtio 1.2, 2.7 lie in memory.
    struct Driver {
        device: Device,
        ring: Ring,
        available: u16,
        _runtime: tokio::runtime::Runtime,
    }

    impl Driver {
        fn new() -> Self {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let device = {
                let _inside = runtime.enter();
                Device::new()
            };
            let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
            device.memory.lock().unwrap().replace(memory);
            let ring = Ring::new(device.memory(), SIZE).unwrap();
            ring.set_queue_size(SIZE);
            ring.set_queue_info(TABLE, AVAILABLE, USED).unwrap();
            ring.set_queue_ready(true);
            ring.set_enabled(true);
            Self {
                device,
                ring,
                available: 0,
                _runtime: runtime,
            }
        }

        fn write<T: vm_memory::ByteValued>(&self, value: T, address: u64) {
            let memory = self.device.memory.memory();
            memory.write_obj(value, GuestAddress(address)).unwrap();
        }

        /// Adds a request of some bytes with room for an answer, in the descriptors from `head` on.
        fn add(&mut self, head: u16, request: &[u8], room: u32) {
            let memory = self.device.memory.memory();
            memory.write_slice(request, GuestAddress(REQUEST)).unwrap();
            let len = u32::try_from(request.len()).unwrap();
            // Flags: 1 is "another follows", 2 is "for the device to write".
            for (at, address, len, flags, next) in [
                (head, REQUEST, len, 1, head + 1),
                (head + 1, ANSWER, room, 2, 0),
            ] {
                let entry = TABLE + 16 * u64::from(at);
                self.write(address, entry);
                self.write(len, entry + 8);
                self.write::<u16>(flags, entry + 12);
                self.write::<u16>(next, entry + 14);
            }
            self.write(head, AVAILABLE + 4 + 2 * u64::from(self.available % SIZE));
            self.available += 1;
            self.write(self.available, AVAILABLE + 2);
        }

        fn take(&self) -> Next {
            let mut request = Vec::new();
            self.device.take(0, &self.ring, &mut request)
        }

        fn taken(&self) -> u64 {
            match self.take() {
                Next::Request(slot) => slot,
                other => panic!("{other:?}"),
            }
        }

        fn send(&self, slot: u64, errno: i32, body: &[u8]) -> io::Result<()> {
            self.device.send(&Answer {
                to: RequestId { unique: 7, slot },
                errno,
                body: Body::Bytes(&[body]),
            })
        }

        /// The entries of the list of what was used: heads and lengths.
        fn used(&self) -> Vec<(u32, u32)> {
            let memory = self.device.memory.memory();
            let read = |address| memory.read_obj::<u32>(GuestAddress(address)).unwrap();
            let count: u16 = memory.read_obj(GuestAddress(USED + 2)).unwrap();
            (0..u64::from(count))
                .map(|at| (read(USED + 4 + 8 * at), read(USED + 8 + 8 * at)))
                .collect()
        }

        fn stop(&self) {
            self.ring.set_queue_ready(false);
            self.device.stop(0, &self.ring);
        }

        fn start(&self) -> Vec<u64> {
            self.ring.set_queue_ready(true);
            self.device.start(0, &self.ring)
        }
    }

    #[test]
    fn answers_come_in_any_order_and_once() {
        let mut driver = Driver::new();
        driver.add(0, b"first", 100);
        driver.add(2, b"second", 100);
        let (first, second) = (driver.taken(), driver.taken());
        assert_eq!(driver.take(), Next::Nothing);
        driver.send(second, 0, b"22").unwrap();
        driver.send(first, libc::ENOENT, b"").unwrap();
        assert_eq!(driver.used(), [(2, 18), (0, 16)]);
        assert!(driver.send(first, 0, b"").is_err(), "it was answered");
        assert!(driver.device.is_idle());
    }

    /// The thread of the ring never left it again, and the machine's end waited for that.
    #[test]
    fn a_ring_that_was_broken_is_left_alone() {
        let mut driver = Driver::new();
        driver.write(SIZE + 1, AVAILABLE + 2);
        assert_eq!(driver.take(), Next::Idle);
        // Also when it is kicked again, until it is stopped and begins anew.
        assert!(driver.start().is_empty());
        assert_eq!(driver.take(), Next::Idle);
        driver.stop();
        driver.write(0_u16, AVAILABLE + 2);
        driver.ring.set_queue_next_avail(0);
        driver.start();
        driver.add(0, b"x", 100);
        driver.taken();
    }

    /// What was added while a ring was stopped was taken all the same, and a machine that was paused lost it.
    #[test]
    fn a_pause_loses_nothing() {
        let mut driver = Driver::new();
        for head in [0, 2, 4] {
            driver.add(head, b"request", 8192);
        }
        let [answered, long, done] = [(); 3].map(|()| driver.taken());
        driver.add(6, b"request", 100);
        driver.stop();
        assert_eq!(driver.take(), Next::Idle);
        driver.send(answered, 0, b"kept").unwrap();
        let lost = driver.send(long, 0, &[0; 5000]).unwrap_err();
        assert_eq!(
            lost.raw_os_error(),
            Some(libc::ENODEV),
            "lookups are taken back"
        );
        driver.device.give_back(done);
        assert_eq!(driver.used(), [], "nothing is written to it");
        assert_eq!(driver.start(), [long]);
        assert_eq!(driver.used(), [(0, 20), (4, 0)]);
        driver.send(long, 0, &[0; 5000]).unwrap();
        assert_eq!(driver.used().len(), 3);
        driver.taken();
    }

    /// An event of the ring that was under way when it was stopped made it run again: answers were written into a machine that was
    /// paused, and to the next driver of one that was reset.
    #[test]
    fn a_kick_after_the_stop_starts_nothing() {
        let mut driver = Driver::new();
        driver.add(0, b"request", 100);
        let slot = driver.taken();
        driver.stop();
        assert!(driver.device.start(0, &driver.ring).is_empty());
        driver.send(slot, 0, b"late").unwrap();
        assert_eq!(driver.used(), []);
        assert!(driver.start().is_empty());
        assert_eq!(driver.used(), [(0, 20)]);
    }

    #[test]
    fn what_a_guest_wanted_that_began_anew_is_not_answered() {
        let mut driver = Driver::new();
        driver.add(0, b"old", 100);
        driver.add(2, b"old", 100);
        let (pending, answered) = (driver.taken(), driver.taken());
        driver.stop();
        driver.send(answered, 0, b"late").unwrap();
        // The new driver has zeroed the rings.
        driver.write(0_u16, AVAILABLE + 2);
        driver.write(0_u16, USED + 2);
        driver.ring.set_queue_next_avail(0);
        driver.ring.set_queue_next_used(0);
        driver.available = 0;
        assert!(driver.start().is_empty());
        assert!(driver.send(pending, 0, b"").is_err());
        assert_eq!(driver.used(), []);
        assert!(driver.device.is_idle());
        driver.add(0, b"new", 100);
        let new = driver.taken();
        driver.send(new, 0, b"").unwrap();
        assert_eq!(driver.used(), [(0, 16)]);
    }

    /// It was taken for a file that cannot be read, which was verified anew for everybody.
    #[test]
    fn a_guest_without_room_is_told_and_nobody_else() {
        let mut driver = Driver::new();
        driver.add(0, b"request", 20);
        driver.add(2, b"request", 3);
        let (short, none) = (driver.taken(), driver.taken());
        let error = driver.send(short, 0, &[0; 100]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        driver.send(none, 0, b"").unwrap_err();
        assert_eq!(driver.used(), [(0, 16), (2, 0)]);
        let memory = driver.device.memory.memory();
        let errno: i32 = memory.read_obj(GuestAddress(ANSWER + 4)).unwrap();
        assert_eq!(errno, -libc::EIO);
        assert!(driver.device.is_idle());
    }

    #[test]
    fn a_machine_that_has_gone_leaves_nothing() {
        let mut driver = Driver::new();
        driver.add(0, b"request", 100);
        let slot = driver.taken();
        driver.device.forget();
        assert!(driver.device.is_idle() && driver.send(slot, 0, b"").is_err());
        assert_eq!(driver.device.memory.memory().num_regions(), 0);
    }

    #[test]
    fn nothing_is_taken_at_the_end_and_all_is_answered() {
        let mut driver = Driver::new();
        driver.add(0, b"request", 100);
        let slot = driver.taken();
        driver.add(2, b"request", 100);
        driver.device.close();
        assert_eq!(driver.take(), Next::Idle);
        driver.send(slot, libc::EIO, b"").unwrap();
        assert_eq!(driver.used(), [(0, 16)]);
    }
}
