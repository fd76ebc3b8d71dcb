//! Kubernetes quantities: `250m`, `64Mi`, `1.5`, `12e3`.
//!
//! Always holds: exact integer arithmetic; what does not fit is an error, never a wrong number.

use alloc::string::String;
use core::fmt;

/// A quantity in thousandths of its unit (milli-CPUs, milli-bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    milli: i128,
}

impl Quantity {
    /// Nothing at all.
    pub const ZERO: Self = Self { milli: 0 };

    /// Parses the forms that `k8s.io/apimachinery/pkg/api/resource` takes.
    ///
    /// # Errors
    /// When the text is no number with an optional suffix of `n u m k M G T P E Ki Mi Gi Ti Pi Ei` or a decimal exponent.
    pub fn parse(text: &str) -> Result<Self, BadQuantity> {
        let bad = || BadQuantity(text.chars().take(64).collect());
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty())
            || fraction.contains('.')
            || whole.len() + fraction.len() > 24
        {
            return Err(bad());
        }
        let (binary, exponent) = scale(suffix).ok_or_else(bad)?;
        let mut value: i128 = 0;
        for digit in whole.bytes().chain(fraction.bytes()) {
            value = value
                .checked_mul(10)
                .and_then(|v| v.checked_add(i128::from(digit - b'0')))
                .ok_or_else(bad)?;
        }
        let value = value.checked_mul(1 << binary).ok_or_else(bad)?;
        let ten = exponent + 3 - i32::try_from(fraction.len()).map_err(|_| bad())?;
        let milli = shift_ten(value, ten).ok_or_else(bad)?;
        Ok(Self {
            milli: if negative { -milli } else { milli },
        })
    }

    /// The value in thousandths, saturating: milli-CPUs for a `cpu`.
    #[must_use]
    pub fn milli(self) -> i64 {
        i64::try_from(self.milli).unwrap_or(if self.milli < 0 { i64::MIN } else { i64::MAX })
    }

    /// The value in whole units, rounded up, saturating: bytes for a `memory`.
    #[must_use]
    pub fn value(self) -> i64 {
        let up = self.milli.div_euclid(1000) + i128::from(self.milli.rem_euclid(1000) != 0);
        i64::try_from(up).unwrap_or(if up < 0 { i64::MIN } else { i64::MAX })
    }
}

/// A suffix as (power of two, power of ten).
fn scale(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => {
            // `parse` takes one sign itself, and no more than one is a number.
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (-24..=24).contains(&exponent).then_some((0, exponent))?
        }
    })
}

/// `value × 10^ten`, rounded up as Kubernetes does where precision runs out.
fn shift_ten(value: i128, ten: i32) -> Option<i128> {
    let power = 10i128.checked_pow(ten.unsigned_abs())?;
    if ten >= 0 {
        value.checked_mul(power)
    } else {
        Some(value / power + i128::from(value % power != 0))
    }
}

/// Text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadQuantity(String);

impl fmt::Display for BadQuantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a quantity: write a number and, if any, one of m k M G T Ki Mi Gi Ti, as in \"250m\" or \"64Mi\"",
            self.0
        )
    }
}

impl core::error::Error for BadQuantity {}

/// Bytes as Kubernetes writes them: in the largest binary unit that needs no fraction.
#[must_use]
pub fn binary(bytes: u64) -> String {
    let units = [
        (60, "Ei"),
        (50, "Pi"),
        (40, "Ti"),
        (30, "Gi"),
        (20, "Mi"),
        (10, "Ki"),
    ];
    let unit = units
        .iter()
        .find(|(bits, _)| bytes > 0 && bytes.is_multiple_of(1 << bits));
    unit.map_or_else(
        || alloc::format!("{bytes}"),
        |(bits, unit)| alloc::format!("{}{unit}", bytes >> bits),
    )
}

/// The resource that pages of this size are: `hugepages-2Mi`.
#[must_use]
pub fn hugepages(size: u64) -> String {
    alloc::format!("hugepages-{}", binary(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_as_kubernetes_reads_them() {
        for (text, milli, value) in [
            ("1", 1000, 1),
            ("250m", 250, 1),
            ("0.5", 500, 1),
            (".5", 500, 1),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("64Mi", 67_108_864_000, 67_108_864),
            ("12e3", 12_000_000, 12_000),
            ("1E3", 1_000_000, 1_000),
            ("1E", i64::MAX, 1_000_000_000_000_000_000),
            ("100n", 1, 1),
            ("-1", -1000, -1),
        ] {
            let parsed = Quantity::parse(text).unwrap();
            assert_eq!((parsed.milli(), parsed.value()), (milli, value), "{text}");
        }
    }

    #[test]
    fn rubbish_is_refused() {
        for text in [
            "",
            "-",
            ".",
            "1.2.3",
            "64mb",
            "64 Mi",
            "1e99",
            "Mi",
            "99999999999999999999999999",
            "1e",
            "0x10",
            "1e++3",
            "1e+-3",
            "1e-",
        ] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_are_written_in_the_largest_unit_that_divides_them() {
        for (bytes, text) in [
            (0, "0"),
            (1000, "1000"),
            (1024, "1Ki"),
            (1536, "1536"),
            (61_440, "60Ki"),
            (2 << 20, "2Mi"),
            (3 << 30, "3Gi"),
            (1 << 60, "1Ei"),
        ] {
            assert_eq!(binary(bytes), text);
            assert_eq!(hugepages(bytes), alloc::format!("hugepages-{text}"));
            assert_eq!(Quantity::parse(text).unwrap().value().unsigned_abs(), bytes);
        }
    }
}
