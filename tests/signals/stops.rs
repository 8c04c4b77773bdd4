//! Stops, debuggers and freezers: they interrupt what waits, and an innocent process goes on afterwards.

use std::{fs, io::Write, path::PathBuf, process::Command, thread, time::Duration};

use libc::{SIGCONT, SIGKILL, SIGSTOP, SIGTSTP};

use crate::{
    Test,
    fixture::{Behind, CALLS, Caller, helpers, mounted_at, waiting},
    support::{eventually, output},
};

pub const ALL: [Test; 12] = [
    ("stop_and_cont", &[], stop_and_cont),
    ("stopped_when_it_comes", &[], stopped_when_it_comes),
    ("tstp_and_cont", &[], tstp_and_cont),
    ("a_child_that_ends", &[], a_child_that_ends),
    ("attach", &[], || traced("attach")),
    ("seize", &[], || traced("seize")),
    ("gdb", &["gdb"], gdb),
    ("freezer_v1", &["freezer v1", "ls"], || frozen(1)),
    ("freezer_v2", &["freezer v2", "ls"], || frozen(2)),
    ("killed_while_frozen", &["freezer v2"], killed_while_frozen),
    ("frozen_with_the_daemon_v1", &["freezer v1"], || {
        frozen_with_the_daemon(1);
    }),
    ("frozen_with_the_daemon_v2", &["freezer v2"], || {
        frozen_with_the_daemon(2);
    }),
];

/// Has each way of waiting stopped by `stop` and taken up by `go`, and looks that nothing came of it.
fn innocent(stop: impl Fn(&mut Caller), go: impl Fn(&mut Caller)) {
    for call in CALLS {
        let behind = Behind::new(&[]);
        let mut caller = waiting(&behind, call, 1, &[]);
        stop(&mut caller);
        behind.gate.open();
        go(&mut caller);
        let line = caller.result();
        assert_eq!(
            line,
            format!("{} after 0 EINTR, 0 signals", call.3),
            "{call:?}"
        );
        assert_eq!(behind.gate.asked_again(), [], "{call:?}");
        behind.finish();
    }
}

/// Ctrl-Z and `fg` once failed an innocent `ls`.
fn stop_and_cont() {
    innocent(
        |caller| {
            caller.signal(SIGSTOP);
            caller.interrupted();
            caller.goes_on_waiting();
            caller.signal(SIGCONT);
        },
        |_| {},
    );
}

/// The answer comes while it is stopped.
fn stopped_when_it_comes() {
    innocent(
        |caller| {
            caller.signal(SIGSTOP);
            caller.interrupted();
        },
        |caller| {
            eventually("it stops", || caller.state() == 'T');
            caller.signal(SIGCONT);
        },
    );
}

fn tstp_and_cont() {
    innocent(
        |caller| {
            // What the terminal sends is for a group that has a parent in its session; so it is for ours.
            caller.signal(SIGTSTP);
            caller.interrupted();
            caller.goes_on_waiting();
        },
        |caller| {
            eventually("it stops", || matches!(caller.state(), 'T' | 'X' | 'Z'));
            caller.signal(SIGCONT);
        },
    );
}

/// A shell or a build waits in a mount while one of its children ends.
fn a_child_that_ends() {
    for call in CALLS {
        let behind = Behind::new(&[]);
        let mut caller = waiting(&behind, call, 1, &["child"]);
        caller.end_child();
        caller.interrupted();
        caller.goes_on_waiting();
        behind.gate.open();
        let line = caller.result();
        assert_eq!(
            line,
            format!("{} after 0 EINTR, 1 signals", call.3),
            "{call:?}"
        );
        behind.finish();
    }
}

/// Attaching stops a process, which once failed its call.
fn traced(how: &str) {
    for call in CALLS {
        let behind = Behind::new(&[]);
        let mut caller = waiting(&behind, call, 1, &[]);
        let mut command = Command::new(helpers().join("trace"));
        command.arg(how).arg(caller.pid.to_string());
        let mut tracer = Caller::run(command);
        assert_eq!(tracer.line(), "attached");
        caller.interrupted();
        caller.goes_on_waiting();
        behind.gate.open();
        assert_eq!(tracer.line(), "stopped", "{call:?}");
        assert_eq!(tracer.result(), "detached");
        let line = caller.result();
        assert_eq!(
            line,
            format!("{} after 0 EINTR, 0 signals", call.3),
            "{call:?}"
        );
        behind.finish();
    }
}

/// A debugger of flesh and blood.
fn gdb() {
    let behind = Behind::new(&[]);
    let mut caller = waiting(&behind, CALLS[1], 1, &[]);
    let mut command = Command::new("gdb");
    command.args(["-nx", "-batch", "-p", &caller.pid.to_string()]);
    command.args(["-ex", "echo ATTACHED\\n", "-ex", "detach"]);
    // Symbols of the network's servers are not waited for.
    command.env_remove("DEBUGINFOD_URLS");
    let debugger = thread::spawn(move || output(command));
    caller.interrupted();
    caller.goes_on_waiting();
    behind.gate.open();
    let said = debugger.join().unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(text.contains("ATTACHED"), "{said:?}");
    assert_eq!(caller.result(), "5000 after 0 EINTR, 0 signals");
    behind.finish();
}

/// A cgroup that is thawed and removed in the end.
struct Freezer {
    dir: PathBuf,
    version: u8,
}

