//! A guest under QEMU's emulation, which runs scripts for a test.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    super::{DEADLINE, servers::spawn, wait},
    initramfs,
    qmp::Qmp,
    serial::{Output, Serial, Silence},
};

const PROGRAM: &str = "qemu-system-x86_64";
/// 4 s on an idle machine of two processors without KVM.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// Most that a failed test shows of the guest's console.
const CONSOLE_SHOWN: usize = 8 << 10;

/// What `contrib/test-vm.sh` has put there.
fn parts() -> PathBuf {
    let parts = std::env::var_os("CASTORE_TEST_VM")
        .unwrap_or_else(|| concat!(env!("CARGO_TARGET_TMPDIR"), "/../vm").into());
    std::path::absolute(parts).unwrap()
}

/// Busybox, as the guest has it.
pub fn busybox() -> PathBuf {
    parts().join("bin/busybox")
}

/// Why no guest can be booted here; `None`: it can.
pub fn missing() -> Option<String> {
    let parts = parts();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&str| match *name {
        "qemu" => std::env::split_paths(&path).any(|dir| dir.join(PROGRAM).is_file()),
        "busybox" => busybox().is_file(),
        _ => parts.join("vmlinuz").is_file(),
    };
    let name = ["qemu", "busybox", "kernel"]
        .into_iter()
        .find(|name| !is_there(name))?;
    let why = fs::read_to_string(parts.join(format!("{name}.missing")));
    let why = why.unwrap_or_else(|_| "run contrib/test-vm.sh".into());
    Some(format!("no {name}: {}", why.trim()))
}

/// The device that a guest has, and the guest's size.
#[derive(Clone)]
pub struct GuestOptions {
    /// Of the back end, which must be listening on it.
    pub socket: PathBuf,
    pub tag: String,
    /// Beside the one of high priority. A back end that has fewer lets QEMU end at once.
    pub request_queues: u32,
    /// In descriptors, a power of two, at most 1024.
    pub queue_size: u32,
    /// In MiB.
    pub memory: u32,
    /// Executable files that it has in `/programs`, by their names there.
    pub programs: Vec<(String, PathBuf)>,
}

impl GuestOptions {
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            tag: "castore".into(),
            request_queues: 1,
            queue_size: 1024,
            memory: 512,
            programs: Vec::new(),
        }
    }
}

/// A guest that runs. It is killed, and everything of it removed, when this is dropped, or when the tests' process ends.
pub struct Guest {
    qemu: Child,
    qmp: Qmp,
    serial: Serial,
    boot_id: String,
    tag: String,
    /// From the start of QEMU until the guest was ready.
    pub boot_time: Duration,
    dir: tempfile::TempDir,
}

impl Guest {
    /// Boots it; returns when it is ready to run scripts.
    pub fn boot(options: &GuestOptions) -> Self {
        // Not in the target directory: a socket's path has at most 107 bytes.
        let dir = tempfile::Builder::new()
            .prefix("castore-vm-")
            .tempdir()
            .unwrap();
        let initramfs = initramfs::build(&parts(), &options.programs);
        fs::write(dir.path().join("initramfs"), initramfs).unwrap();
        let begun = Instant::now();
        let mut qemu = spawn(command(options, dir.path()));
        let qmp = connect(&mut qemu, dir.path(), "qmp");
        let serial = connect(&mut qemu, dir.path(), "serial");
        let mut guest = Self {
            qemu,
            qmp: Qmp::new(qmp),
            serial: Serial::new(serial),
            boot_id: String::new(),
            tag: options.tag.clone(),
            boot_time: Duration::ZERO,
            dir,
        };
        guest.wait_until_ready();
        guest.boot_time = begun.elapsed();
        guest
    }

    /// Runs a script by busybox's shell to its end.
    pub fn run(&mut self, script: &str) -> Output {
        self.run_within(DEADLINE, script)
    }

    pub fn run_within(&mut self, limit: Duration, script: &str) -> Output {
        match self.serial.run(script, Instant::now() + limit) {
            Ok(output) => output,
            Err(silence) => self.fail(script, &silence),
        }
    }

