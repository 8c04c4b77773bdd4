//! Servers of other people, installed by `contrib/test-servers.sh`: each runs on this machine only, on ports and in a
//! directory of its own, and is gone afterwards.

use std::{
    collections::hash_map::RandomState,
    fs::{self, File},
    hash::{BuildHasher, Hasher},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{LazyLock, atomic, mpsc},
    thread,
    time::{Duration, Instant},
};

/// Longer than any of them takes to start or to end.
const DEADLINE: Duration = Duration::from_secs(30);
const TRIES: usize = 3;
/// What `SeaweedFS` is made of: each listens on two ports, and the others are content with one.
const PARTS: [&str; 5] = ["s3", "filer", "master", "volume", "admin"];
const PORTS: usize = 2 * PARTS.len();

const ACCESS_KEY: &str = "castore";
const SECRET_KEY: &str = "castore-tests-only";
/// The account that every Azurite has, with a key that everybody knows.
const AZURE_ACCOUNT: &str = "devstoreaccount1";
const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// Signed with that key for that account, so it is the same everywhere and nothing here needs to know how to sign.
const AZURE_SAS: &str = "sv=2018-03-28&ss=b&srt=c&sp=rwdlc&se=9999-12-31T00%3A00%3A00Z&sig=P6pn3eXXmuMdB5YKtZHtQJIu0%2FxIKZ9CLf1Ior0nlig%3D";

/// Why a server is not to be had here.
#[derive(Debug)]
pub struct Missing(pub String);

#[derive(Clone)]
enum Kind {
    Weed,
    Moto,
    Azurite,
    Nginx(PathBuf),
    Webdav(PathBuf),
    RcloneS3,
    Gcs,
}

/// A server that runs, with a bucket or container named `castore`. It is killed with its whole process group, and its
/// data removed, when this is dropped. When the tests' process ends in another way it is killed too, and the next run
/// removes the data.
pub struct Server {
    kind: Kind,
    child: Option<Child>,
    /// Clients are for the first.
    ports: [u16; PORTS],
    data: tempfile::TempDir,
    /// Tells other processes that the data is in use.
    _lock: File,
}

impl Server {
    /// `SeaweedFS`, whose S3 refuses who has no key.
    pub fn weed() -> Result<Self, Missing> {
        Self::start(&Kind::Weed)
    }

    /// moto, which takes any key and has everything in memory: after a restart its bucket is empty.
    pub fn moto() -> Result<Self, Missing> {
        Self::start(&Kind::Moto)
    }

    /// Azurite, the emulator of Azure's blob storage.
    pub fn azurite() -> Result<Self, Missing> {
        Self::start(&Kind::Azurite)
    }

    /// nginx, which serves a directory for reading, ranges included, and does not list it.
    pub fn nginx(root: &Path) -> Result<Self, Missing> {
        Self::start(&Kind::Nginx(root.to_owned()))
    }

    /// rclone, which serves a directory over `WebDAV`, for reading, and lists it.
    pub fn webdav(root: &Path) -> Result<Self, Missing> {
        Self::start(&Kind::Webdav(root.to_owned()))
    }

    /// rclone as an S3 server, which refuses who has no key, answers ranges with 200 and knows no conditions.
    pub fn rclone_s3() -> Result<Self, Missing> {
        Self::start(&Kind::RcloneS3)
    }

    /// rclone again: Google's storage speaks what S3 does where nobody signs. The service account is a fake; without one,
    /// the client asks the machine's metadata address.
    pub fn gcs() -> Result<Self, Missing> {
        Self::start(&Kind::Gcs)
    }

    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// `None` while it is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The filer of `SeaweedFS`, as `weed mount -filer=` takes it: with the port of its gRPC after a dot.
    pub fn filer(&self) -> Option<String> {
        let [_, _, http, grpc, ..] = self.ports;
        matches!(self.kind, Kind::Weed).then(|| format!("127.0.0.1:{http}.{grpc}"))
    }

    /// The castore address of a place in it.
    pub fn address(&self, prefix: &str) -> String {
        self.address_via(self.port(), prefix)
    }

