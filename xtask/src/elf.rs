//! The few facts of an ELF file that our promises name: machine, interpreter, position independence.
//!
//! The file is input: every offset is checked, nothing is trusted.

use anyhow::{Context as _, Result, bail};

/// What the headers say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `x86_64`, `aarch64`, `arm`, or the number.
    pub(crate) machine: String,
    /// `ET_EXEC`: linked to a fixed address. Otherwise position independent.
    pub(crate) fixed_address: bool,
    /// The dynamic loader (PT_INTERP); a static program has none.
    pub(crate) interpreter: Option<String>,
    /// Whether there is a dynamic section (PT_DYNAMIC).
    pub(crate) dynamic: bool,
}

const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const ET_EXEC: u64 = 2;

impl Facts {
    /// Reads the headers of a little-endian ELF file, 32 or 64 bits.
    pub(crate) fn read(image: &[u8]) -> Result<Self> {
        if image.get(..4) != Some(b"\x7fELF".as_slice()) {
            bail!("not an ELF file");
        }
        if image.get(5) != Some(&1) {
            bail!("not a little-endian ELF file");
        }
        let wide = image.get(4) == Some(&2);
        let (phoff, phentsize, phnum) = if wide {
            (at(image, 32, 8)?, at(image, 54, 2)?, at(image, 56, 2)?)
        } else {
            (at(image, 28, 4)?, at(image, 42, 2)?, at(image, 44, 2)?)
        };
        let mut facts = Self {
            machine: machine(at(image, 18, 2)?),
            fixed_address: at(image, 16, 2)? == ET_EXEC,
            interpreter: None,
            dynamic: false,
        };
        for index in 0..phnum {
            let header = index
                .checked_mul(phentsize)
                .and_then(|o| o.checked_add(phoff))
                .context("absurd header")?;
            match at(image, header, 4)? {
                PT_DYNAMIC => facts.dynamic = true,
                PT_INTERP => facts.interpreter = Some(interpreter(image, header, wide)?),
                _ => {}
            }
        }
        Ok(facts)
    }
}

fn interpreter(image: &[u8], header: u64, wide: bool) -> Result<String> {
    let (offset, size) = if wide {
        (at(image, header + 8, 8)?, at(image, header + 32, 8)?)
    } else {
        (at(image, header + 4, 4)?, at(image, header + 16, 4)?)
    };
    let bytes = slice(image, offset, size)?;
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8(text.to_vec()).context("the interpreter's path is not UTF-8")
}

fn machine(number: u64) -> String {
    match number {
        40 => "arm".into(),
        62 => "x86_64".into(),
        183 => "aarch64".into(),
        other => format!("machine {other}"),
    }
}

/// The little-endian number of `size` bytes at `offset`.
fn at(image: &[u8], offset: u64, size: u64) -> Result<u64> {
    let bytes = slice(image, offset, size)?;
    Ok(bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn slice(image: &[u8], offset: u64, size: u64) -> Result<&[u8]> {
    let start = usize::try_from(offset)?;
    let end = start
        .checked_add(usize::try_from(size)?)
        .context("absurd offset")?;
    image
        .get(start..end)
        .with_context(|| format!("the ELF file ends before byte {end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_executable_is_understood() {
        let image = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let facts = Facts::read(&image).unwrap();
        assert_eq!(facts.machine, std::env::consts::ARCH);
        assert!(facts.interpreter.unwrap().contains("ld-linux"));
        assert!(facts.dynamic);
    }

    #[test]
    fn bad_files_are_errors() {
        let image = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for bad in [&b""[..], b"#!/bin/sh\n", &image[..4], &image[..70]] {
            assert!(Facts::read(bad).is_err(), "{} bytes", bad.len());
        }
    }
}
