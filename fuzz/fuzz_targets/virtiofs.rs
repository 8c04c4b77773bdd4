//! A guest that does what bytes say, against the back end in this process. `cargo fuzz run virtiofs fuzz/corpus/virtiofs tests/hostile/corpus`

#![no_main]

#[path = "../../tests/hostile/front_end.rs"]
#[allow(dead_code, reason = "tests ask for more")]
mod front_end;

use std::{
    fs,
    os::unix::net::UnixListener,
    path::Path,
    sync::{Arc, LazyLock, Mutex},
    thread,
};

use castore::{
    cache::{Bandwidth, Cache, Config, Quota},
    fs::{Filesystem, Options, Root, virtiofs::Session},
    import::{self, Progress},
    model::Node,
    prefetch,
    remote::{self, Chain, Policy},
};
use front_end::FrontEnd;
use libfuzzer_sys::fuzz_target;

/// Connected for as long as the process lives.
static MACHINE: LazyLock<Mutex<FrontEnd>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap().keep();
    let socket = dir.join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fs = runtime.block_on(filesystem(&dir));
    let session = {
        let _inside = runtime.enter();
        Session::new(&fs, listener, 1)
    };
    thread::spawn(move || {
        let _runtime = runtime;
        session.serve();
    });
    Mutex::new(FrontEnd::connect(&socket))
});

/// A small tree, of which nothing is cached.
async fn filesystem(dir: &Path) -> Arc<Filesystem> {
    let source = dir.join("source");
    fs::create_dir_all(source.join("deep/er")).unwrap();
    fs::write(source.join("hello"), b"Hello World").unwrap();
    fs::write(source.join("large"), vec![7; 3 << 20]).unwrap();
    fs::write(source.join("deep/er/end"), b"the end").unwrap();
    let remote = format!("objectstore+file://{}", dir.join("store").display());
    let policy = Policy::default();
    let store = remote::open_for_writing(&remote, &policy).unwrap();
    let progress = Arc::new(Progress::default());
    let imported = import::import_path(store, &source, import::Options::default(), progress);
    let Node::Directory { digest, size } = imported.await.unwrap().root else {
        panic!("not a directory");
    };
    let config = Config {
        dir: dir.join("cache"),
        size: Some(Quota::Bytes(1 << 28)),
        min_free: Quota::Bytes(0),
        memory: 16 << 20,
        resizes: true,
        trust_streams: false,
        waits_for_disk: false,
        bandwidth: Bandwidth::default(),
    };
    let chain = Chain::new(remote::open(&remote, &policy).unwrap(), policy);
    let options = Options {
        list_root: true,
        names_ttl: std::time::Duration::from_secs(1),
        xattr: true,
        inode32: false,
        owner: (0, 0),
        prefetch: prefetch::Settings::default(),
    };
    let cache = Cache::open(&config, chain).unwrap();
    Arc::new(Filesystem::new(
        cache,
        Root::Directory { digest, size },
        options,
    ))
}

fuzz_target!(|script: &[u8]| {
    let mut machine = MACHINE.lock().unwrap();
    machine.run(script);
});
