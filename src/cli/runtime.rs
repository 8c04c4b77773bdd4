use std::{
    future::Future,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::Command,
    sync::{Arc, OnceLock},
};

use rustix::fs::Mode;
use tokio::signal::unix::{SignalKind, signal};

use super::daemon::Log;

/// Runs a command's future to its end. The only place that blocks on one.
pub(super) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("castore")
        // Deep trees are walked and built by recursion.
        .thread_stack_size(16 << 20)
        .build()?;
    #[expect(clippy::disallowed_methods, reason = "this is that place")]
    let result = runtime.block_on(future);
    // A thread that is stuck, in a read from a dead disk say, must not keep the process alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// The umask that this process was started with.
static UMASK: OnceLock<Mode> = OnceLock::new();

/// Names the process: one that was started from `/proc/self/exe` is called `exe` in `top` and in the kernel's messages. Sees
/// that files and directories made here can be used by their owner, whatever the umask. Called before there are threads.
pub(super) fn introduce() {
    let _ = rustix::thread::set_name(c"castore");
    let given = rustix::process::umask(Mode::RWXU.complement());
    rustix::process::umask(given - Mode::RWXU);
    let _ = UMASK.set(given);
}

/// Gives a command that the user wants to run the umask that the user has.
fn hand_umask_on(command: &mut Command) {
    let Some(umask) = UMASK.get().copied() else {
        return;
    };
    // SAFETY: between `fork` and `exec`, this makes one system call.
    unsafe {
        command.pre_exec(move || {
            rustix::process::umask(umask);
            Ok(())
        });
    }
}

/// Logs to stderr.
pub(super) fn log_to_stderr() {
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ = subscriber()
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .try_init();
}

/// Logs to the file of a background process.
pub(super) fn log_to(log: Arc<Log>) {
    let _ = subscriber().with_ansi(false).with_writer(log).try_init();
}

type Subscriber = tracing_subscriber::fmt::SubscriberBuilder<
    tracing_subscriber::fmt::format::DefaultFields,
    tracing_subscriber::fmt::format::Format,
    tracing_subscriber::EnvFilter,
>;

fn subscriber() -> Subscriber {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_env_var("CASTORE_LOG")
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env_lossy()
        // The crate that mounts says what it does at each step.
        .add_directive(
            "fuse_backend_rs=warn"
                .parse()
                .unwrap_or_else(|_| tracing::level_filters::LevelFilter::INFO.into()),
        );
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A line that cannot be written, to a terminal that is gone say, would be reported there, and that panics.
        .log_internal_errors(false)
}

/// Runs a command to its end. An interrupt from the terminal (Ctrl-C) is for it, and does not end this process; a request to
/// end is handed on to it.
///
/// # Errors
/// When it cannot be started.
pub(super) fn run(mut command: Command) -> anyhow::Result<std::process::ExitStatus> {
    hand_umask_on(&mut command);
    block_on(async {
        let _swallowed = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let mut ended = tokio::task::spawn_blocking(move || child.wait());
        loop {
            tokio::select! {
                status = &mut ended => return Ok(status??),
                _ = terminate.recv() => {
                    if let Some(pid) = pid {
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                    }
                }
            }
        }
    })
}

/// The exit status that a shell gives for that of a command.
pub(super) fn code(status: std::process::ExitStatus) -> std::process::ExitCode {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal);
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1)
        .into()
}