    /// The same place through another port, where a proxy listens.
    pub fn address_via(&self, port: u16, prefix: &str) -> String {
        let server = format!("http://127.0.0.1:{port}");
        match self.kind {
            Kind::Weed | Kind::Moto | Kind::RcloneS3 => format!(
                "objectstore+s3://castore/{prefix}?endpoint={server}&region=us-east-1\
                 &access_key_id={ACCESS_KEY}&secret_access_key={SECRET_KEY}"
            ),
            Kind::Azurite => format!(
                "objectstore+az://castore/{prefix}?endpoint={server}/{AZURE_ACCOUNT}\
                 &account_name={AZURE_ACCOUNT}&account_key={AZURE_KEY}"
            ),
            Kind::Nginx(_) | Kind::Webdav(_) => format!("objectstore+{server}/{prefix}"),
            Kind::Gcs => {
                let account = format!(
                    "{{\"gcs_base_url\":\"{server}\",\"disable_oauth\":true,\"client_email\":\"\",\
                     \"private_key\":\"\",\"private_key_id\":\"\"}}"
                );
                let account: String =
                    url::form_urlencoded::byte_serialize(account.as_bytes()).collect();
                format!("objectstore+gs://castore/{prefix}?service_account_key={account}")
            }
        }
    }

    /// Ends it without a warning; connections break off.
    pub fn stop(&mut self) {
        if let (Kind::Azurite, Some(child)) = (&self.kind, &mut self.child) {
            // The exception: it writes its index every five seconds and when it is asked to end.
            // SAFETY: a system call; the process has not been waited for, so the number is still its own.
            unsafe { libc::kill(i32::try_from(child.id()).unwrap(), libc::SIGTERM) };
            ended(child, Duration::from_secs(5));
        }
        self.kill();
    }

    /// Starts it again, with the same ports and data.
    pub fn restart(&mut self) -> Result<(), Missing> {
        let program = self.kind.installed()?;
        self.stop();
        if let Err(why) = self.run(&program) {
            panic!("{} does not start again: {why}", self.kind.program());
        }
        Ok(())
    }

    /// The end of what it has said.
    pub fn log(&self) -> String {
        let log = fs::read(self.data.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(8 << 10)..]).into_owned()
    }

    fn start(kind: &Kind) -> Result<Self, Missing> {
        let program = kind.installed()?;
        let mut tries = 0;
        loop {
            let (data, lock) = data_dir();
            let mut server = Self {
                kind: kind.clone(),
                child: None,
                ports: free_ports(),
                data,
                _lock: lock,
            };
            let Err(why) = server.run(&program) else {
                return Ok(server);
            };
            // Somebody else may have taken a port in the meantime.
            tries += 1;
            assert!(tries < TRIES, "{} does not start: {why}", kind.program());
        }
    }

    /// Starts the process and waits until it answers. The error is its log.
    fn run(&mut self, program: &Path) -> Result<(), String> {
        let data = self.data.path();
        fs::create_dir_all(data.join("files/castore")).unwrap();
        let mut appending = File::options();
        appending.create(true).append(true);
        let log = appending.open(data.join("log")).unwrap();
        let mut command = Command::new(program);
        command
            .args(self.kind.configure(data, self.ports).split_whitespace())
            .current_dir(data)
            // Credentials, proxies and whatever else the tests' environment has are not for it.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs([("HOME", data), ("TMPDIR", data)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = self.child.insert(spawn(command));
        let deadline = Instant::now() + DEADLINE;
        loop {
            let gone = child.try_wait().unwrap();
            if gone.is_some() || Instant::now() > deadline {
                self.kill();
                return Err(format!("{gone:?}, log: {}", self.log()));
            }
            if self.kind.answers(self.ports) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let group = i32::try_from(child.id()).unwrap();
        // SAFETY: a system call; if the process has been waited for, it was just now and its number is not used again.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        if !ended(&mut child, DEADLINE) {
            eprintln!("{} does not end", self.kind.program());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        remove_sockets(self.data.path());
        if thread::panicking() {
            eprintln!("the log of {}:\n{}", self.kind.program(), self.log());
        }
    }
}

