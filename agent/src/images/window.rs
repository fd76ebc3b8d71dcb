//! When images may be pulled: times of the day, in UTC.

use std::fmt;

use serde::Deserialize;

const DAY: u64 = 24 * 60;

/// `01:00-05:30`; one that ends before it begins goes over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Window {
    /// Minutes since midnight.
    from: u64,
    to: u64,
}

/// What holds at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Pulls may go on, for so many seconds where there is an end.
    Open(Option<u64>),
    /// None may.
    Closed,
}

impl TryFrom<String> for Window {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let minutes = |text: &str| {
            let (hours, minutes) = text.trim().split_once(':')?;
            let number = |text: &str| (text.len() == 2).then(|| text.parse::<u64>().ok()).flatten();
            let (hours, minutes) = (number(hours)?, number(minutes)?);
            (hours <= 24 && minutes < 60 && hours * 60 + minutes <= DAY).then_some(hours * 60 + minutes)
        };
        let parts = text.split_once('-');
        let parsed = parts.and_then(|(from, to)| Some((minutes(from)?, minutes(to)?)));
        match parsed {
            Some((from, to)) if from % DAY != to % DAY && from < DAY => Ok(Self { from, to }),
            _ => Err(format!(
                "{text:?} must be two different times of the day in UTC, such as \"01:00-05:30\""
            )),
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |minutes: u64| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        write!(f, "{}-{}", time(self.from), time(self.to))
    }
}

impl Window {
    /// Seconds for which it is open at that second of the day; nothing where it is not.
    fn open(self, second: u64) -> Option<u64> {
        let (from, to) = (self.from * 60, self.to * 60);
        let in_it = if from < to {
            (from..to).contains(&second)
        } else {
            second >= from || second < to
        };
        in_it.then(|| (to + DAY * 60 - second - 1) % (DAY * 60) + 1)
    }
}

/// What holds at a time, seconds since 1970. Without windows, and before there is a time, it is always open.
pub(crate) fn state(windows: &[Window], unix: i64, is_time: bool) -> State {
    if windows.is_empty() || !is_time {
        return State::Open(None);
    }
    let second = u64::try_from(unix).unwrap_or(0) % (DAY * 60);
    // One may begin where another ends.
    let mut lasts = 0;
    while let Some(more) = windows
        .iter()
        .filter_map(|it| it.open((second + lasts) % (DAY * 60)))
        .max()
    {
        lasts += more;
        if lasts >= DAY * 60 {
            return State::Open(None);
        }
    }
    if lasts > 0 {
        return State::Open(Some(lasts));
    }
    State::Closed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(texts: &[&str]) -> Vec<Window> {
        texts
            .iter()
            .map(|it| Window::try_from((*it).to_owned()).unwrap())
            .collect()
    }

    #[test]
    fn windows_open_and_close_by_the_clock() {
        let at = |hours: i64, minutes: i64| 86_400 * 20_000 + hours * 3600 + minutes * 60;
        let hour = 3600;
        for (texts, unix, expected) in [
            (&[][..], at(3, 0), State::Open(None)),
            (&["01:00-05:00"], at(0, 59), State::Closed),
            (&["01:00-05:00"], at(1, 0), State::Open(Some(4 * hour))),
            (&["01:00-05:00"], at(5, 0), State::Closed),
            (&["22:00-02:00"], at(23, 0), State::Open(Some(3 * hour))),
            (&["22:00-02:00"], at(1, 0), State::Open(Some(hour))),
            (&["22:00-02:00"], at(2, 0), State::Closed),
            (
                &["22:00-24:00", "00:00-02:00"],
                at(23, 0),
                State::Open(Some(3 * hour)),
            ),
            (&["00:00-12:00", "12:00-24:00"], at(7, 0), State::Open(None)),
            (&["01:00-02:00", "13:00-14:00"], at(2, 0), State::Closed),
        ] {
            assert_eq!(
                state(&windows(texts), unix, true),
                expected,
                "{texts:?} at {unix}"
            );
        }
        assert_eq!(
            state(&windows(&["01:00-05:00"]), at(7, 0), false),
            State::Open(None)
        );
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "1:00-2:00",
            "01:00",
            "01:00-01:00",
            "25:00-26:00",
            "01:60-02:00",
            "24:00-01:00",
            "00:00-24:00",
        ] {
            assert!(Window::try_from(text.to_owned()).is_err(), "{text}");
        }
        assert_eq!(windows(&["22:00-06:30"])[0].to_string(), "22:00-06:30");
    }
}
