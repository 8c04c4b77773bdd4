use std::{
    any::Any,
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use castore::remote::{self, Policy, Publish, Remote};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::support::{
    Scratch,
    hub::Hub,
    proxy::Upstream,
    servers::{Missing, Server},
};

/// A kind of remote.
pub struct Kind {
    pub name: &'static str,
    /// Whether a proxy can stand between it and its clients.
    pub has_link: bool,
    pub start: fn() -> Result<Fixture, Missing>,
}

pub const KINDS: [Kind; 14] = [
    kind("memory", false, || Ok(memory())),
    kind("file", false, || Ok(file())),
    kind("grpc", true, || Ok(grpc(""))),
    kind("grpc-tvix", false, || Ok(grpc("?protocol=tvix"))),
    kind("grpc-snix", false, || Ok(grpc("?protocol=snix"))),
    kind("grpc-unix", false, || Ok(grpc_unix())),
    kind("grpc-tls", true, || Ok(grpc_tls())),
    kind("s3-seaweedfs", true, || Ok(s3(Server::weed()?))),
    kind("s3-moto", false, || Ok(s3(Server::moto()?))),
    // Answers 200 instead of 206 to ranges.
    kind("s3-rclone", false, || Ok(s3(Server::rclone_s3()?))),
    kind("azure", true, || Ok(s3(Server::azurite()?))),
    kind("webdav", false, || web(Server::webdav, true)),
    kind("http", true, || web(Server::nginx, false)),
    kind("gcs", false, || Ok(s3(Server::gcs()?))),
];

const fn kind(name: &'static str, has_link: bool, start: fn() -> Result<Fixture, Missing>) -> Kind {
    Kind {
        name,
        has_link,
        start,
    }
}

type Address = Box<dyn Fn(&str) -> String + Send + Sync>;
type Via = Box<dyn Fn(u16, &str) -> String + Send + Sync>;
/// A test, with its name; it gets a place of its own in a remote.
pub type Test = (&'static str, fn(&Fixture, &str));

/// What runs of a kind. Each test has a place of its own in it.
pub struct Fixture {
    /// Stores in memory, by place.
    memory: Option<Mutex<HashMap<String, Arc<dyn Publish>>>>,
    read: Address,
    write: Address,
    /// Where it listens, and its address through another port.
    pub link: Option<(Upstream, Via)>,
    /// Whether it can list names.
    pub lists: bool,
    /// How long its server may show what was there before.
    pub lag: Duration,
    /// Ends with this.
    _keep: Box<dyn Any + Send + Sync>,
}

/// Long enough for a busy machine.
pub fn policy() -> Policy {
    Policy {
        timeout: Duration::from_secs(20),
        ..Policy::default()
    }
}

impl Fixture {
    pub fn publish(&self, place: &str) -> Arc<dyn Publish> {
        match &self.memory {
            Some(stores) => {
                let mut stores = stores.lock().unwrap();
                let store = stores.entry(place.to_owned()).or_insert_with(|| {
                    remote::open_for_writing("objectstore+memory:///", &policy()).unwrap()
                });
                Arc::clone(store)
            }
            None => remote::open_for_writing(&(self.write)(place), &policy()).unwrap(),
        }
    }

    pub fn remote(&self, place: &str) -> Arc<dyn Remote> {
        match &self.memory {
            Some(_) => self.publish(place),
            None => remote::open(&(self.read)(place), &policy())
                .unwrap()
                .remove(0),
        }
    }

    /// `None` where nothing outside this process can reach it.
    pub fn address(&self, place: &str) -> Option<String> {
        self.memory.is_none().then(|| (self.read)(place))
    }
}

fn memory() -> Fixture {
    Fixture {
        memory: Some(Mutex::default()),
        read: Box::new(str::to_owned),
        write: Box::new(str::to_owned),
        link: None,
        lists: true,
        lag: Duration::ZERO,
        _keep: Box::new(()),
    }
}

fn in_directory(root: &Path) -> Address {
    let root = root.to_owned();
    Box::new(move |place| format!("objectstore+file://{}", root.join(place).display()))
}

fn file() -> Fixture {
    let scratch = Scratch::new();
    let store = scratch.path("stores");
    Fixture {
        memory: None,
        read: in_directory(&store),
        write: in_directory(&store),
        link: None,
        lists: true,
        lag: Duration::ZERO,
        _keep: Box::new(scratch),
    }
}

/// Our own server over a directory. All places are one there.
fn grpc(query: &'static str) -> Fixture {
    let scratch = Scratch::new();
    let names = token(&scratch, "names");
    let hub = Hub::start(
        &scratch,
        "hub",
        &scratch.remote(),
        ["--writable", "--names-token-file", names.to_str().unwrap()],
    );
    let (port, address) = (hub.port(), hub.address.clone());
    let write = with(
        &address,
        query,
        &format!("names-token-file={}", names.display()),
    );
    Fixture {
        memory: None,
        read: Box::new(move |_| format!("{address}{query}")),
        write: Box::new(move |_| write.clone()),
        link: Some((
            port.into(),
            Box::new(move |port, _| format!("grpc+http://127.0.0.1:{port}{query}")),
        )),
        lists: true,
        lag: Duration::ZERO,
        _keep: Box::new((hub, scratch)),
    }
}

fn with(address: &str, query: &str, option: &str) -> String {
    match query.is_empty() {
        true => format!("{address}?{option}"),
        false => format!("{address}{query}&{option}"),
    }
}

fn token(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.path(&format!("{name}.token"));
    fs::write(&path, format!("secret-of-{name}\n")).unwrap();
    path
}

fn grpc_unix() -> Fixture {
    let scratch = Scratch::new();
    let names = token(&scratch, "names");
    // The address of a socket is short, and the target directory's path may not be.
    let dir = tempfile::Builder::new()
        .prefix("castore-")
        .tempdir()
        .unwrap();
    let place = format!("unix://{}", dir.path().join("s").display());
    let args = ["--writable", "--names-token-file", names.to_str().unwrap()];
    let hub = Hub::listen(&scratch, &place, "hub", &scratch.remote(), args);
    let address = hub.address.clone();
    let write = format!("{address}?names-token-file={}", names.display());
    Fixture {
        memory: None,
        read: Box::new(move |_| address.clone()),
        write: Box::new(move |_| write.clone()),
        link: None,
        lists: true,
        lag: Duration::ZERO,
        _keep: Box::new((hub, scratch, dir)),
    }
}

/// With an authority of our own, a client certificate and a token.
fn grpc_tls() -> Fixture {
    let scratch = Scratch::new();
    let pem = |name: &str, text: String| {
        let path = scratch.path(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = pem("ca.pem", ca.self_signed(&ca_key).unwrap().pem());
    let issuer = Issuer::new(ca, ca_key);
    let leaf = |name: &str, purpose| {
        let key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        (
            pem(&format!("{name}.pem"), certificate.pem()),
            pem(&format!("{name}.key"), key.serialize_pem()),
        )
    };
    let (cert, key) = leaf("server", ExtendedKeyUsagePurpose::ServerAuth);
    let (client_cert, client_key) = leaf("client", ExtendedKeyUsagePurpose::ClientAuth);
    let (names, token) = (token(&scratch, "names"), token(&scratch, "all"));
    let args = [
        "--writable",
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--tls-client-ca",
        &ca_pem,
        "--token-file",
        token.to_str().unwrap(),
        "--names-token-file",
        names.to_str().unwrap(),
    ];
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), args);
    let port = hub.port();
    let query = format!(
        "?ca={ca_pem}&cert={client_cert}&key={client_key}&token-file={}",
        token.display()
    );
    let address = format!("{}{query}", hub.address);
    let write = format!("{address}&names-token-file={}", names.display());
    Fixture {
        memory: None,
        read: Box::new(move |_| address.clone()),
        write: Box::new(move |_| write.clone()),
        link: Some((
            port.into(),
            Box::new(move |port, _| format!("grpc+https://127.0.0.1:{port}{query}")),
        )),
        lists: true,
        lag: Duration::ZERO,
        _keep: Box::new((hub, scratch)),
    }
}

/// A server that takes what is put, whatever it speaks.
fn s3(server: Server) -> Fixture {
    let server = Arc::new(server);
    let port = server.port();
    let (read, write, via) = (
        Arc::clone(&server),
        Arc::clone(&server),
        Arc::clone(&server),
    );
    Fixture {
        memory: None,
        read: Box::new(move |place| read.address(place)),
        write: Box::new(move |place| write.address(place)),
        link: Some((
            port.into(),
            Box::new(move |port, place| via.address_via(port, place)),
        )),
        lists: true,
        lag: Duration::ZERO,
        _keep: Box::new(server),
    }
}

/// A web server over a directory, for reading. Plain HTTP has no listing.
fn web(start: fn(&Path) -> Result<Server, Missing>, lists: bool) -> Result<Fixture, Missing> {
    let scratch = Scratch::new();
    let root = scratch.path("www");
    fs::create_dir(&root).unwrap();
    let server = Arc::new(start(&root)?);
    let port = server.port();
    let (read, via) = (Arc::clone(&server), Arc::clone(&server));
    Ok(Fixture {
        memory: None,
        read: Box::new(move |place| read.address(place)),
        write: in_directory(&root),
        link: Some((
            port.into(),
            Box::new(move |port, place| via.address_via(port, place)),
        )),
        lists,
        lag: Duration::from_secs(2),
        _keep: Box::new((server, scratch)),
    })
}
