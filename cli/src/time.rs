//! Durations as Go and kubectl write them: `90s`, `5m`, `1h30m`, `2d`.

/// A duration in whole seconds, rounded up.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no duration: write it as 90s, 5m or 1h30m");
    let mut total: f64 = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return Err(bad()),
        };
        rest = &rest[letters..];
        total += number * unit;
    }
    // Ten years; more is a slip of the hand, and would not fit everywhere.
    if total <= 0.0 || total > 315_360_000.0 {
        return Err(bad());
    }
    Ok(total.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("90s", 90),
            ("5m", 300),
            ("1h30m", 5400),
            ("2d", 172_800),
            ("1.5m", 90),
            ("1500ms", 2),
        ] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for text in [
            "", "5", "m", "5x", "1h 30m", "-5m", "0s", "99999d", "1..5s", "5é", "NaNs",
        ] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
