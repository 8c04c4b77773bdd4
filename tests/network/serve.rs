//! `castore serve` and its clients.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use tonic_reflection::pb::v1 as reflection;

use castore::{
    model::Digest,
    proto::tvix::castore::v1::{BlobChunk, ReadBlobRequest},
    remote::{PREFETCH, PRIORITY, RETRY_AFTER},
};
use tonic::{Code, Request, Status, codec::Codec, transport::Channel};

use crate::support::{Scratch, hub::Hub, tree, wait};

/// A source tree that is imported, and its digest.
fn imported(scratch: &Scratch) -> String {
    let source = scratch.path("source");
    fs::create_dir_all(&source).unwrap();
    tree::sample(&source);
    let root = scratch.import(&source);
    // Importing leaves the directories in the cache, and here all is to come from a server.
    scratch.clear_cache();
    root
}

fn file(scratch: &Scratch, name: &str, text: &str) -> String {
    let path = scratch.path(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn http_get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A read as any client sends it.
async fn read(
    channel: &Channel,
    digest: Digest,
    mark: impl FnOnce(&mut Request<ReadBlobRequest>),
) -> Result<Vec<u8>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let mut request = Request::new(ReadBlobRequest {
        digest: digest.as_bytes().to_vec().into(),
    });
    mark(&mut request);
    let path = "/tvix.castore.v1.BlobService/Read".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<ReadBlobRequest, BlobChunk>::default();
    let mut pieces = client
        .server_streaming(request, path, codec)
        .await?
        .into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await? {
        bytes.extend_from_slice(&piece.data);
    }
    Ok(bytes)
}

async fn channel(hub: &Hub) -> Channel {
    let uri = hub.address.strip_prefix("grpc+").unwrap().to_owned();
    Channel::from_shared(uri).unwrap().connect().await.unwrap()
}

#[test]
fn nothing_is_taken_unless_it_is_writable() {
    let scratch = Scratch::new();
    let root = imported(&scratch);
    let names = file(&scratch, "names", "of-names");
    let hub = Hub::start(
        &scratch,
        "hub",
        &scratch.remote(),
        ["--names-token-file", &names],
    );
    let with_token = format!("{}?names-token-file={names}", hub.address);
    let said = scratch.fails([
        "import",
        "--remote",
        &hub.address,
        scratch.path("source").to_str().unwrap(),
    ]);
    // All of it is there already, so nothing has to be put; something new is refused.
    fs::write(scratch.path("source/new"), "new").unwrap();
    let refused = scratch.fails([
        "import",
        "--remote",
        &hub.address,
        scratch.path("source").to_str().unwrap(),
    ]);
    assert!(refused.contains("--writable"), "{said} {refused}");
    let refused = scratch.fails(["name", "--remote", &with_token, "n", &root]);
    assert!(refused.contains("--writable"), "{refused}");
    hub.stop();
}

#[test]
fn names_need_a_token_of_their_own() {
    let scratch = Scratch::new();
    let root = imported(&scratch);
    let (token, names) = (
        file(&scratch, "t", "of-all\n"),
        file(&scratch, "n", "of-names\n"),
    );
    let args = [
        "--writable",
        "--token-file",
        &token,
        "--names-token-file",
        &names,
    ];
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), args);
    let address = |query: &str| format!("{}{query}", hub.address);
    for query in ["", &format!("?token-file={names}")] {
        let refused = scratch.fails(["ls", "--remote", &address(query), &root]);
        assert!(refused.contains("token"), "{refused}");
    }
    let reader = address(&format!("?token-file={token}"));
    scratch.ok(["ls", "--remote", &reader, &format!("{root}/deep")]);
    let refused = scratch.fails(["name", "--remote", &reader, "n", &root]);
    assert!(refused.contains("names-token-file"), "{refused}");
    let wrong = address(&format!("?token-file={token}&names-token-file={token}"));
    assert!(
        scratch
            .fails(["name", "--remote", &wrong, "n", &root])
            .contains("token of its own")
    );
    let owner = address(&format!("?token-file={token}&names-token-file={names}"));
    scratch.ok(["name", "--remote", &owner, "n", &root]);
    assert!(scratch.ok(["roots", "--remote", &reader]).contains(" n\n"));
    // A name cannot stand for what is not there.
    let nowhere = Digest::of(b"nowhere").to_string();
    assert!(
        scratch
            .run(["name", "--remote", &owner, "m", &nowhere])
            .status
            .code()
            == Some(1)
    );
    scratch.ok(["roots", "--remote", &owner, "--remove", "n"]);
    assert!(!scratch.ok(["roots", "--remote", &reader]).contains(" n\n"));
    let log = hub.stop();
    assert!(
        !log.contains("of-all") && !log.contains("of-names"),
        "{log}"
    );
}

