//! virtiofs: a guest's requests over vhost-user, from the queues of a device of type 26 (virtio 1.2, 5.11).
//!
//! - [`Device`]: the transport: taking requests off rings, and answering them into guest memory; `unanswered`: those that wait
//! - [`Session`]: a socket that machines connect to, one after the other
//! - `backend`: what the virtual machine monitor asks of a vhost-user back end; a thread for each ring
//! - `chain`: a request in guest memory
//!
//! Nothing of a guest is believed: what its memory says is copied before it is looked at, and checked.

mod backend;
mod chain;
mod device;
mod session;
mod unanswered;

use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

pub use self::{device::Device, session::Session};

/// Memory of a guest, as it is now.
type Memory = GuestMemoryMmap<()>;
type SharedMemory = GuestMemoryAtomic<Memory>;
type Ring = vhost_user_backend::VringMutex<SharedMemory>;
