//! Programs that start from the mount.

use super::lab::{Lab, Remote};

pub fn python(_: &Lab, _: &Remote) -> String {
    "not measured | ".to_owned()
}

pub fn rustc(_: &Lab, _: &Remote) -> String {
    "not measured | ".to_owned()
}
