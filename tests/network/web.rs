//! What HTTP servers answer when they do not simply give the object: overload, failures, half of it, refusals.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use castore::{
    model::Digest,
    remote::{self, Chain, Policy, RemoteError, Urgency},
};

use crate::support::{Scratch, tree};

/// How the next requests for a chunk are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Status(u16),
    /// With `Retry-After`, in seconds.
    Later(u16, u64),
    /// Announces all of it and sends a half.
    Half,
    /// Other bytes, as many.
    Other,
    /// An error whose body has no end.
    Endless,
}

/// A web server over a directory that follows a script. It ends when this is dropped.
struct Web {
    port: u16,
    script: Arc<Mutex<Vec<Answer>>>,
    requests: Arc<Mutex<HashMap<String, usize>>>,
    ended: Arc<AtomicBool>,
}

impl Web {
    fn start(root: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let web = Self {
            port: listener.local_addr().unwrap().port(),
            script: Arc::default(),
            requests: Arc::default(),
            ended: Arc::default(),
        };
        let (script, requests, ended) = (
            Arc::clone(&web.script),
            Arc::clone(&web.requests),
            Arc::clone(&web.ended),
        );
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (script, requests) = (Arc::clone(&script), Arc::clone(&requests));
                let root = root.clone();
                thread::spawn(move || serve(&stream.unwrap(), &root, &script, &requests));
            }
        });
        web
    }

    fn chain(&self, timeout: Duration) -> Chain {
        let policy = Policy {
            timeout,
            ..Policy::default()
        };
        let address = format!("objectstore+http://127.0.0.1:{}", self.port);
        Chain::of_groups(vec![remote::open(&address, &policy).unwrap()], policy)
    }

    fn script(&self, answers: &[Answer]) {
        self.requests.lock().unwrap().clear();
        *self.script.lock().unwrap() = answers.iter().rev().copied().collect();
    }

    /// Requests for chunks.
    fn asked(&self) -> usize {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .filter(|(path, _)| path.contains("/chunks/"))
            .map(|(_, count)| count)
            .sum()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(
    stream: &TcpStream,
    root: &Path,
    script: &Mutex<Vec<Answer>>,
    requests: &Mutex<HashMap<String, usize>>,
) {
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut lines = BufReader::new(stream).lines();
    // One request for each connection is enough.
    let Some(Ok(first)) = lines.next() else {
        return;
    };
    while lines
        .next()
        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
    {}
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    *requests.lock().unwrap().entry(path.clone()).or_default() += 1;
    let mut out = stream;
    let mut head = |status: u16, more: &str, length: usize| {
        write!(
            out,
            "HTTP/1.1 {status} X\r\nConnection: close\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: {length}\r\n{more}\r\n"
        )
    };
    let scripted = match path.contains("/chunks/") {
        true => script.lock().unwrap().pop(),
        false => None,
    };
    let object = std::fs::read(root.join(path.trim_start_matches('/')));
    let sent = match (scripted, object) {
        (Some(Answer::Status(status)), _) => {
            let body = "<Error><Code>SomeCode</Code><Secret>hush</Secret></Error>";
            head(status, "", body.len()).and_then(|()| (&*stream).write_all(body.as_bytes()))
        }
        (Some(Answer::Later(status, seconds)), _) => {
            head(status, &format!("Retry-After: {seconds}\r\n"), 0)
        }
        (Some(Answer::Half), Ok(object)) => head(200, "", object.len())
            .and_then(|()| (&*stream).write_all(&object[..object.len() / 2])),
        (Some(Answer::Other), Ok(object)) => {
            let other = vec![7; object.len()];
            head(200, "", other.len()).and_then(|()| (&*stream).write_all(&other))
        }
        (Some(Answer::Endless), _) => head(500, "", usize::MAX >> 1).and_then(|()| {
            let more = vec![b'x'; 1 << 16];
            loop {
                (&*stream).write_all(&more)?;
            }
        }),
        (None, Ok(object)) => {
            head(200, "", object.len()).and_then(|()| (&*stream).write_all(&object))
        }
        (_, Err(_)) => head(404, "", 0),
    };
    // A client may be gone.
    let _ = sent;
}

/// A chunk at a web server.
fn served(scratch: &Scratch) -> (Web, Digest, Vec<u8>) {
    let source = scratch.path("source");
    std::fs::create_dir(&source).unwrap();
    let content = tree::noise(3, 60_000);
    tree::file(&source, "f", &content, false);
    scratch.import(&source);
    let web = Web::start(scratch.path("store"));
    (web, Digest::of(&content), content)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(90), future)
            .await
            .expect("it hangs")
    })
}