#[test]
fn others_are_let_in_only_with_a_lock_or_on_purpose() {
    let scratch = Scratch::new();
    let refused = scratch.fails(["serve", "--listen", "0.0.0.0:0"]);
    assert!(
        refused.contains("--insecure") && refused.contains("--tls-cert"),
        "{refused}"
    );
    let token = file(&scratch, "t", "secret");
    let refused = scratch.fails(["serve", "--listen", "0.0.0.0:0", "--token-file", &token]);
    assert!(refused.contains("--insecure"), "{refused}");
    Hub::listen(
        &scratch,
        "0.0.0.0:0",
        "hub",
        &scratch.remote(),
        ["--insecure"],
    )
    .stop();
    let empty = file(&scratch, "empty", "\n");
    let refused = scratch.fails(["serve", "--token-file", &empty]);
    assert!(
        refused.contains("empty") && refused.contains("one line"),
        "{refused}"
    );
    let taken = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
    let place = taken
        .address
        .strip_prefix("grpc+http://")
        .unwrap()
        .to_owned();
    let refused = scratch.fails(["serve", "--listen", &place]);
    assert!(
        refused.contains(&place) && refused.contains("in use"),
        "{refused}"
    );
    assert!(
        scratch
            .fails(["serve", "--listen", "nonsense"])
            .contains("host:port")
    );
}

#[test]
fn a_socket_that_was_left_behind_is_taken_over() {
    let scratch = Scratch::new();
    let root = imported(&scratch);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let place = format!("unix://{}", socket.display());
    Hub::listen(&scratch, &place, "hub", &scratch.remote(), [""; 0]).kill();
    assert!(socket.exists());
    let hub = Hub::listen(&scratch, &place, "hub", &scratch.remote(), [""; 0]);
    scratch.ok(["ls", "--remote", &hub.address, &format!("{root}/deep")]);
    let refused = scratch.fails(["serve", "--listen", &place]);
    assert!(refused.contains("in use"), "{refused}");
    hub.stop();
    assert!(!socket.exists());
    // Whatever else has that name is somebody's.
    fs::write(&socket, "precious").unwrap();
    let refused = scratch.fails(["serve", "--listen", &place]);
    assert!(refused.contains("in use"), "{refused}");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
}

#[test]
fn what_is_asked_of_any_server() {
    let scratch = Scratch::new();
    imported(&scratch);
    let args = [
        "--metrics",
        "127.0.0.1:0",
        "--token-file",
        &file(&scratch, "t", "secret"),
    ];
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), args);
    runtime().block_on(async {
        let channel = channel(&hub).await;
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        for service in [
            "",
            "tvix.castore.v1.BlobService",
            "snix.castore.v1.DirectoryService",
        ] {
            let service = service.to_owned();
            let answer = health
                .check(tonic_health::pb::HealthCheckRequest { service })
                .await;
            assert_eq!(answer.unwrap().into_inner().status, 1);
        }
        // Reflection is behind the token.
        let mut client =
            tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(
                channel,
            );
        let list = reflection::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(
                reflection::server_reflection_request::MessageRequest::ListServices(String::new()),
            ),
        };
        let refused = client
            .server_reflection_info(futures::stream::iter([list.clone()]))
            .await;
        assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
        let mut request = Request::new(futures::stream::iter([list]));
        request
            .metadata_mut()
            .insert("authorization", "Bearer secret".parse().unwrap());
        let mut answers = client
            .server_reflection_info(request)
            .await
            .unwrap()
            .into_inner();
        let answer = format!("{:?}", answers.message().await.unwrap());
        for service in [
            "tvix.castore.v1.BlobService",
            "snix.castore.v1.BlobService",
            "castore.v1.RootService",
        ] {
            assert!(answer.contains(service), "{service}: {answer}");
        }
    });
    let log = hub.log();
    let (_, metrics) = log.split_once("http://").unwrap();
    let metrics = metrics.split('/').next().unwrap();
    assert!(http_get(metrics, "/metrics").contains("castore_misses_total 0"));
    assert!(http_get(metrics, "/metrics").contains("castore_cache_quota_bytes "));
    assert!(http_get(metrics, "/healthz").contains("200 OK"));
    hub.stop();
}

