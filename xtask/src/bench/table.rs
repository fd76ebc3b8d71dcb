//! Promises beside figures, and the statistics that both need.

use std::fmt;

/// Whether a promise is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Kept,
    Missed,
    /// There is no figure to judge.
    Unknown,
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    promise: f64,
    figure: Option<f64>,
    pub(crate) verdict: Verdict,
    note: String,
}

impl Row {
    /// A figure that must not be above the promise.
    pub(crate) fn at_most(what: &str, unit: &'static str, promise: f64, figure: f64, note: &str) -> Self {
        let verdict = if figure <= promise {
            Verdict::Kept
        } else {
            Verdict::Missed
        };
        Self {
            what: what.into(),
            unit,
            promise,
            figure: Some(figure),
            verdict,
            note: note.into(),
        }
    }

    /// A promise for which no figure could be had, and why.
    pub(crate) fn unknown(what: &str, unit: &'static str, promise: f64, why: &str) -> Self {
        Self {
            what: what.into(),
            unit,
            promise,
            figure: None,
            verdict: Verdict::Unknown,
            note: why.into(),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figure = self
            .figure
            .map_or_else(|| "-".to_owned(), |figure| format!("{figure:.2}"));
        let ratio = match self.figure {
            Some(figure) if self.promise > 0.0 => format!("{:.2}", figure / self.promise),
            _ => "-".to_owned(),
        };
        let verdict = match self.verdict {
            Verdict::Kept => "kept",
            Verdict::Missed => "MISSED",
            Verdict::Unknown => "no figure",
        };
        let promise = format!("<= {}", self.promise);
        write!(
            f,
            "{:<44} {:>9} {figure:>10} {:<5} {ratio:>6}  {verdict:<9} {}",
            self.what, promise, self.unit, self.note
        )
    }
}

/// Prints the table under its heading.
pub(crate) fn print(rows: &[Row]) {
    println!(
        "{:<44} {:>9} {:>10} {:<5} {:>6}  {:<9}",
        "promise", "bound", "figure", "unit", "ratio", "verdict"
    );
    for row in rows {
        println!("{}", row.to_string().trim_end());
    }
}

/// Least, median and greatest of some figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) greatest: f64,
}

impl Spread {
    /// `None` when there are no figures.
    pub(crate) fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let greatest = *sorted.last()?;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self {
            least: sorted[0],
            median,
            greatest,
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} / {:.1} / {:.1} ms",
            self.least, self.median, self.greatest
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        let median = |figures: &[f64]| Spread::of(figures).map(|spread| spread.median);
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn a_promise_is_kept_up_to_its_bound() {
        assert_eq!(Row::at_most("x", "ms", 20.0, 20.0, "").verdict, Verdict::Kept);
        assert_eq!(Row::at_most("x", "ms", 20.0, 20.1, "").verdict, Verdict::Missed);
        // Zero bytes promised: any byte breaks it, and there is no ratio.
        let row = Row::at_most("x", "bytes", 0.0, 1.0, "");
        assert_eq!(row.verdict, Verdict::Missed);
        assert!(row.to_string().contains('-'));
    }
}