#[test]
fn what_may_pass_is_tried_again() {
    let scratch = Scratch::new();
    let (web, digest, content) = served(&scratch);
    for (answers, at_least) in [
        (&[Answer::Status(500), Answer::Status(502)][..], 3),
        (&[Answer::Half, Answer::Half], 3),
        (&[Answer::Status(408), Answer::Half, Answer::Status(504)], 4),
        // Damaged on its way: once more from the same.
        (&[Answer::Other], 2),
        // More than it takes to open a breaker: overload is none.
        (&[Answer::Later(429, 0); 5], 6),
        (&[Answer::Status(503); 4], 5),
    ] {
        web.script(answers);
        block_on(async {
            let chain = web.chain(Duration::from_secs(20));
            let bytes = chain.chunk(digest, Some(60_000), &Urgency::reader()).await;
            assert!(bytes.unwrap_or_else(|error| panic!("{answers:?}: {error}")) == content);
            assert!(
                chain.status().iter().all(|remote| !remote.away),
                "{answers:?}"
            );
        });
        assert_eq!(web.asked(), at_least, "{answers:?}");
    }
}

#[test]
fn it_comes_back_when_it_is_told_to() {
    let scratch = Scratch::new();
    let (web, digest, content) = served(&scratch);
    web.script(&[Answer::Later(429, 2)]);
    let started = Instant::now();
    block_on(async {
        // Longer than the time-out: who is overloaded is not away.
        let chain = web.chain(Duration::from_secs(1));
        let bytes = chain.chunk(digest, Some(60_000), &Urgency::reader()).await;
        assert!(bytes.unwrap() == content);
    });
    assert!(started.elapsed() >= Duration::from_secs(2), "too soon");
    assert_eq!(web.asked(), 2);
}

#[test]
fn what_cannot_pass_is_not_tried_again() {
    let scratch = Scratch::new();
    let (web, digest, _) = served(&scratch);
    for status in [400, 401, 403, 404, 410, 416] {
        web.script(&[Answer::Status(status); 3]);
        block_on(async {
            let chain = web.chain(Duration::from_secs(20));
            let asked = chain.chunk(digest, Some(60_000), &Urgency::reader()).await;
            let error = asked.unwrap_err();
            assert!(!error.is_transient(), "{status}: {error}");
            assert_eq!(
                status == 404,
                matches!(error, RemoteError::NotFound { .. }),
                "{status}: {error}"
            );
            let said = error.to_string();
            assert!(!said.contains("hush"), "{said}");
            assert!(
                status == 404 || said.contains(&status.to_string()),
                "{said}"
            );
            // It is no failure of the server's.
            assert!(
                chain
                    .status()
                    .iter()
                    .all(|remote| remote.failing_for.is_none())
            );
        });
        assert_eq!(web.asked(), 1, "{status}");
    }
}

#[test]
fn a_wrong_one_comes_from_the_next() {
    let scratch = Scratch::new();
    let (web, digest, content) = served(&scratch);
    web.script(&[Answer::Other; 10]);
    block_on(async {
        let policy = Policy::default();
        let first = remote::open(
            &format!("objectstore+http://127.0.0.1:{}", web.port),
            &policy,
        )
        .unwrap();
        let second = remote::open(&scratch.remote(), &policy).unwrap();
        let chain = Chain::of_groups(vec![first, second], policy);
        let bytes = chain.chunk(digest, Some(60_000), &Urgency::reader()).await;
        assert!(bytes.unwrap() == content);
    });
    assert_eq!(web.asked(), 2, "once, and once more");
}

#[test]
fn an_error_without_an_end_has_one() {
    let scratch = Scratch::new();
    let (web, digest, content) = served(&scratch);
    web.script(&[Answer::Endless]);
    let started = Instant::now();
    block_on(async {
        let chain = web.chain(Duration::from_secs(60));
        let bytes = chain.chunk(digest, Some(60_000), &Urgency::reader()).await;
        assert!(bytes.unwrap() == content);
    });
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "it was read on and on"
    );
}

/// A failure of long ago does not count when the remote is away for a moment.
#[test]
fn a_short_restart_after_an_old_failure() {
    let scratch = Scratch::new();
    let (web, digest, content) = served(&scratch);
    let proxy = crate::support::proxy::Proxy::start(web.port);
    let policy = Policy {
        timeout: Duration::from_secs(3),
        ..Policy::default()
    };
    let address = format!("objectstore+http://127.0.0.1:{}", proxy.port());
    block_on(async {
        let remotes = remote::open(&address, &policy).unwrap();
        let chain = Chain::of_groups(vec![remotes], policy);
        proxy.close();
        let name = castore::model::Name::new("n").unwrap();
        assert!(chain.root(&name, remote::Patience::Once).await.is_err());
        proxy.open();
        tokio::time::sleep(Duration::from_secs(4)).await;
        proxy.close();
        let again = tokio::spawn({
            let chain = chain.clone();
            async move { chain.chunk(digest, Some(60_000), &Urgency::reader()).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        proxy.open();
        assert!(again.await.unwrap().unwrap() == content);
    });
}
