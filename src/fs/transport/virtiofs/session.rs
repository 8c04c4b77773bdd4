use std::{
    os::unix::net::UnixListener,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use vhost::vhost_user::Listener;
use vhost_user_backend::{ShutdownHandle, VhostUserDaemon};

use super::{Device, backend::Backend};
use crate::fs::{
    Filesystem,
    dispatch::{self, Dispatcher, IoMode},
};

/// After something has failed, machines are listened for again after this time.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// What waits is answered within this time at the end, or never.
const CLOSE_WITHIN: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A filesystem that machines connect to, one after the other, each with a guest of its own.
pub struct Session {
    dispatcher: Arc<Dispatcher>,
    device: Arc<Device>,
    listener: Mutex<Listener>,
    queues: usize,
    is_closed: AtomicBool,
    /// Ends the connection that there is now.
    connection: Mutex<Option<ShutdownHandle>>,
}

impl Session {
    /// `queues` are those for requests. Must be called within a tokio runtime, in which fetches run.
    #[must_use]
    pub fn new(fs: &Arc<Filesystem>, listener: UnixListener, queues: usize) -> Self {
        let device = Arc::new(Device::new());
        let options = dispatch::Options {
            io_mode: IoMode::Large,
            longest_wait: None,
        };
        let dispatcher = Dispatcher::new(Arc::clone(fs), Arc::clone(&device) as _, options);
        Self {
            dispatcher,
            device,
            listener: Mutex::new(listener.into()),
            queues,
            is_closed: AtomicBool::new(false),
            connection: Mutex::default(),
        }
    }

    /// Serves one machine after the other until [`Session::close`]. Blocks, also between machines, and is not woken there: a thread of its
    /// own is best.
    pub fn serve(&self) {
        while !self.is_closed() {
            if let Err(error) = self.serve_one() {
                // A machine that came and went too fast, or too many descriptors for a while.
                tracing::warn!(%error, "a machine cannot be served");
                std::thread::sleep(AGAIN_AFTER);
            }
            // What the guest knew is worth nothing to the next one.
            self.device.forget();
            self.dispatcher.reset();
        }
    }

    fn serve_one(&self) -> Result<(), vhost_user_backend::Error> {
        let backend = Backend::new(
            Arc::clone(&self.device),
            Arc::clone(&self.dispatcher),
            self.queues,
        );
        let name = "vhost-user".to_owned();
        let mut daemon = VhostUserDaemon::new(name, Arc::new(backend), self.device.memory())?;
        {
            let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
            daemon.start(&mut listener)?;
        }
        tracing::info!("a machine has connected");
        *self.connection() = daemon.shutdown_handle();
        if self.is_closed() {
            daemon.request_shutdown();
        }
        match daemon.wait() {
            Ok(()) => tracing::info!("the machine has gone"),
            Err(error) => tracing::info!(%error, "the machine has gone"),
        }
        *self.connection() = None;
        for handler in daemon.get_epoll_handlers() {
            handler.send_exit_event();
        }
        Ok(())
    }

    /// Answers what waits with EIO, and ends the connection. What waits in a machine that is paused is not answered.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.device.close();
        let deadline = Instant::now() + CLOSE_WITHIN;
        loop {
            // What is at hand now may begin to wait after this.
            self.dispatcher.reset();
            if self.device.is_idle() || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        if let Some(connection) = self.connection().take() {
            connection.shutdown();
        }
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// How many requests there were of each operation, by its name in the protocol.
    #[must_use]
    pub fn requests(&self) -> Vec<(&'static str, u64)> {
        self.dispatcher.requests().collect()
    }

    fn connection(&self) -> std::sync::MutexGuard<'_, Option<ShutdownHandle>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
