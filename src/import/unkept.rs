use std::fmt;

/// Counts of what the source had and the model cannot hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unkept {
    /// Files and directories with a setuid, setgid or sticky bit.
    pub special_bits: u64,
    /// Entries whose owner or group is not 0.
    pub owners: u64,
    /// Entries with extended attributes (ACLs among them).
    pub xattrs: u64,
    /// Entries with a modification time.
    pub times: u64,
}

impl Unkept {
    /// `mode` is the mode of `stat`, `times` whether there is a modification time.
    pub(super) fn count(&mut self, mode: u32, uid: u64, gid: u64, xattrs: bool, times: bool) {
        self.special_bits += u64::from(mode & 0o7000 != 0);
        self.owners += u64::from(uid != 0 || gid != 0);
        self.xattrs += u64::from(xattrs);
        self.times += u64::from(times);
    }
}

/// One sentence, or nothing when all was kept.
impl fmt::Display for Unkept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.times, "modification times"),
            (self.owners, "owners (shown as 0:0; see mount --owner)"),
            (self.special_bits, "setuid, setgid or sticky bits"),
            (self.xattrs, "extended attributes"),
        ];
        let mut separator = "not kept, since a tree has no place for it: ";
        for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{what} of {count} entries")?;
            separator = "; ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_only_what_was_lost() {
        let mut unkept = Unkept::default();
        assert_eq!(unkept.to_string(), "");
        unkept.count(0o104_755, 0, 5, false, true);
        assert_eq!(
            unkept.to_string(),
            "not kept, since a tree has no place for it: modification times of 1 entries; \
             owners (shown as 0:0; see mount --owner) of 1 entries; \
             setuid, setgid or sticky bits of 1 entries"
        );
    }
}