#[test]
fn prefetch_is_turned_away_before_readers() {
    let scratch = Scratch::new();
    imported(&scratch);
    let digest = Digest::of(&tree::noise(2, 128 << 10));
    // Of one place, prefetch may have none.
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), ["--max-reads", "1"]);
    runtime().block_on(async {
        let channel = channel(&hub).await;
        let bytes = read(&channel, digest, |_| ()).await.unwrap();
        assert!(bytes == tree::noise(2, 128 << 10));
        let prefetch = |request: &mut Request<ReadBlobRequest>| {
            request
                .metadata_mut()
                .insert(PRIORITY, PREFETCH.parse().unwrap());
        };
        let first = read(&channel, digest, prefetch).await;
        assert!(first.is_ok(), "one of one is free");
        let busy: Vec<_> = (0..20).map(|_| read(&channel, digest, prefetch)).collect();
        let answers = futures::future::join_all(busy).await;
        let refused = answers.iter().filter_map(|answer| answer.as_ref().err());
        for status in refused {
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert!(status.metadata().get(RETRY_AFTER).is_some());
        }
        // Readers wait for their place instead.
        let readers: Vec<_> = (0..20).map(|_| read(&channel, digest, |_| ())).collect();
        for answer in futures::future::join_all(readers).await {
            assert!(answer.unwrap() == bytes);
        }
    });
    // A whole tree is fetched through it all the same: prefetch stands back and comes again.
    let root = scratch.import(&scratch.path("source"));
    scratch.ok(["fetch", "--remote", &hub.address, &root]);
    hub.stop();
}

#[test]
fn more_than_its_rate_is_told_to_come_back() {
    let scratch = Scratch::new();
    let root = imported(&scratch);
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), ["--max-rate", "20"]);
    runtime().block_on(async {
        let channel = channel(&hub).await;
        let digest = Digest::of(b"Hello World");
        let all: Vec<_> = (0..100).map(|_| read(&channel, digest, |_| ())).collect();
        let answers = futures::future::join_all(all).await;
        let refused: Vec<_> = answers
            .iter()
            .filter_map(|answer| answer.as_ref().err())
            .collect();
        assert!(refused.len() > 50, "{}", refused.len());
        assert!(
            refused
                .iter()
                .all(|status| status.code() == Code::ResourceExhausted)
        );
    });
    // Overload slows down, and is no failure.
    scratch.ok(["fetch", "--remote", &hub.address, &root]);
    hub.stop();
}

#[test]
fn a_message_that_is_too_large_is_refused() {
    let scratch = Scratch::new();
    let root = imported(&scratch);
    let args = ["--writable", "--max-message", "64KiB"];
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), args);
    let source = scratch.path("many");
    fs::create_dir(&source).unwrap();
    for number in 0..3_000 {
        fs::write(
            source.join(format!("a-file-with-a-long-name-{number}")),
            "x",
        )
        .unwrap();
    }
    let refused = scratch.fails(["import", "--remote", &hub.address, source.to_str().unwrap()]);
    assert!(
        refused.contains("too large") || refused.contains("limit"),
        "{refused}"
    );
    scratch.ok(["ls", "--remote", &hub.address, &format!("{root}/deep")]);
    hub.stop();
}

