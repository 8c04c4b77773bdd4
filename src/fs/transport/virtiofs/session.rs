use std::{
    io,
    os::unix::net::UnixListener,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use vhost::vhost_user::Listener;
use vhost_user_backend::{ShutdownHandle, VhostUserDaemon};
use vm_memory::GuestMemoryAtomic;

use super::{Device, Memory, backend::Backend};
use crate::fs::{
    Filesystem,
    dispatch::{self, Dispatcher, IoMode},
};

/// Why a guest is served no more.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the socket cannot be listened on")]
    Listen(#[source] io::Error),
    /// The crate's error has no source.
    #[error("the vhost-user back end cannot be set up: {0}")]
    BackEnd(String),
}

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
        let device = Arc::new(Device::new(GuestMemoryAtomic::new(Memory::new())));
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

    /// Serves one machine after the other until [`Session::close`]. Blocks, also between machines: a thread of its own is best.
    ///
    /// # Errors
    /// When the socket or the back end fails; a machine that misbehaves or goes is no error.
    pub fn serve(&self) -> Result<(), SessionError> {
        while !self.is_closed.load(Ordering::Acquire) {
            self.serve_one()?;
            // What the guest knew is worth nothing to the next one.
            self.device.forget();
            self.dispatcher.reset();
        }
        Ok(())
    }

    fn serve_one(&self) -> Result<(), SessionError> {
        let backend = Backend::new(
            Arc::clone(&self.device),
            Arc::clone(&self.dispatcher),
            self.queues,
        );
        let back_end = |error: vhost_user_backend::Error| SessionError::BackEnd(error.to_string());
        let mut daemon = VhostUserDaemon::new(
            "vhost-user".to_owned(),
            Arc::new(backend),
            self.device.memory(),
        )
        .map_err(back_end)?;
        {
            let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
            daemon.start(&mut listener).map_err(back_end)?;
        }
        tracing::info!("a machine has connected");
        *self.connection() = daemon.shutdown_handle();
        if self.is_closed.load(Ordering::Acquire) {
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

    /// Answers what waits with EIO, and ends the connection.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.dispatcher.reset();
        if let Some(connection) = self.connection().take() {
            connection.shutdown();
        }
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
