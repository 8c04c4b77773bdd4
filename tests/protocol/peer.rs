//! The kernel's end of a socketpair, and a filesystem at the other.

use std::{
    collections::HashMap, fs, os::fd::OwnedFd, path::Path, sync::Arc, thread::JoinHandle,
    time::Duration,
};

use castore::{
    cache::{Bandwidth, Cache, Check, Config, Quota},
    fs::{
        Filesystem, Options, Root,
        dispatch::{self, Dispatcher, Transport},
        transport::Channel,
    },
    import::{self, Progress},
    model::Node,
    prefetch,
    remote::{self, Chain, Policy},
};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use crate::support::{Scratch, tree};

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const READLINK: u32 = 5;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const GETXATTR: u32 = 22;
pub const LISTXATTR: u32 = 23;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const RELEASEDIR: u32 = 29;
pub const INTERRUPT: u32 = 36;
pub const DESTROY: u32 = 38;
pub const NOTIFY_REPLY: u32 = 41;
pub const BATCH_FORGET: u32 = 42;
pub const READDIRPLUS: u32 = 44;

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub unique: u64,
    /// Positive, 0 for success.
    pub errno: i32,
    pub body: Vec<u8>,
}

pub struct Peer {
    socket: Option<OwnedFd>,
    next: u64,
    /// Answers that were not asked for yet.
    early: HashMap<u64, Answered>,
    pub fs: Arc<Filesystem>,
    pub dispatcher: Arc<Dispatcher>,
    workers: Vec<JoinHandle<()>>,
    runtime: Option<tokio::runtime::Runtime>,
    pub scratch: Scratch,
}

impl Peer {
    /// A filesystem over a sample tree, of which nothing is cached.
    pub fn new() -> Self {
        Self::with(&[], |channel| channel)
    }

    /// `options` are `xattr`, and `impatient` for a kernel that grants a request little time; `wrap` may put something before the transport.
    pub fn with(options: &[&str], wrap: impl Fn(Arc<dyn Transport>) -> Arc<dyn Transport>) -> Self {
        Self::over(tree::sample, options, wrap)
    }

    /// The same over a tree that `make` makes.
    pub fn over(
        make: impl Fn(&Path),
        options: &[&str],
        wrap: impl Fn(Arc<dyn Transport>) -> Arc<dyn Transport>,
    ) -> Self {
        let scratch = Scratch::new();
        let source = scratch.path("source");
        fs::create_dir(&source).unwrap();
        make(&source);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let fs = runtime.block_on(filesystem(&scratch, &source, options.contains(&"xattr")));
        let (ours, theirs) = net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        for socket in [&ours, &theirs] {
            sockopt::set_socket_send_buffer_size(socket, 4 << 20).unwrap();
        }
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, Some(DEADLINE)).unwrap();
        let channel = Arc::new(Channel::new(theirs));
        let entered = runtime.enter();
        let transport = wrap(Arc::clone(&channel) as _);
        let impatient = options.contains(&"impatient");
        let settings = dispatch::Options {
            longest_wait: impatient.then_some(Duration::from_millis(300)),
            ..dispatch::Options::default()
        };
        let dispatcher = Dispatcher::new(Arc::clone(&fs), transport, settings);
        drop(entered);
        let worker = {
            let dispatcher = Arc::clone(&dispatcher);
            std::thread::spawn(move || channel.serve(&dispatcher))
        };
        Self {
            socket: Some(ours),
            next: 1,
            early: HashMap::new(),
            fs,
            dispatcher,
            workers: vec![worker],
            runtime: Some(runtime),
            scratch,
        }
    }

    /// Sends a request and gives its number.
    pub fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        self.send_from(std::process::id(), opcode, node, body)
    }

    /// The same for a caller.
    pub fn send_from(&mut self, pid: u32, opcode: u32, node: u64, body: &[u8]) -> u64 {
        let unique = self.next;
        self.next += 2; // As the kernel counts.
        let mut message = Vec::new();
        message.extend(u32::try_from(40 + body.len()).unwrap().to_ne_bytes());
        message.extend(opcode.to_ne_bytes());
        message.extend(unique.to_ne_bytes());
        message.extend(node.to_ne_bytes());
        message.extend([0; 8]); // uid, gid
        message.extend(pid.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        self.send_bytes(&message);
        unique
    }

    pub fn send_bytes(&self, message: &[u8]) {
        let socket = self.socket.as_ref().unwrap();
        assert_eq!(rustix::io::write(socket, message).unwrap(), message.len());
    }

    /// The next answer, of whatever request.
    pub fn receive(&self) -> Answered {
        let mut buffer = vec![0; 2 << 20];
        let socket = self.socket.as_ref().unwrap();
        let len = rustix::io::read(socket, &mut buffer).expect("no answer");
        assert!(len >= 16, "an answer of {len} bytes");
        let number = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().unwrap());
        assert_eq!(number(0) as usize, len);
        let error = i32::from_ne_bytes(buffer[4..8].try_into().unwrap());
        Answered {
            unique: u64::from_ne_bytes(buffer[8..16].try_into().unwrap()),
            errno: -error,
            body: buffer[16..len].to_vec(),
        }
    }

    /// The answer of a request.
    pub fn answer(&mut self, unique: u64) -> Answered {
        while !self.early.contains_key(&unique) {
            let answered = self.receive();
            let again = self.early.insert(answered.unique, answered);
            assert_eq!(again, None, "answered twice");
        }
        self.early.remove(&unique).unwrap()
    }

    pub fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answered {
        let unique = self.send(opcode, node, body);
        self.answer(unique)
    }

    /// Looks an entry up and gives its node id.
    pub fn lookup(&mut self, parent: u64, name: &str) -> u64 {
        let answered = self.call(LOOKUP, parent, &named(name));
        assert_eq!(answered.errno, 0, "{name}");
        u64_at(&answered.body, 0)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Ends the workers.
        self.socket = None;
        for worker in self.workers.drain(..) {
            let ended = worker.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "a worker ended by a panic"
            );
        }
        self.fs.prefetch().close();
        self.fs.cache().close();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