#[test]
fn a_graceful_end_lets_reads_end() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    let content = tree::noise(5, 40_000_000);
    tree::file(&source, "large", &content, false);
    scratch.import(&source);
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
    let pid = i32::try_from(hub.pid()).unwrap();
    runtime().block_on(async {
        let channel = channel(&hub).await;
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let request = Request::new(ReadBlobRequest {
            digest: Digest::of(&content).as_bytes().to_vec().into(),
        });
        let path = "/snix.castore.v1.BlobService/Read".parse().unwrap();
        let mut codec = tonic_prost::ProstCodec::<ReadBlobRequest, BlobChunk>::default();
        let _ = codec.encoder();
        let answer = client.server_streaming(request, path, codec).await;
        let mut pieces = answer.unwrap().into_inner();
        let mut bytes = pieces.message().await.unwrap().unwrap().data.to_vec();
        // SAFETY: a system call; the process is a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        tokio::time::sleep(Duration::from_millis(300)).await;
        while let Some(piece) = pieces.message().await.unwrap() {
            bytes.extend_from_slice(&piece.data);
        }
        assert!(bytes == content);
    });
    assert!(!hub.stop().contains("broken off"));
}

#[test]
fn one_hub_behind_another() {
    let scratch = Scratch::new();
    let root = imported(&scratch);
    let origin = Hub::start(&scratch, "origin", &scratch.remote(), [""; 0]);
    let hub = Hub::start(&scratch, "hub", &origin.address, [""; 0]);
    scratch.ok(["fetch", "--remote", &hub.address, &root]);
    origin.stop();
    // What went through it once, it has: for another client too.
    let other = scratch.path("other-cache");
    let args = [
        "fetch",
        "--cache-dir",
        other.to_str().unwrap(),
        "--remote",
        &hub.address,
        &root,
    ];
    scratch.ok(args);
    hub.stop();
}

#[test]
fn several_hubs_share_the_work() {
    let scratch = Scratch::new();
    let root = imported(&scratch);
    let hubs = ["a", "b", "c"].map(|name| Hub::start(&scratch, name, &scratch.remote(), [""; 0]));
    let address = format!(
        "{}?hub=127.0.0.1:{}&hub=127.0.0.1:{}",
        hubs[0].address,
        hubs[1].port(),
        hubs[2].port()
    );
    scratch.ok(["fetch", "--remote", &address, &root]);
    let [a, b, c] = hubs;
    for hub in [&a, &b, &c] {
        let cache = hub.log();
        assert!(!cache.contains("panicked"));
    }
    let had = |name: &str| {
        let args = [
            "status",
            "--json",
            "--cache-dir",
            scratch.path(name).to_str().unwrap(),
        ]
        .map(str::to_owned);
        let status: serde_json::Value = serde_json::from_str(&scratch.ok(&args)).unwrap();
        status["cache"]["chunks"].as_u64().unwrap()
    };
    let (in_b, in_c) = (b.stop(), c.stop());
    let chunks = [had("b"), had("c")];
    assert!(
        chunks.iter().all(|chunks| *chunks > 0),
        "{chunks:?} {in_b} {in_c}"
    );
    // With two of three gone, the third does it all.
    let other = scratch.path("other");
    let args = [
        "fetch",
        "--timeout",
        "5s",
        "--cache-dir",
        other.to_str().unwrap(),
        "--remote",
        &address,
        &root,
    ];
    scratch.ok(args);
    a.stop();
}

#[test]
fn an_aborted_put_leaves_nothing_that_looks_whole() {
    let scratch = Scratch::new();
    imported(&scratch);
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), ["--writable"]);
    let content = tree::noise(77, 3_000_000);
    runtime().block_on(async {
        let channel = channel(&hub).await;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let first = BlobChunk {
            data: content[..1_000_000].to_vec().into(),
        };
        // The stream goes on for ever; the client goes away in the middle.
        let pieces =
            futures::StreamExt::chain(futures::stream::iter([first]), futures::stream::pending());
        let codec = tonic_prost::ProstCodec::<
            BlobChunk,
            castore::proto::tvix::castore::v1::PutBlobResponse,
        >::default();
        let path = "/tvix.castore.v1.BlobService/Put".parse().unwrap();
        let put = client.client_streaming(Request::new(pieces), path, codec);
        assert!(
            tokio::time::timeout(Duration::from_millis(500), put)
                .await
                .is_err()
        );
    });
    let truncated = Digest::of(&content[..1_000_000]).to_hex();
    let log = hub.stop();
    let blob = scratch.path(&format!("store/blobs/b3/{}/{truncated}", &truncated[..4]));
    assert!(!blob.exists(), "{log}");
}

