//! A virtual machine that does whatever bytes say, as the front end of vhost-user: it connects to a back end, shares memory with it, and
//! has two rings there (virtio 1.2, 2.7), that of high priority and one for requests.

use std::{
    fs::File,
    io,
    path::Path,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures},
    },
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

// By its path: this file is a part of two programs.
#[path = "script.rs"]
mod script;

use script::Script;

const MEMORY: u64 = 1 << 20;
const RINGS: usize = 2;
const REQUESTS: usize = 1;
/// Entries of each ring.
const SIZE: u16 = 16;
/// Where each ring has its parts, from its begin on.
const RING: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where well-formed requests and their answers are.
const AREA: u64 = 0x10000;
const PLACE: u64 = 0x2000;
/// Of a descriptor: another one follows; it is for the device to write.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// `VIRTIO_F_VERSION_1`, `VIRTIO_RING_F_EVENT_IDX`, `VIRTIO_RING_F_INDIRECT_DESC`.
const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28;
/// Longer than any answer of a local store takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// Bytes for the answer of a request that is waited for.
const ROOM: u32 = 4096;

pub const LOOKUP: u32 = 1;
pub const GETATTR: u32 = 3;
pub const READ: u32 = 15;
const INIT: u32 = 26;

/// A machine that is connected to a back end.
pub struct FrontEnd {
    back_end: Frontend,
    memory: GuestMemoryMmap,
    rings: [Ring; RINGS],
    unique: u64,
}

struct Ring {
    kick: EventFd,
    call: EventFd,
    /// Its next entry for what is available.
    available: u16,
    /// The next place of a well-formed request.
    place: u16,
}

impl Ring {
    fn new() -> io::Result<Self> {
        Ok(Self {
            kick: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            call: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            available: 0,
            place: 0,
        })
    }
}

/// A request of which the answer is looked for.
pub struct Asked {
    unique: u64,
    /// Of the answer.
    address: u64,
    /// Answers of its ring before.
    used: u16,
}

