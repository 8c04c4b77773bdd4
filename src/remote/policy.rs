use std::{str::FromStr, time::Duration};

/// How long remotes are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// A remote that has sent nothing for this time counts as away, and a request is tried again for about as long.
    pub timeout: Duration,
    pub outage: Outage,
    /// The next remote is asked too when one has not answered after this time; `None`: only when it has failed.
    pub hedge: Option<Duration>,
}

/// What a read of uncached bytes gets when every remote is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// An error, at once after the remotes have been away for the whole time-out.
    Fail,
    /// An error after this time.
    Wait(Duration),
}

impl Policy {
    /// Bytes a second of a link that is slow but alive: larger objects get more time.
    const SLOWEST: u64 = 16 << 10;

    /// The most that one request may take that is answered with so many bytes.
    #[must_use]
    pub fn deadline(&self, bytes: u64) -> Duration {
        self.timeout + Duration::from_secs(bytes / Self::SLOWEST)
    }

    /// The most time between two pieces of an answer.
    #[must_use]
    pub fn idle(&self) -> Duration {
        self.timeout / 3
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            outage: Outage::Fail,
            hedge: None,
        }
    }
}

/// Why a text is no [`Outage`] or no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("{0:?} is not fail or wait=TIME, such as wait=10m")]
    Outage(String),
    #[error("{0:?} is not a time; write a number and ms, s, m or h, such as 30s")]
    Duration(String),
}

impl FromStr for Outage {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text.split_once('=') {
            None if text == "fail" => Ok(Self::Fail),
            Some(("wait", time)) => Ok(Self::Wait(parse_duration(time)?)),
            _ => Err(PolicyError::Outage(text.to_owned())),
        }
    }
}

/// Reads `1500ms`, `30s`, `10m` or `1h`; a bare number is seconds.
///
/// # Errors
/// When the text is no such time, or longer than a year.
pub fn parse_duration(text: &str) -> Result<Duration, PolicyError> {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    let error = || PolicyError::Duration(text.to_owned());
    let split = text
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| error())?;
    let millis = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(error()),
    };
    let time = Duration::from_millis(number.saturating_mul(millis));
    if time > YEAR {
        return Err(error());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_and_outages_are_read() {
        let secs = Duration::from_secs;
        assert_eq!("fail".parse(), Ok(Outage::Fail));
        assert_eq!("wait=10m".parse(), Ok(Outage::Wait(secs(600))));
        assert_eq!("wait=5".parse(), Ok(Outage::Wait(secs(5))));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1h"), Ok(secs(3600)));
        for text in [
            "", "wait", "wait=", "wait=x", "fail=1", "wait=1d", "wait=-1s",
        ] {
            assert!(text.parse::<Outage>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = text.parse::<Outage>();
            let _ = parse_duration(&text);
        }
    }
}
