//! Times and ages as Kubernetes writes them.

use jiff::Timestamp;

pub(crate) use crate::store::now;

/// Parses an RFC 3339 time.
pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// `seconds` from now, as Kubernetes writes times.
pub(crate) fn after(seconds: i64) -> String {
    let at = Timestamp::now().as_second().saturating_add(seconds);
    Timestamp::from_second(at).map_or_else(|_| now(), |at| at.to_string())
}

/// The age of something that began at `since`, as `kubectl get` shows it.
pub(crate) fn age(since: &str, now: Timestamp) -> String {
    match parse(since) {
        Some(since) => human(now.as_second() - since.as_second()),
        None => "<unknown>".into(),
    }
}

/// A duration as `kubectl get` shows it: two units at most, the coarser the longer.
pub(crate) fn human(seconds: i64) -> String {
    let pair = |big: i64, unit: char, small: i64, rest: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{rest}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match seconds {
        // A little before now is a clock that runs a little ahead.
        ..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, expected) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_860, "3h1m"),
            (30_000, "8h"),
            (180_000, "2d2h"),
            (700_000, "8d"),
            (70_000_000, "2y80d"),
            (300_000_000, "9y"),
        ] {
            assert_eq!(human(seconds), expected, "{seconds}");
        }
    }
}