impl FrontEnd {
    /// Connects to the socket of a back end.
    pub fn connect(socket: &Path) -> Self {
        let back_end = Frontend::connect(socket, RINGS as u64).unwrap();
        back_end.set_owner().unwrap();
        let offered = back_end.get_features().unwrap();
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert_eq!(offered & (FEATURES | protocol), FEATURES | protocol);
        back_end.set_features(FEATURES | protocol).unwrap();
        let mut back_end = back_end;
        let offered = back_end.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        back_end.set_protocol_features(offered & wanted).unwrap();
        let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(MEMORY).unwrap();
        let size = usize::try_from(MEMORY).unwrap();
        let range = (GuestAddress(0), size, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
        let region = memory.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        back_end.set_mem_table(&[region]).unwrap();
        let rings = [Ring::new().unwrap(), Ring::new().unwrap()];
        let mut machine = Self {
            back_end,
            memory,
            rings,
            unique: 1,
        };
        (0..RINGS).for_each(|ring| machine.start(ring, 0));
        machine
    }

    /// Does what the bytes say, and then begins anew, as a guest that is reset: the back end must serve it as if nothing had been.
    pub fn run(&mut self, script: &[u8]) {
        let mut script = Script::new(script);
        while !script.is_over() {
            self.act(&mut script);
        }
        self.reset();
        self.is_served();
    }

    /// Does what the bytes say, and goes.
    pub fn leave(mut self, script: &[u8]) {
        let mut script = Script::new(script);
        while !script.is_over() {
            self.act(&mut script);
        }
    }

    fn act(&mut self, script: &mut Script<'_>) {
        match script.byte() % 9 {
            0 => {
                let address = u64::from(script.word()) << 4;
                let len = script.byte().into();
                self.write(address, script.bytes(len));
            }
            1 => {
                let (ring, index) = (script.ring(), script.word());
                let (address, len) = (script.long().into(), script.long());
                self.describe(ring, index, address, len, script.word(), script.word());
            }
            2 => {
                let (ring, head) = (script.ring(), script.word());
                self.offer(ring, head);
            }
            3 => {
                let (ring, index) = (script.ring(), script.word());
                self.write(at(ring) + AVAILABLE + 2, &index.to_le_bytes());
            }
            4 => self.kick(script.ring()),
            5 => {
                let ring = script.ring();
                let (opcode, node) = (script.number(), script.number());
                let opcode = u32::try_from(opcode).unwrap_or(u32::MAX);
                let (len, room) = (script.byte().into(), script.word().into());
                let body = script.bytes(len);
                self.request(ring, opcode, node, body, room);
                self.kick(ring);
            }
            6 => {
                let ring = script.ring();
                let next = self.stop(ring);
                self.start(ring, next);
            }
            7 => {
                let (ring, next) = (script.ring(), script.word());
                self.stop(ring);
                self.start(ring, next);
            }
            _ => {
                // A name that is there, so that there is more to ask for.
                let name = [&b"hello\0"[..], b"deep\0", b"large\0"][usize::from(script.byte()) % 3];
                self.request(REQUESTS, LOOKUP, 1, name, 200);
                self.kick(REQUESTS);
            }
        }
    }

    /// Zeroes the memory, and gives the back end rings where nothing has been.
    fn reset(&mut self) {
        (0..RINGS).for_each(|ring| {
            self.stop(ring);
        });
        let zeros = vec![0; usize::try_from(MEMORY).unwrap()];
        self.write(0, &zeros);
        for ring in 0..RINGS {
            self.rings[ring].available = 0;
            self.rings[ring].place = 0;
            self.start(ring, 0);
        }
    }

    /// As a guest that mounts.
    pub fn mount(&mut self) {
        let mut body = [7_u32, 38, 1 << 20, 0, 0].map(u32::to_ne_bytes).concat();
        body.resize(64, 0);
        let answer = self.call(INIT, 0, &body);
        assert!(answer.starts_with(&7_u32.to_ne_bytes()), "{answer:?}");
    }

    /// The node of an entry of the root.
    pub fn look_up(&mut self, name: &str) -> u64 {
        let answer = self.call(LOOKUP, 1, &[name.as_bytes(), &[0]].concat());
        u64::from_ne_bytes(answer[..8].try_into().unwrap())
    }

    /// Mounts, and looks at the root.
    pub fn is_served(&mut self) {
        self.mount();
        self.is_looked_at();
    }

    pub fn is_looked_at(&mut self) {
        let answer = self.call(GETATTR, 1, &[0; 16]);
        let mode = u32::from_ne_bytes(answer[76..80].try_into().unwrap());
        assert_eq!(mode, 0o040_555);
    }

    /// The body of the answer, which must be one without an error.
    fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let asked = self.ask(opcode, node, body);
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.answer(&asked) {
                Some((0, body)) => return body,
                Some((error, _)) => panic!("{error} to {opcode}"),
                None => assert!(Instant::now() < deadline, "no answer to {opcode}"),
            }
            thread::yield_now();
        }
    }

    /// Sends a request, and waits for nothing.
    pub fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Asked {
        let used = self.used(REQUESTS);
        let address = self.request(REQUESTS, opcode, node, body, ROOM);
        let unique = self.unique;
        self.kick(REQUESTS);
        Asked {
            unique,
            address,
            used,
        }
    }

    /// The error, as a negative number, and the body of the answer to a request.
    pub fn answer(&self, asked: &Asked) -> Option<(i32, Vec<u8>)> {
        if self.used(REQUESTS) == asked.used {
            return None;
        }
        let mut bytes = vec![0; ROOM as usize];
        let address = GuestAddress(asked.address);
        self.memory.read_slice(&mut bytes, address).unwrap();
        if bytes[8..16] != asked.unique.to_ne_bytes() {
            // Another request's.
            return None;
        }
        let word = |from: usize| u32::from_ne_bytes(bytes[from..from + 4].try_into().unwrap());
        let (len, error) = (word(0), word(4).cast_signed());
        bytes.truncate(len as usize);
        bytes.drain(..16);
        Some((error, bytes))
    }

    /// Offers a well-formed request, and gives the address of its answer.
    fn request(&mut self, ring: usize, opcode: u32, node: u64, body: &[u8], room: u32) -> u64 {
        self.unique += 2;
        let mut message = u32::try_from(40 + body.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        message.extend(opcode.to_ne_bytes());
        message.extend(self.unique.to_ne_bytes());
        message.extend(node.to_ne_bytes());
        message.extend([0; 16]);
        message.extend(body);
        let place = self.rings[ring].place;
        self.rings[ring].place = (place + 1) % (SIZE / 2);
        let address = AREA + (ring as u64 * u64::from(SIZE) + u64::from(place)) * 2 * PLACE;
        self.write(address, &message);
        let answer = address + PLACE;
        let head = place * 2;
        let len = u32::try_from(message.len()).unwrap();
        self.describe(ring, head, address, len, NEXT, head + 1);
        self.describe(ring, head + 1, answer, room, WRITE, 0);
        self.offer(ring, head);
        answer
    }

    fn describe(&self, ring: usize, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let descriptor = [
            &address.to_le_bytes()[..],
            &len.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ];
        let index = u64::from(index % SIZE);
        self.write(at(ring) + index * 16, &descriptor.concat());
    }

    fn offer(&mut self, ring: usize, head: u16) {
        let index = self.rings[ring].available;
        let entry = at(ring) + AVAILABLE + 4 + u64::from(index % SIZE) * 2;
        self.write(entry, &head.to_le_bytes());
        self.rings[ring].available = index.wrapping_add(1);
        let place = GuestAddress(at(ring) + AVAILABLE + 2);
        let index = self.rings[ring].available.to_le();
        self.memory.store(index, place, Ordering::Release).unwrap();
    }

    fn used(&self, ring: usize) -> u16 {
        let place = GuestAddress(at(ring) + USED + 2);
        u16::from_le(self.memory.load(place, Ordering::Acquire).unwrap())
    }

    fn kick(&self, ring: usize) {
        // Full where nobody looks, which is no matter.
        let _ = self.rings[ring].kick.write(1);
        let _ = self.rings[ring].call.read();
    }

    /// Where the ring was.
    fn stop(&mut self, ring: usize) -> u16 {
        let base = self.back_end.get_vring_base(ring).unwrap();
        u16::try_from(base & 0xffff).unwrap()
    }

    fn start(&mut self, ring: usize, next: u16) {
        let host = |address: u64| {
            let found = self.memory.get_host_address(GuestAddress(address)).unwrap();
            found as u64
        };
        let begin = at(ring);
        let places = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: host(begin),
            used_ring_addr: host(begin + USED),
            avail_ring_addr: host(begin + AVAILABLE),
            log_addr: None,
        };
        let Ring { kick, call, .. } = &self.rings[ring];
        let back_end = &mut self.back_end;
        back_end.set_vring_num(ring, SIZE).unwrap();
        back_end.set_vring_addr(ring, &places).unwrap();
        back_end.set_vring_base(ring, next).unwrap();
        back_end.set_vring_call(ring, call).unwrap();
        back_end.set_vring_kick(ring, kick).unwrap();
        back_end.set_vring_enable(ring, true).unwrap();
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        // What would lie outside is left out.
        let _ = self.memory.write(bytes, GuestAddress(address));
    }
}

/// Where a ring begins.
const fn at(ring: usize) -> u64 {
    ring as u64 * RING
}