impl Kind {
    fn program(&self) -> &'static str {
        match self {
            Self::Weed => "weed",
            Self::Moto => "moto_server",
            Self::Azurite => "azurite-blob",
            Self::Nginx(_) => "nginx",
            Self::Webdav(_) | Self::RcloneS3 | Self::Gcs => "rclone",
        }
    }

    fn installed(&self) -> Result<PathBuf, Missing> {
        let servers = std::env::var_os("CASTORE_TEST_SERVERS")
            .unwrap_or_else(|| concat!(env!("CARGO_TARGET_TMPDIR"), "/../servers").into());
        let servers = std::path::absolute(servers).unwrap();
        let name = self.program();
        let program = servers.join("bin").join(name);
        if program.exists() {
            return Ok(program);
        }
        let why = fs::read_to_string(servers.join(format!("{name}.missing")));
        let why = why.unwrap_or_else(|_| "run contrib/test-servers.sh".into());
        Err(Missing(format!("no {name}: {}", why.trim())))
    }

    /// Writes what it wants to read into its data, where it will run, and gives its arguments.
    fn configure(&self, data: &Path, ports: [u16; PORTS]) -> String {
        let port = ports[0];
        match self {
            Self::Weed => {
                let config = format!(
                    r#"{{"identities": [{{"name": "tests", "actions": ["Admin"], "credentials":
                    [{{"accessKey": "{ACCESS_KEY}", "secretKey": "{SECRET_KEY}"}}]}},
                    {{"name": "anonymous", "actions": ["Read:ready"]}}]}}"#
                );
                fs::write(data.join("s3.json"), config).unwrap();
                // It tells its makers how it is doing, and listens on the same ports as everybody's, unless told not to.
                let mut sockets = Vec::new();
                let mut own_ports = Vec::new();
                for (part, [http, grpc]) in PARTS.iter().zip(ports.as_chunks().0) {
                    own_ports.push(format!("-{part}.port={http} -{part}.port.grpc={grpc}"));
                    sockets.push(format!("/tmp/seaweedfs-{part}-grpc-{grpc}.sock"));
                }
                fs::write(data.join("sockets"), sockets.join("\n")).unwrap();
                format!(
                    "mini -dir=files -ip=127.0.0.1 -ip.bind=127.0.0.1 -bucket=castore
                    -s3.config=s3.json -s3.localSocket=s3.sock -filer.localSocket=filer.sock
                    -master.telemetry=false -admin.ui=false -webdav=false
                    -s3.port.iceberg=0 -s3.port.lance=0 {}",
                    own_ports.join(" ")
                )
            }
            Self::Moto => format!("-H 127.0.0.1 -p {port}"),
            Self::Azurite => format!(
                "--disableTelemetry --skipApiVersionCheck --silent --location files
                --blobHost 127.0.0.1 --blobPort {port}"
            ),
            Self::Nginx(root) => {
                // One process: the workers of a master that is killed go on.
                let config = format!(
                    "daemon off; master_process off; pid nginx.pid; error_log stderr;
                    events {{ worker_connections 512; }}
                    http {{
                        access_log off; sendfile on; default_type application/octet-stream;
                        client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp;
                        uwsgi_temp_path tmp; scgi_temp_path tmp;
                        server {{ listen 127.0.0.1:{port}; root \"{}\"; }}
                    }}",
                    std::path::absolute(root).unwrap().display()
                );
                fs::write(data.join("nginx.conf"), config).unwrap();
                "-p . -c nginx.conf -e stderr".into()
            }
            Self::Webdav(root) => format!(
                "serve webdav {} --config=rclone.conf --cache-dir=cache --addr=127.0.0.1:{port}
                --read-only --dir-cache-time=1ms",
                root.display()
            ),
            Self::Gcs => format!(
                "serve s3 files --config=rclone.conf --cache-dir=cache --addr=127.0.0.1:{port}"
            ),
            Self::RcloneS3 => format!(
                "serve s3 files --config=rclone.conf --cache-dir=cache --addr=127.0.0.1:{port}
                --auth-key={ACCESS_KEY},{SECRET_KEY}"
            ),
        }
    }

    /// Whether it does what it is there for, and has its bucket.
    fn answers(&self, [port, _, filer, ..]: [u16; PORTS]) -> bool {
        let ask = |port, method, path| status(port, method, path, "").unwrap_or(0);
        match self {
            Self::Weed => {
                if ask(filer, "GET", "/buckets/castore/") != 200
                    || ask(port, "GET", "/castore") != 403
                {
                    return false;
                }
                // For a while after a restart its parts do not know of each other's data. So it has to give an object,
                // from a bucket that is there for that and open to everybody.
                let found = ask(port, "GET", "/ready/ready");
                if found == 404 {
                    let _ = status(filer, "PUT", "/buckets/ready/ready", "ready");
                }
                found == 200
            }
            Self::Moto => ask(port, "PUT", "/castore") == 200,
            Self::Azurite => {
                let path = format!("/{AZURE_ACCOUNT}/castore?restype=container&{AZURE_SAS}");
                matches!(ask(port, "PUT", &path), 201 | 409)
            }
            Self::Nginx(_) => matches!(ask(port, "GET", "/"), 200 | 403),
            Self::Webdav(_) => ask(port, "PROPFIND", "/") == 207,
            Self::Gcs => ask(port, "GET", "/castore") == 200,
            Self::RcloneS3 => ask(port, "GET", "/castore") == 400,
        }
    }
}

