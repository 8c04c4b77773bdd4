//! What a front end is to do, as bytes.

/// The bytes that say what to do; there is always a next one.
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub const fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        match self.0 {
            [] => 0,
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
        }
    }

    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub fn long(&mut self) -> u32 {
        u32::from(self.word()) | u32::from(self.word()) << 16
    }

    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(len.min(self.0.len()));
        self.0 = later;
        now
    }

    pub fn ring(&mut self) -> usize {
        usize::from(self.byte()) % super::RINGS
    }

    /// Mostly small, as real ones are.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            255 => u64::from(self.long()) << 32 | u64::from(self.long()),
            small => small.into(),
        }
    }
}
