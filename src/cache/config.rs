use std::{path::PathBuf, str::FromStr};

use super::Check;

/// What a cache is told when it is opened.
#[derive(Debug, Clone)]
pub struct Config {
    pub dir: PathBuf,
    /// The most bytes the directory may take; `None` keeps what was said last, or [`Quota::default_for`].
    pub size: Option<Quota>,
    /// Whether `size` holds also for a cache that has another one.
    pub resizes: bool,
    /// Bytes or share of the filesystem that stay free.
    pub min_free: Quota,
    /// Bytes for the memory tier and everything in flight together.
    pub memory: u64,
    /// When bytes on disk are hashed that are served.
    pub check: Check,
    /// Serve the bytes of a blob that its remote does not cut as they come, before the whole was verified.
    pub trust_streams: bool,
    pub bandwidth: Bandwidth,
    /// Whether what is fetched is to stay, as `castore fetch` has it: it waits for a disk that is slower than the remotes, and makes room for
    /// itself as what is used does. Otherwise readers wait for no disk, and what does not come in time is left out.
    pub keeps: bool,
}

/// The most that is fetched, in bytes a second; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bandwidth {
    /// Of everything.
    pub all: Option<u64>,
    /// Of what no reader waits for.
    pub prefetch: Option<u64>,
}

/// Why a text is no bandwidth.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no bandwidth; write bytes a second with B, KiB, MiB or GiB, such as 10MiB, or prefetch:10MiB for what is fetched ahead alone"
)]
pub struct BandwidthError(String);

impl FromStr for Bandwidth {
    type Err = BandwidthError;

    fn from_str(text: &str) -> Result<Self, BandwidthError> {
        let error = || BandwidthError(text.to_owned());
        let mut bandwidth = Self::default();
        for part in text.split(',') {
            let (limit, rate) = match part.trim().strip_prefix("prefetch:") {
                Some(rate) => (&mut bandwidth.prefetch, rate),
                None => (&mut bandwidth.all, part.trim()),
            };
            let rate = rate.trim_end_matches("/s");
            match rate.parse() {
                // Without a unit, most people would mean something else than bytes.
                Ok(Quota::Bytes(bytes)) if bytes > 0 && limit.is_none() && rate.ends_with('B') => {
                    *limit = Some(bytes);
                }
                _ => return Err(error()),
            }
        }
        Ok(bandwidth)
    }
}

/// A number of bytes, or a share of the filesystem that the cache is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    Bytes(u64),
    /// In hundredths of a per cent.
    Share(u16),
}

/// The memory tier's size when nobody said anything, in bytes.
const DEFAULT_MEMORY: u64 = 256 << 20;

/// 256 MiB, or a quarter of what the control group allows where that is less.
#[must_use]
pub fn default_memory() -> u64 {
    cgroup_memory().map_or(DEFAULT_MEMORY, |limit| DEFAULT_MEMORY.min(limit / 4))
}

/// Bytes of memory that this machine has, or that the control group allows.
#[must_use]
pub fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    let total = u64::from(info.mem_unit).saturating_mul(info.totalram);
    cgroup_memory().map_or(total, |limit| total.min(limit))
}

/// The least limit of the control groups that this process is in, in bytes; of version 2 or 1.
fn cgroup_memory() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(file).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let group = group.trim_start_matches('/');
        match controllers {
            "" => {
                let base = PathBuf::from("/sys/fs/cgroup");
                let all = base.join(group);
                let groups = all.ancestors().take_while(|path| path.starts_with(&base));
                groups
                    .filter_map(|path| read(path.join("memory.max")))
                    .min()
            }
            "memory" => read(
                PathBuf::from("/sys/fs/cgroup/memory")
                    .join(group)
                    .join("memory.limit_in_bytes"),
            ),
            _ => None,
        }
    });
    limits.min()
}

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size; write a number and B, KiB, MiB, GiB, TiB or %, such as 20GiB or 10%")]
pub struct QuotaError(String);

impl Quota {
    /// The most that a cache takes when nobody said anything.
    const DEFAULT_MAX: u64 = 50 << 30;

    /// The smaller of 20 % of the filesystem and 50 GiB.
    #[must_use]
    pub fn default_for(filesystem: u64) -> u64 {
        Self::Share(20_00).bytes(filesystem).min(Self::DEFAULT_MAX)
    }

    /// In bytes, on a filesystem of `filesystem` bytes.
    #[must_use]
    pub fn bytes(self, filesystem: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(share) => (u128::from(filesystem) * u128::from(share) / 10_000)
                .try_into()
                .unwrap_or(u64::MAX),
        }
    }
}

impl FromStr for Quota {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Self, QuotaError> {
        let error = || QuotaError(text.to_owned());
        let text = text.trim();
        let split = text
            .find(|char: char| !char.is_ascii_digit() && char != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = unit.trim();
        let number: f64 = number.parse().map_err(|_| error())?;
        if unit == "%" {
            let share = number * 100.0;
            return if (0.0..=10_000.0).contains(&share) {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "the range was checked"
                )]
                Ok(Self::Share(share as u16))
            } else {
                Err(error())
            };
        }
        let shift = match unit {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(error()),
        };
        #[expect(clippy::cast_precision_loss, reason = "a power of two is exact")]
        let bytes = number * (1_u64 << shift) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range is checked"
        )]
        if (0.0..9e18).contains(&bytes) {
            Ok(Self::Bytes(bytes as u64))
        } else {
            Err(error())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, quota) in [
            ("0", Quota::Bytes(0)),
            ("512", Quota::Bytes(512)),
            ("7B", Quota::Bytes(7)),
            ("1.5 KiB", Quota::Bytes(1536)),
            ("20GiB", Quota::Bytes(20 << 30)),
            ("2TiB", Quota::Bytes(2 << 40)),
            ("5%", Quota::Share(500)),
            ("0.25%", Quota::Share(25)),
        ] {
            assert_eq!(text.parse(), Ok(quota), "{text}");
        }
        for text in [
            "",
            "GiB",
            "1GB",
            "-1",
            "1e9",
            "101%",
            "1.2.3",
            "20 GiB!",
            "9999999999TiB",
        ] {
            assert!(text.parse::<Quota>().is_err(), "{text}");
        }
    }

    #[test]
    fn bandwidths_are_read() {
        let of = |all, prefetch| Ok(Bandwidth { all, prefetch });
        assert_eq!("1MiB".parse(), of(Some(1 << 20), None));
        assert_eq!("2KiB/s".parse(), of(Some(2 << 10), None));
        assert_eq!("prefetch:5B".parse(), of(None, Some(5)));
        assert_eq!("10KiB,prefetch:5B".parse(), of(Some(10 << 10), Some(5)));
        for text in ["", "0B", "10", "5%", "1MB", "1B,2B", "prefetch:", "all:5"] {
            assert!(text.parse::<Bandwidth>().is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_of_the_filesystem() {
        assert_eq!(Quota::Share(50_00).bytes(200), 100);
        assert_eq!(Quota::default_for(100 << 30), 20 << 30);
        assert_eq!(Quota::default_for(1 << 50), 50 << 30);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String, filesystem: u64) {
            if let Ok(quota) = text.parse::<Quota>() {
                let _ = quota.bytes(filesystem);
            }
        }
    }
}
