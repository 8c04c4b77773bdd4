//! Remotes as a user meets them: servers, names, Nix stores, moving trees, being away, settings.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and blocks on what it tests"
)]

mod away;
mod golden;
mod names;
mod nix;
mod serve;
mod settings;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod transfer;
mod web;
