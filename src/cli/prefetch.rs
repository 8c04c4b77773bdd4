use std::str::FromStr;

use clap::Args;

use crate::prefetch;

/// What is fetched before anybody asks for it.
#[derive(Debug, Clone, Args)]
pub(super) struct PrefetchArgs {
    /// What is fetched ahead of readers: off, auto or tree
    #[arg(
        long,
        env = "CASTORE_PREFETCH",
        value_name = "WHAT",
        default_value = "auto"
    )]
    prefetch: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Off,
    Auto,
}

impl FromStr for What {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            _ => Err("write off or auto".to_owned()),
        }
    }
}

impl PrefetchArgs {
    pub(super) const fn mode(&self) -> prefetch::Mode {
        match self.prefetch {
            What::Off => prefetch::Mode::Off,
            What::Auto => prefetch::Mode::Auto,
        }
    }
}