#[test]
fn help_and_wrong_words() {
    let scratch = Scratch::new();
    assert!(scratch.ok(["serve", "--help"]).contains("--writable"));
    let refused = scratch.fails([
        "ls",
        "--remote",
        "grpc+http://127.0.0.1:1",
        "--timeout",
        "1s",
        "x",
    ]);
    assert!(
        refused.contains("127.0.0.1:1") && refused.contains("refused"),
        "{refused}"
    );
    let mut child = scratch
        .command(["serve", "--listen", "127.0.0.1:0"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    crate::support::signal(&child, libc::SIGINT);
    assert!(wait(&mut child, Duration::from_secs(20)).unwrap().success());
}

/// As tvix and snix read: the chunk list first, then each chunk, and nobody says a size.
#[test]
fn a_client_that_knows_no_sizes() {
    let scratch = Scratch::new();
    imported(&scratch);
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
    let content = tree::noise(3, 5_000_001);
    runtime().block_on(async {
        let channel = channel(&hub).await;
        let policy = castore::remote::Policy::default();
        let remote = castore::remote::open(&hub.address, &policy)
            .unwrap()
            .remove(0);
        let manifest = remote
            .manifest(Digest::of(&content))
            .await
            .unwrap()
            .unwrap();
        let mut joined = Vec::new();
        for chunk in manifest.chunks() {
            joined.extend(read(&channel, chunk.digest, |_| ()).await.unwrap());
        }
        assert!(joined == content);
        assert!(read(&channel, Digest::of(&content), |_| ()).await.unwrap() == content);
        assert!(
            read(&channel, Digest::of(b"Hello World"), |_| ())
                .await
                .unwrap()
                == b"Hello World"
        );
        let missing = read(&channel, Digest::of(b"nobody has this"), |_| ()).await;
        assert_eq!(missing.unwrap_err().code(), Code::NotFound);
    });
    hub.stop();
}

/// A hub whose own remotes are away is well: what it has is read through it, and all else fails soon.
#[test]
fn a_hub_whose_upstream_is_away() {
    let scratch = Scratch::new();
    let root = imported(&scratch);
    let origin = Hub::start(&scratch, "origin", &scratch.remote(), [""; 0]);
    let hub = Hub::start(&scratch, "hub", &origin.address, ["--timeout", "2s"]);
    let through = |cache: &str, path: &str| {
        let cache = scratch.path(cache);
        let path = format!("{root}/{path}");
        let args = [
            "cat",
            "--timeout",
            "6s",
            "--remote",
            &hub.address,
            "--cache-dir",
            cache.to_str().unwrap(),
            &path,
        ];
        scratch.run(args)
    };
    assert!(through("a", "large").status.success());
    origin.stop();
    runtime().block_on(async {
        let policy = castore::remote::Policy {
            timeout: Duration::from_secs(6),
            ..castore::remote::Policy::default()
        };
        let remotes = castore::remote::open(&hub.address, &policy).unwrap();
        let chain = castore::remote::Chain::of_groups(vec![remotes], policy);
        let urgency = castore::remote::Urgency::reader();
        // More than it takes to open a breaker.
        for seed in 0..6 {
            let digest = Digest::of(&tree::noise(seed, 77));
            let error = chain.chunk(digest, Some(77), &urgency).await.unwrap_err();
            assert!(error.is_transient(), "{error}");
        }
        assert!(
            chain.status().iter().all(|remote| !remote.away),
            "{:?}",
            chain.status()
        );
        let manifest = chain
            .manifest(Digest::of(&tree::noise(3, 5_000_001)), None, |_| false)
            .await;
        assert!(manifest.unwrap().unwrap().chunks().len() > 1);
    });
    // Another client, with nothing cached, gets what the hub has.
    assert!(through("b", "large").status.success());
    let not_there = through("b", "chunk");
    assert_eq!(not_there.status.code(), Some(1));
    hub.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_mount_tells_how_it_is() {
    let scratch = Scratch::new();
    let root = imported(&scratch);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let mount = scratch.mount(["--metrics", &address, &root]);
    assert!(fs::read(mount.at("large")).unwrap() == tree::noise(3, 5_000_001));
    let metrics = http_get(&address, "/metrics");
    let value = |name: &str| -> u64 {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(&format!("castore_{name} ")));
        line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("fetched_bytes_total") >= 5_000_001, "{metrics}");
    assert!(value("mount_inodes") > 1);
    assert_eq!(value("mount_errors"), 0);
    assert!(metrics.contains("castore_remote_away{remote=\"objectstore+file://"));
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(http_get(&address, "/healthz").contains("200 OK"));
    assert!(http_get(&address, "/nothing").contains("404"));
    mount.stop();
    assert!(TcpStream::connect(&address).is_err());
    // An address that is taken is told, and nothing is mounted.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mnt = scratch.mnt();
    let said = scratch.fails(["mount", "--metrics", &address, &root, mnt.to_str().unwrap()]);
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
}

/// A hub that has a tree from elsewhere takes it all the same: what is put has to be in the store that it puts into.
#[test]
fn what_a_hub_has_elsewhere_is_put_all_the_same() {
    let scratch = Scratch::new();
    let root = imported(&scratch);
    let target = format!("objectstore+file://{}", scratch.path("target").display());
    let both = format!("{target},{}", scratch.remote());
    let hub = Hub::start(&scratch, "hub", &both, ["--writable"]);
    let cache = scratch.path("c");
    let fetch = [
        "fetch",
        "--cache-dir",
        cache.to_str().unwrap(),
        "--remote",
        &hub.address,
        &root,
    ];
    scratch.ok(fetch);
    // A part of the tree, whose directories the hub knows as a part of the whole.
    let part = scratch.path("source/deep");
    let digest = scratch.ok(["import", "--remote", &hub.address, part.to_str().unwrap()]);
    hub.stop();
    scratch.clear_cache();
    scratch.ok(["fetch", "--remote", &target, digest.trim()]);
    scratch.ok(["copy", &root, "--from", &scratch.remote(), "--to", &target]);
}

#[test]
fn a_token_can_be_changed_under_a_client() {
    let scratch = Scratch::new();
    imported(&scratch);
    let (server, client) = (file(&scratch, "s", "first"), file(&scratch, "c", "first"));
    let hub = Hub::start(
        &scratch,
        "hub",
        &scratch.remote(),
        ["--token-file", &server],
    );
    let port = hub.port();
    let address = format!("{}?token-file={client}", hub.address);
    let policy = castore::remote::Policy {
        timeout: Duration::from_secs(3),
        ..castore::remote::Policy::default()
    };
    let runtime = runtime();
    let remote =
        runtime.block_on(async { castore::remote::open(&address, &policy).unwrap().remove(0) });
    let digest = Digest::of(b"Hello World");
    let urgency = castore::remote::Urgency::reader();
    runtime
        .block_on(remote.chunk(digest, Some(11), &urgency))
        .unwrap();
    hub.kill();
    fs::write(&server, "second").unwrap();
    let place = format!("127.0.0.1:{port}");
    let hub = Hub::listen(
        &scratch,
        &place,
        "hub",
        &scratch.remote(),
        ["--token-file", &server],
    );
    // Once the old connection is found to be gone.
    crate::support::eventually("it is refused", || {
        let refused = runtime.block_on(remote.chunk(digest, Some(11), &urgency));
        refused.unwrap_err().to_string().contains("token")
    });
    fs::write(&client, "second").unwrap();
    runtime
        .block_on(remote.chunk(digest, Some(11), &urgency))
        .unwrap();
    hub.kill();
    fs::write(&client, " \n").unwrap();
    let said = scratch.fails(["ls", "--remote", &address, "x"]);
    assert!(said.contains("no token"), "{said}");
}
