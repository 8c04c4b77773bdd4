use std::{
    io::IsTerminal,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that shows bytes of a total on a terminal, and nothing elsewhere. `look` sets position, length and message each
/// time it is drawn. Must be called within a tokio runtime.
pub(super) fn bar(look: impl Fn(&ProgressBar) + Send + 'static) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    let template = "{spinner} {msg} {bytes}/{total_bytes} {bytes_per_sec} [{wide_bar}] {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let watched = bar.downgrade();
    tokio::spawn(async move {
        while let Some(bar) = watched.upgrade() {
            look(&bar);
            drop(bar);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    bar
}

/// A counter as it is now.
pub(super) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
