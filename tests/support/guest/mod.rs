//! A guest under QEMU's emulation, and the back ends of vhost-user-fs that serve trees to it.
//!
//! - `machine`: boots a guest, runs scripts in it, resets it, powers it off
//! - `initramfs`: what the guest boots with
//! - `serial`: how scripts get into the guest and their output gets out of it
//! - `program`: has the guest run this very program
//! - `qmp`: how QEMU is asked for a reset
//! - `back_end`: the daemons that serve a tree to the guest
//!
//! `contrib/test-vm.sh` gets what the guest needs.

pub mod back_end;
mod initramfs;
pub mod machine;
pub mod program;
mod qmp;
mod serial;