impl Freezer {
    fn new(version: u8) -> Self {
        let mounted = match version {
            1 => mounted_at("cgroup ", "freezer"),
            _ => mounted_at("cgroup2 ", ""),
        };
        let name = format!(
            "castore-test-{}-{:?}",
            std::process::id(),
            thread::current().id()
        );
        let name = name.replace(['(', ')'], "");
        let dir = mounted.unwrap().join(name);
        fs::create_dir(&dir).unwrap();
        Self { dir, version }
    }

    fn set(&self, file: &str, value: &str) {
        let file = fs::File::options().write(true).open(self.dir.join(file));
        file.unwrap().write_all(value.as_bytes()).unwrap();
    }

    fn add(&self, caller: &Caller) {
        self.set("cgroup.procs", &caller.pid.to_string());
    }

    fn add_daemon(&self, behind: &Behind) {
        self.set("cgroup.procs", &behind.mount.child.id().to_string());
    }

    /// Whoever is still in it goes to the group above.
    fn empty(&self) {
        let processes = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        for process in processes.lines() {
            // It may have ended meanwhile.
            let _ = fs::write(self.dir.with_file_name("cgroup.procs"), process);
        }
    }

    fn freeze(&self) {
        match self.version {
            1 => self.set("freezer.state", "FROZEN"),
            _ => self.set("cgroup.freeze", "1"),
        }
    }

    fn thaw(&self) {
        match self.version {
            1 => self.set("freezer.state", "THAWED"),
            _ => self.set("cgroup.freeze", "0"),
        }
    }

    fn is_frozen(&self) -> bool {
        match self.version {
            1 => fs::read_to_string(self.dir.join("freezer.state")).unwrap() == "FROZEN\n",
            _ => fs::read_to_string(self.dir.join("cgroup.events"))
                .unwrap()
                .contains("frozen 1"),
        }
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.thaw();
        } else if let Ok(mut file) = fs::File::create(self.dir.join("cgroup.freeze")) {
            let _ = file.write_all(b"0");
        } else if let Ok(mut file) = fs::File::create(self.dir.join("freezer.state")) {
            let _ = file.write_all(b"THAWED");
        }
        self.empty();
        // Processes leave it a moment after they have ended.
        for _ in 0..100 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Freezing a container once failed an innocent `ls` in it.
fn frozen(version: u8) {
    for thaws_before in [false, true] {
        let behind = Behind::new(&[]);
        behind.warm("n0");
        behind.gate.hold(&["/dirs/"]);
        let freezer = Freezer::new(version);
        let mut command = Command::new("ls");
        command.arg("-1").arg(behind.mount.at("n0"));
        let mut ls = Caller::run(command);
        behind.gate.seen("/dirs/", 1);
        ls.waits();
        freezer.add(&ls);
        freezer.freeze();
        ls.interrupted();
        ls.goes_on_waiting();
        assert!(
            !freezer.is_frozen(),
            "it was answered while the remote was silent"
        );
        if thaws_before {
            freezer.thaw();
        }
        behind.gate.open();
        if !thaws_before {
            eventually("it is frozen", || freezer.is_frozen());
            freezer.thaw();
        }
        let mut lines = vec![ls.line()];
        while lines.len() < 9 && lines.last().is_some_and(|line| !line.is_empty()) {
            lines.push(ls.line());
        }
        let expected = ["f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "large"];
        assert_eq!(lines, expected);
        assert_eq!(ls.result(), "");
        assert_eq!(behind.gate.asked_again(), []);
        drop(freezer);
        behind.finish();
    }
}

/// The new freezer lets a process be killed.
fn killed_while_frozen() {
    let behind = Behind::new(&[]);
    let freezer = Freezer::new(2);
    let mut caller = waiting(&behind, CALLS[1], 1, &[]);
    freezer.add(&caller);
    freezer.freeze();
    caller.interrupted();
    caller.goes_on_waiting();
    caller.signal(SIGKILL);
    assert_eq!(caller.ended_by(), SIGKILL);
    drop(freezer);
    behind.finish();
}

/// What a suspend does to all processes, the daemon among them, is done to these two; the freezer of version 1 is the one that a
/// suspend uses. No machine is suspended here.
fn frozen_with_the_daemon(version: u8) {
    for call in CALLS {
        let behind = Behind::new(&[]);
        let freezer = Freezer::new(version);
        // With nobody waiting both are frozen at once, and go on afterwards.
        behind.warm("n0");
        freezer.add_daemon(&behind);
        freezer.freeze();
        eventually("the daemon is frozen", || freezer.is_frozen());
        freezer.thaw();
        // A call that waits keeps its caller from being frozen: the daemon is, and answers nothing.
        let mut caller = waiting(&behind, call, 1, &[]);
        freezer.add(&caller);
        freezer.freeze();
        caller.interrupted();
        behind.gate.open();
        caller.goes_on_waiting();
        assert!(!freezer.is_frozen(), "{call:?}");
        // As after a suspend that was given up. The call has lost nothing.
        freezer.thaw();
        let line = caller.result();
        let expected = format!("{} after 0 EINTR, 0 signals", call.3);
        assert_eq!(line, expected, "{call:?}");
        assert_eq!(behind.gate.asked_again(), [], "{call:?}");
        drop(freezer);
        behind.finish();
    }
}
