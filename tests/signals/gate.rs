//! A store behind HTTP that answers when it is told to, and counts what it is asked.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::support::eventually;

/// How often a request that is held looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(20);

/// It ends when this is dropped, and whoever waits in it then gets nothing.
pub struct Gate {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    asked: Mutex<Asked>,
    opened: Condvar,
    ended: AtomicBool,
}

#[derive(Default)]
struct Asked {
    /// Parts of the paths that are held.
    held: Vec<String>,
    /// By path: how often an object was asked for.
    requests: BTreeMap<String, usize>,
    /// Requests that are held now.
    waiting: usize,
    /// Clients that went away while they were held.
    gone: usize,
}

impl Gate {
    /// Serves the store in a directory; nothing is held yet.
    pub fn start(root: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            root,
            asked: Mutex::default(),
            opened: Condvar::new(),
            ended: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A client may be gone at any time.
                thread::spawn(move || shared.serve(&stream?));
            }
        });
        Self { port, shared }
    }

    pub fn address(&self) -> String {
        format!("objectstore+http://127.0.0.1:{}", self.port)
    }

    /// From now on requests wait whose path has one of these parts.
    pub fn hold(&self, parts: &[&str]) {
        let mut asked = self.shared.asked.lock().unwrap();
        asked.held = parts.iter().map(|part| (*part).to_owned()).collect();
    }

    /// Answers everything, from now on too.
    pub fn open(&self) {
        self.hold(&[]);
        self.shared.opened.notify_all();
    }

    /// Requests so far for objects whose path has this part.
    pub fn requests(&self, part: &str) -> usize {
        let asked = self.shared.asked.lock().unwrap();
        let of_part = asked
            .requests
            .iter()
            .filter(|(path, _)| path.contains(part));
        of_part.map(|(_, count)| count).sum()
    }

    /// Objects that were asked for more than once.
    pub fn asked_again(&self) -> Vec<(String, usize)> {
        let asked = self.shared.asked.lock().unwrap();
        let again = asked.requests.iter().filter(|(_, count)| **count > 1);
        again.map(|(path, count)| (path.clone(), *count)).collect()
    }

    /// Waits until objects with this part have been asked for so many times.
    pub fn seen(&self, part: &str, count: usize) {
        eventually(&format!("{count} requests for {part}"), || {
            self.requests(part) >= count
        });
    }

    pub fn waiting(&self) -> usize {
        self.shared.asked.lock().unwrap().waiting
    }

    pub fn gone(&self) -> usize {
        self.shared.asked.lock().unwrap().gone
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.open();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn serve(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().ok_or(ErrorKind::UnexpectedEof)??;
        while !lines.next().ok_or(ErrorKind::UnexpectedEof)??.is_empty() {}
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap_or_default());
        // A look whether the remote is there asks for no object.
        if method == "GET" && !self.hold(path, stream)? {
            return Ok(());
        }
        let object = std::fs::read(self.root.join(path.trim_start_matches('/')));
        let (status, object) = match object {
            Ok(object) => (200, object),
            Err(_) => (404, Vec::new()),
        };
        write!(
            &*stream,
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\
             Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n",
            object.len()
        )?;
        match method {
            "GET" => (&*stream).write_all(&object),
            _ => Ok(()),
        }
    }

    /// Counts a request and holds it; `false` when its client has gone meanwhile.
    fn hold(&self, path: &str, stream: &TcpStream) -> std::io::Result<bool> {
        let mut asked = self.asked.lock().unwrap();
        *asked.requests.entry(path.to_owned()).or_default() += 1;
        asked.waiting += 1;
        stream.set_nonblocking(true)?;
        let mut there = true;
        while there && asked.held.iter().any(|part| path.contains(part)) {
            asked = self.opened.wait_timeout(asked, LOOK).unwrap().0;
            there = match stream.peek(&mut [0]) {
                Ok(len) => len > 0,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            };
        }
        asked.waiting -= 1;
        asked.gone += usize::from(!there);
        stream.set_nonblocking(false)?;
        Ok(there)
    }
}