    /// Runs a script that must succeed, and gives what it printed.
    pub fn ok(&mut self, script: &str) -> String {
        let output = self.run(script);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status, 0, "{script}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Mounts its device on a path that need not exist.
    pub fn mount(&mut self, path: &str) {
        let tag = &self.tag;
        let script = format!("mkdir -p '{path}' && mount -t virtiofs '{tag}' '{path}'");
        self.ok(&script);
    }

    /// Has it start again without a warning, as a button would; returns when it is ready again. Nothing is mounted then.
    pub fn reset(&mut self) {
        // QEMU was started so that it ends where the guest starts again by itself.
        let reset = json!({"reboot": "reset"});
        self.qmp.execute("set-action", &reset);
        self.qmp.execute("system_reset", &json!({}));
        // The firmware resets the machine some more times before it boots.
        self.wait_until_ready();
        let end = json!({"reboot": "shutdown"});
        self.qmp.execute("set-action", &end);
    }

    /// Stops its processors, and the rings of its devices.
    pub fn pause(&mut self) {
        self.qmp.execute("stop", &json!({}));
    }

    /// Lets it go on from there.
    pub fn resume(&mut self) {
        self.qmp.execute("cont", &json!({}));
    }

    /// Has the guest switch itself off; fails unless QEMU ends well.
    pub fn power_off(mut self) {
        match self.serial.run("poweroff -f", Instant::now() + DEADLINE) {
            Err(Silence::Closed) => {}
            Err(silence) => self.fail("poweroff", &silence),
            Ok(output) => panic!("the guest is still on: {output:?}"),
        }
        let status = wait(&mut self.qemu, DEADLINE);
        let status = status.unwrap_or_else(|| self.fail("poweroff", &Silence::Late));
        assert!(status.success(), "QEMU: {status}, {}", self.console());
    }

    /// Has QEMU end without asking the guest, which may be waiting for its back end.
    pub fn quit(mut self) {
        self.qmp.execute("quit", &json!({}));
        let status = wait(&mut self.qemu, DEADLINE);
        let status = status.unwrap_or_else(|| self.fail("quit", &Silence::Late));
        assert!(status.success(), "QEMU: {status}, {}", self.console());
    }

    /// Whether QEMU still runs.
    pub fn is_on(&mut self) -> bool {
        self.qemu.try_wait().unwrap().is_none()
    }

    /// The end of what the guest's kernel and QEMU have said.
    pub fn console(&self) -> String {
        said(self.dir.path())
    }

    fn wait_until_ready(&mut self) {
        let ready = self
            .serial
            .ready(&self.boot_id, Instant::now() + BOOT_LIMIT);
        match ready {
            Ok(boot_id) => self.boot_id = boot_id,
            Err(silence) => self.fail("the boot", &silence),
        }
    }

    fn fail(&self, what: &str, silence: &Silence) -> ! {
        panic!("{what}: {silence}; the console:\n{}", self.console());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        if wait(&mut self.qemu, DEADLINE).is_none() {
            eprintln!("QEMU (process {}) does not end", self.qemu.id());
        }
    }
}

fn command(options: &GuestOptions, dir: &Path) -> Command {
    let memory = options.memory;
    // Without reconnect=: QEMU's vhost-user-fs does not start with it (7.2).
    let socket = format!("socket,id=fs,path={}", options.socket.display());
    let device = format!(
        "vhost-user-fs-pci,chardev=fs,tag={},num-request-queues={},queue-size={}",
        options.tag, options.request_queues, options.queue_size
    );
    let server = |name: &str| format!("socket,id={name},path={name},server=on,wait=off");
    let mut command = Command::new(PROGRAM);
    command
        .current_dir(dir)
        .args(["-machine", "q35,memory-backend=memory"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", &format!("{memory}M"), "-object"])
        // The back end maps the guest's memory.
        .arg(format!(
            "memory-backend-memfd,id=memory,size={memory}M,share=on"
        ))
        .args(["-chardev", &socket, "-device", &device])
        .arg("-kernel")
        .arg(parts().join("vmlinuz"))
        .args(["-initrd", "initramfs", "-append"])
        // A panic starts the guest again at once, which -no-reboot makes the end of QEMU.
        .arg("console=ttyS0 panic=-1 quiet tsc=reliable random.trust_cpu=on")
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .args(["-chardev", "file,id=console,path=console"])
        .args(["-serial", "chardev:console"])
        .args(["-chardev", &server("serial"), "-serial", "chardev:serial"])
        .args(["-chardev", &server("qmp"), "-mon", "qmp,mode=control"])
        .args(["-monitor", "none"]);
    let log = File::create(dir.join("qemu.log")).unwrap();
    command.stdin(Stdio::null());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command
}

/// Connects to one of QEMU's own sockets, which is there a moment after its start.
fn connect(qemu: &mut Child, dir: &Path, name: &str) -> UnixStream {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Ok(stream) = UnixStream::connect(dir.join(name)) {
            return stream;
        }
        let ended = qemu.try_wait().unwrap();
        if ended.is_some() || Instant::now() > deadline {
            let _ = qemu.kill();
            let _ = wait(qemu, DEADLINE);
            panic!("QEMU does not start ({ended:?}): {}", said(dir));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn said(dir: &Path) -> String {
    let mut said = fs::read(dir.join("console")).unwrap_or_default();
    said.drain(..said.len().saturating_sub(CONSOLE_SHOWN));
    said.extend(fs::read(dir.join("qemu.log")).unwrap_or_default());
    String::from_utf8_lossy(&said).into_owned()
}
