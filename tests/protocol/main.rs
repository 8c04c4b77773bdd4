//! The FUSE protocol over a socketpair: what each operation answers, and that every request is answered once, whatever comes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test fails by panicking, builds its own runtime, and its modules are for each other"
)]

#[path = "../support/mod.rs"]
mod support;

mod interrupts;
mod operations;
mod panics;
mod peer;
mod sequences;
