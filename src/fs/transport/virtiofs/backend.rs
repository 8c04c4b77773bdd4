use std::{
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringT};
use virtio_bindings::bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use vmm_sys_util::{
    epoll::EventSet,
    event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier},
};

use super::{
    Ring, SharedMemory,
    device::{Device, Next, Started, Taken},
};
use crate::fs::dispatch::{Dispatcher, Message, Scratch};

/// Entries of a ring, at the most.
const RING_SIZE: usize = 1024;

/// What the monitor of a virtual machine talks to, for one connection. Each ring has a thread.
pub(super) struct Backend {
    device: Arc<Device>,
    dispatcher: Arc<Dispatcher>,
    /// The ring for what must not wait (FORGET), and those for requests.
    threads: Vec<Thread>,
}

#[derive(Default)]
struct Thread {
    /// Its ring, known from the first event on.
    ring: OnceLock<Ring>,
    /// Never waited for.
    work: Mutex<Work>,
}

/// What a thread uses again for each request.
#[derive(Default)]
struct Work {
    request: Vec<u8>,
    scratch: Scratch,
}

impl Backend {
    /// `queues` are those for requests.
    pub(super) fn new(device: Arc<Device>, dispatcher: Arc<Dispatcher>, queues: usize) -> Self {
        Self {
            device,
            dispatcher,
            threads: std::iter::repeat_with(Thread::default)
                .take(queues + 1)
                .collect(),
        }
    }

    fn serve(&self, number: usize, ring: &Ring, work: &mut Work) -> io::Result<()> {
        match self.device.start(number, ring) {
            Started::Running => {}
            Started::Resumed(taken) => {
                for taken in taken {
                    if self.device.read(taken.slot, &mut work.request) {
                        self.handle(&taken, work);
                    }
                }
            }
            Started::Anew => self.dispatcher.reset(),
        }
        loop {
            ring.disable_notification().map_err(io::Error::other)?;
            loop {
                match self.device.take(number, ring, &mut work.request) {
                    Next::Request(taken) => self.handle(&taken, work),
                    Next::Rubbish => tracing::debug!(number, "the guest put no request there"),
                    Next::Nothing => break,
                }
            }
            if !ring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }

    fn handle(&self, taken: &Taken, work: &mut Work) {
        let Work { request, scratch } = work;
        let Some(message) = Message::whole(taken.slot, request) else {
            return self.device.give_back(taken.slot);
        };
        let has_answer = message.has_answer();
        self.dispatcher.handle(&message, scratch);
        if !has_answer {
            self.device.give_back(taken.slot);
        }
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        self.threads.len()
    }

    fn max_queue_size(&self) -> usize {
        RING_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, _: bool) {}

    fn update_memory(&self, _: SharedMemory) -> io::Result<()> {
        // The device shares it.
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.threads.len()).map(|number| 1 << number).collect()
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    fn stop_vring(&self, number: u32) -> io::Result<()> {
        let number = number as usize;
        let ring = self
            .threads
            .get(number)
            .and_then(|thread| thread.ring.get());
        self.device.stop(number, ring);
        Ok(())
    }

    /// `rings` are those of the thread: one.
    fn handle_event(&self, _: u16, _: EventSet, rings: &[Ring], thread: usize) -> io::Result<()> {
        let (Some(of_thread), [ring]) = (self.threads.get(thread), rings) else {
            return Ok(());
        };
        of_thread.ring.get_or_init(|| ring.clone());
        let mut work = of_thread
            .work
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // An error would end the thread, and a guest can make as many as it likes.
        if let Err(error) = self.serve(thread, ring, &mut work) {
            tracing::debug!(%error, thread, "a ring cannot be read");
        }
        Ok(())
    }
}