/// Makes one request, and gives the status of its answer.
fn status(port: u16, method: &str, path: &str, body: &str) -> io::Result<u16> {
    let limit = Duration::from_secs(5);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {}\r\n\
         Depth: 0\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(64 << 10).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    status.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A directory that is in use until its lock is closed. Removes those of processes that did not come to it.
fn data_dir() -> (tempfile::TempDir, File) {
    let parent = fs::canonicalize(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // Until there is a lock in the new directory, it looks like one that nobody uses.
    let gate = File::create(parent.join("servers.lock")).unwrap();
    gate.lock().unwrap();
    for entry in fs::read_dir(&parent).unwrap().flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with("server-");
        if ours && File::create(path.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok()) {
            remove_sockets(&path);
            let _ = fs::remove_dir_all(&path);
        }
    }
    let data = tempfile::Builder::new()
        .prefix("server-")
        .tempdir_in(parent)
        .unwrap();
    let lock = File::create(data.path().join("lock")).unwrap();
    lock.lock().unwrap();
    (data, lock)
}

/// `SeaweedFS` makes some in /tmp, whatever it is told.
fn remove_sockets(data: &Path) {
    let sockets = fs::read_to_string(data.join("sockets")).unwrap_or_default();
    for socket in sockets.lines() {
        let _ = fs::remove_file(socket);
    }
}

/// Ports below those that the kernel gives to clients: who calls a server that is stopped must not find itself at its
/// port, nor keep it from starting again.
fn free_ports() -> [u16; PORTS] {
    // Threads never try the same, and processes hardly ever.
    static NEXT: LazyLock<atomic::AtomicU64> =
        LazyLock::new(|| RandomState::new().build_hasher().finish().into());
    [(); PORTS].map(|()| {
        loop {
            let port = 12_000 + NEXT.fetch_add(1, atomic::Ordering::Relaxed) % 18_000;
            let port = u16::try_from(port).unwrap();
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return port;
            }
        }
    })
}

/// Starts a process in a group of its own, which dies with this one.
pub fn spawn(mut command: Command) -> Child {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    // The kernel kills the child when the thread that started it ends, and those of tests end early: so one that never
    // does starts them all.
    static SPAWNER: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in jobs {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let parent = i32::try_from(std::process::id()).unwrap();
    command.process_group(0);
    // SAFETY: system calls only, between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() != parent {
                // It has died before it was said.
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    let what = format!("{command:?}");
    let (sender, answer) = mpsc::channel();
    SPAWNER.send((command, sender)).unwrap();
    answer
        .recv_timeout(DEADLINE)
        .unwrap()
        .unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Waits for the end of a process, which must have been asked to end.
fn ended(child: &mut Child, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}
