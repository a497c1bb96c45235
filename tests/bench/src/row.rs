//! One figure, beside what it is held against: the form that every benchmark writes.

use serde::Serialize;

use crate::Figure;

/// What a row is to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Value / peer's value is at least this.
    RatioAtLeast(f64),
    /// Value / peer's value is at most this.
    RatioAtMost(f64),
    /// The value is at most this, in the row's unit.
    AtMost(f64),
    /// The value is at least this, in the row's unit.
    AtLeast(f64),
}

impl Goal {
    fn text(self) -> String {
        match self {
            Self::RatioAtLeast(bound) => format!("ratio ≥ {bound}"),
            Self::RatioAtMost(bound) => format!("ratio ≤ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
            Self::AtLeast(bound) => format!("≥ {bound}"),
        }
    }

    /// None where there is no ratio to judge.
    fn is_met(self, value: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Self::RatioAtLeast(bound) => ratio.map(|r| r >= bound),
            Self::RatioAtMost(bound) => ratio.map(|r| r <= bound),
            Self::AtMost(bound) => Some(value <= bound),
            Self::AtLeast(bound) => Some(value >= bound),
        }
    }
}

/// What a figure is held against.
#[derive(Debug, Clone, Copy)]
pub struct Against<'a> {
    /// The peer's or limit's name.
    pub what: &'a str,
    /// What it did in the same run, in the row's unit; one sample for each of the row's, in the same order, or
    /// samples of its own rounds.
    pub figure: &'a Figure,
}

/// A row of a benchmark's table and of its JSON file, which has exactly these fields.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub row: String,
    /// Median over the runs.
    pub value: f64,
    /// Unit of `value` and `against_value`.
    pub unit: String,
    /// What it is held against, if anything.
    pub against: Option<String>,
    /// Median of that.
    pub against_value: Option<f64>,
    /// Median over the runs of value / peer's value of the same round.
    pub ratio: Option<f64>,
    /// What it is to reach, if there is a goal.
    pub goal: Option<String>,
    /// Whether it does; none without a goal.
    pub met: Option<bool>,
    /// Number of runs behind `value`.
    pub runs: usize,
    /// (largest − smallest) / median of the runs; 0 for one run.
    pub spread: f64,
}

impl Row {
    /// A row from the samples of a figure.
    #[must_use]
    pub fn new(
        row: impl Into<String>,
        unit: &str,
        figure: &Figure,
        against: Option<Against<'_>>,
        goal: Option<Goal>,
    ) -> Self {
        let value = figure.median();
        let ratio = against.and_then(|a| figure.ratio(a.figure));
        Self {
            row: row.into(),
            value,
            unit: unit.to_owned(),
            against: against.map(|a| a.what.to_owned()),
            against_value: against.map(|a| a.figure.median()),
            ratio,
            goal: goal.map(Goal::text),
            met: goal.and_then(|goal| goal.is_met(value, ratio)),
            runs: figure.runs(),
            spread: figure.spread(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_exactly_the_agreed_fields() {
        let figure = Figure::from(vec![9.0, 8.0, 10.0]);
        let peer = Figure::from(vec![10.0, 10.0, 10.0]);
        let against = Against {
            what: "bare",
            figure: &peer,
        };
        let row = Row::new(
            "claims",
            "1/s",
            &figure,
            Some(against),
            Some(Goal::RatioAtLeast(0.8)),
        );
        let json = serde_json::to_value(&row).unwrap();
        let mut fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        let mut agreed = [
            "row",
            "value",
            "unit",
            "against",
            "against_value",
            "ratio",
            "goal",
            "met",
            "runs",
            "spread",
        ];
        agreed.sort_unstable();
        assert_eq!(fields, agreed);
        assert_eq!((row.value, row.ratio, row.met), (9.0, Some(0.9), Some(true)));
        assert_eq!((row.runs, row.spread), (3, 2.0 / 9.0));
    }

    #[test]
    fn a_goal_is_missed_or_not_judged() {
        let figure = Figure::from(vec![1.2]);
        let row = Row::new("attempts", "", &figure, None, Some(Goal::AtMost(1.05)));
        assert_eq!(row.met, Some(false));
        let row = Row::new("rate", "1/s", &figure, None, Some(Goal::RatioAtLeast(0.8)));
        assert_eq!(row.met, None);
        assert_eq!(Row::new("rate", "1/s", &figure, None, None).met, None);
    }
}
