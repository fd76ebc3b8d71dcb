//! What a plain scalar means: YAML 1.1's types, as Go's yaml.v2 (and so Kubernetes) reads them.
//!
//! Always holds: text that is no null, boolean or number in those rules is a string, and stays as it was written.

use serde_json::{Number, Value};

/// The value of an unquoted scalar.
pub(super) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "true" | "True" | "TRUE" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "false" | "False" | "FALSE" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Value::String(text.to_owned());
    }
    number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

/// A number, with `_` between its digits if any.
fn number(text: &str) -> Option<Number> {
    let digits: String = text.chars().filter(|c| *c != '_').collect();
    integer(&digits).or_else(|| float(&digits))
}

/// Decimal, `0x` hexadecimal, `0b` binary, and octal as `0o17` or `017`.
fn integer(text: &str) -> Option<Number> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    // One sign only: `u64::from_str_radix` would take another.
    if !rest.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let lower = rest.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some(_) if lower.starts_with('0') => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if digits.starts_with('+') {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        i64::try_from(-i128::from(magnitude)).ok().map(Number::from)
    } else {
        Some(Number::from(magnitude))
    }
}

/// A decimal number with a point or an exponent. Infinity and NaN have no JSON, and stay text.
fn float(text: &str) -> Option<Number> {
    let rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    let legal = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-');
    if !rest.chars().all(legal) || !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    text.parse::<f64>().ok().and_then(Number::from_f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalars_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("Null", json!(null)),
            ("nUll", json!("nUll")),
            ("yes", json!(true)),
            ("On", json!(true)),
            ("y", json!(true)),
            ("off", json!(false)),
            ("NO", json!(false)),
            ("yES", json!("yES")),
            ("123456", json!(123_456)),
            ("1_000", json!(1000)),
            ("-7", json!(-7)),
            ("+7", json!(7)),
            ("0x1F", json!(31)),
            ("0b101", json!(5)),
            ("0644", json!(0o644)),
            ("0o644", json!(0o644)),
            ("0", json!(0)),
            ("09", json!(9.0)),
            ("18446744073709551615", json!(18_446_744_073_709_551_615_u64)),
            ("1.20", json!(1.2)),
            (".5", json!(0.5)),
            ("1e3", json!(1000.0)),
            ("-", json!("-")),
            ("--1", json!("--1")),
            ("+-1", json!("+-1")),
            ("0x", json!("0x")),
            ("0x-1", json!("0x-1")),
            (".", json!(".")),
            (".inf", json!(".inf")),
            ("1.14.2", json!("1.14.2")),
            ("1:30", json!("1:30")),
            ("64Mi", json!("64Mi")),
            ("250m", json!("250m")),
            ("2026-11-21", json!("2026-11-21")),
            ("nginx:latest", json!("nginx:latest")),
            ("é", json!("é")),
        ] {
            assert_eq!(plain(text), expected, "{text}");
        }
    }
}
