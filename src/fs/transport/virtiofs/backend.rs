use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
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
    device::{Device, Next},
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
    /// Descriptors that end the threads. The crate registers them and never closes them.
    exits: Mutex<Vec<RawFd>>,
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
            exits: Mutex::default(),
        }
    }

    fn serve(&self, number: usize, ring: &Ring, work: &mut Work) {
        for slot in self.device.start(number, ring) {
            self.run_again(slot, work);
        }
        loop {
            match self.device.take(number, ring, &mut work.request) {
                Next::Request(slot) => self.handle(slot, work),
                Next::Rubbish => tracing::debug!(number, "the guest put no request there"),
                Next::Nothing | Next::Idle => return,
            }
        }
    }

    fn run_again(&self, slot: u64, work: &mut Work) {
        match self.device.read(slot, &mut work.request) {
            true => self.handle(slot, work),
            false => self.device.give_back(slot),
        }
    }

    fn handle(&self, slot: u64, work: &mut Work) {
        let Work { request, scratch } = work;
        let Some(message) = Message::whole(slot, request) else {
            return self.device.give_back(slot);
        };
        let has_answer = message.has_answer();
        self.dispatcher.handle(&message, scratch);
        if !has_answer {
            self.device.give_back(slot);
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let exits = self.exits.get_mut().unwrap_or_else(PoisonError::into_inner);
        for descriptor in exits.drain(..) {
            // SAFETY: the threads that waited for it have ended, since each holds this; the crate has given it up to the
            // system call alone.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
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
        let flags = EventFlag::NONBLOCK | EventFlag::CLOEXEC;
        let (consumer, notifier) = new_event_consumer_and_notifier(flags).ok()?;
        let mut exits = self.exits.lock().unwrap_or_else(PoisonError::into_inner);
        exits.push(consumer.as_raw_fd());
        Some((consumer, notifier))
    }

    fn stop_vring(&self, number: u32) -> io::Result<()> {
        let number = number as usize;
        // Of one that has had no event yet, nothing was taken.
        if let Some(ring) = self
            .threads
            .get(number)
            .and_then(|thread| thread.ring.get())
        {
            self.device.stop(number, ring);
        }
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
        self.serve(thread, ring, &mut work);
        Ok(())
    }
}
