//! A Kubernetes object's uid: 16 bytes on the wire, the usual 36 characters to people.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// A UUID as Kubernetes gives to every object.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Uid(pub [u8; 16]);

impl Uid {
    /// A version 4 UUID from 16 random bytes.
    #[must_use]
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 32 hexadecimal digits in the UUID form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAUid;

impl fmt::Display for NotAUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a UUID of the form 01234567-89ab-cdef-0123-456789abcdef")
    }
}

impl core::error::Error for NotAUid {}

impl FromStr for Uid {
    type Err = NotAUid;

    fn from_str(text: &str) -> Result<Self, NotAUid> {
        let text = text.as_bytes();
        if text.len() != 36 {
            return Err(NotAUid);
        }
        let mut nibbles = [0u8; 32];
        let mut filled = 0;
        for (at, &byte) in text.iter().enumerate() {
            if matches!(at, 8 | 13 | 18 | 23) {
                if byte != b'-' {
                    return Err(NotAUid);
                }
                continue;
            }
            nibbles[filled] = (byte as char).to_digit(16).ok_or(NotAUid)? as u8;
            filled += 1;
        }
        let mut out = [0; 16];
        for (byte, pair) in out.iter_mut().zip(nibbles.chunks(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn text_round_trips_and_rubbish_is_refused() {
        let text = "0e37df36-f698-11e6-8dd0-cb9ced3df976";
        assert_eq!(text.parse::<Uid>().unwrap().to_string(), text);
        for bad in [
            "",
            "0e37df36",
            "0e37df36+f698-11e6-8dd0-cb9ced3df976",
            "0e37df36-f698-11e6-8dd0-cb9ced3df97g",
        ] {
            assert_eq!(bad.parse::<Uid>(), Err(NotAUid), "{bad}");
        }
    }
}