async fn filesystem(scratch: &Scratch, source: &Path, xattr: bool) -> Arc<Filesystem> {
    let policy = Policy::default();
    let publish = remote::open_for_writing(&scratch.remote(), &policy).unwrap();
    let progress = Arc::new(Progress::default());
    let imported = import::import_path(publish, source, import::Options::default(), progress);
    let Node::Directory { digest, size } = imported.await.unwrap().root else {
        panic!("not a directory");
    };
    let config = Config {
        dir: scratch.path("cache"),
        size: Some(Quota::Bytes(1 << 30)),
        min_free: Quota::Bytes(0),
        memory: 16 << 20,
        resizes: true,
        trust_streams: false,
        keeps: false,
        check: Check::Stamp,
        bandwidth: Bandwidth::default(),
    };
    let chain = Chain::new(remote::open(&scratch.remote(), &policy).unwrap(), policy);
    let cache = Cache::open(&config, chain).unwrap();
    let options = Options {
        list_root: true,
        names_ttl: Duration::from_secs(1),
        xattr,
        inode32: false,
        owner: (0, 0),
        prefetch: prefetch::Settings::default(),
    };
    Arc::new(Filesystem::new(
        cache,
        Root::Directory { digest, size },
        options,
    ))
}

/// A name as a request has it.
pub fn named(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// The body of READ, READDIR and READDIRPLUS.
pub fn range(offset: u64, size: u32) -> Vec<u8> {
    let mut body = vec![0; 40];
    body[8..16].copy_from_slice(&offset.to_ne_bytes());
    body[16..20].copy_from_slice(&size.to_ne_bytes());
    body
}

/// The body of OPEN.
pub fn open(flags: i32) -> Vec<u8> {
    [flags.to_ne_bytes(), [0; 4]].concat()
}

/// The body of INIT of a kernel that offers everything.
pub fn init(major: u32, minor: u32) -> Vec<u8> {
    let mut body: Vec<u8> = [major, minor, 1 << 20, u32::MAX, u32::MAX]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    body.resize(64, 0);
    body
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The node ids in the answer of READDIRPLUS.
pub fn listed_nodes(body: &[u8]) -> Vec<u64> {
    let mut nodes = Vec::new();
    let mut at = 0;
    while at < body.len() {
        nodes.push(u64_at(body, at));
        let name_len = u32::from_ne_bytes(body[at + 144..at + 148].try_into().unwrap());
        at += 128 + (24 + name_len as usize).next_multiple_of(8);
    }
    nodes
}
