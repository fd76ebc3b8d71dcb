//! The server's tables (`meta.k8s.io/v1` Table) as lines of text.
//!
//! Always holds: a cell holds no control character, so that nothing in an object can steer the terminal.

use serde_json::Value;

use crate::failure::{Outcome, failed};

/// Blanks between columns.
const GAP: usize = 3;

/// Which columns to show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Those of lesser priority too.
    pub(super) wide: bool,
    /// The namespace before all others.
    pub(super) namespaces: bool,
}

/// Columns, and the widths that all rows so far have needed.
#[derive(Debug)]
pub(super) struct Table {
    shape: Shape,
    /// Names of the columns shown, with their index in the server's rows; none for the namespace.
    columns: Vec<(String, Option<usize>)>,
    widths: Vec<usize>,
}

/// The cells of a row, in the table's columns.
pub(super) type Row = Vec<String>;

impl Table {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            columns: Vec::new(),
            widths: Vec::new(),
        }
    }

    /// Takes the rows of a Table object; its columns too, if it is the first.
    pub(super) fn add(&mut self, answer: &Value) -> Outcome<Vec<Row>> {
        if answer["kind"] != "Table" {
            return failed("the server gave no table; is it a Kubernetes API?");
        }
        if let (true, Some(columns)) = (self.columns.is_empty(), answer["columnDefinitions"].as_array()) {
            self.define(columns);
        }
        let rows = answer["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
        let rows: Vec<Row> = rows.iter().map(|row| self.row(row)).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        Ok(rows)
    }

    fn define(&mut self, definitions: &[Value]) {
        if self.shape.namespaces {
            self.columns.push(("NAMESPACE".to_owned(), None));
        }
        for (at, column) in definitions.iter().enumerate() {
            if self.shape.wide || column["priority"].as_i64().unwrap_or(0) == 0 {
                let name = column["name"].as_str().unwrap_or_default().to_uppercase();
                self.columns.push((clean(&name), Some(at)));
            }
        }
        self.widths = self
            .columns
            .iter()
            .map(|(name, _)| name.chars().count())
            .collect();
    }

    fn row(&self, row: &Value) -> Row {
        let cell = |(_, at): &(String, Option<usize>)| match at {
            None => text(&row["object"]["metadata"]["namespace"]),
            Some(at) => text(&row["cells"][*at]),
        };
        self.columns.iter().map(cell).collect()
    }

    /// The rows as lines, under the columns' names if wished.
    pub(super) fn lines(&self, rows: &[Row], header: bool) -> Vec<String> {
        let names: Row = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let header = header.then_some(names);
        header.iter().chain(rows).map(|row| self.line(row)).collect()
    }

    fn line(&self, row: &Row) -> String {
        let mut out = String::new();
        for (cell, width) in row.iter().zip(&self.widths) {
            out.push_str(cell);
            let blanks = width.saturating_sub(cell.chars().count()) + GAP;
            out.extend(std::iter::repeat_n(' ', blanks));
        }
        out.truncate(out.trim_end().len());
        out
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => clean(text),
        Value::Null => "<none>".to_owned(),
        other => other.to_string(),
    }
}

fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(shape: Shape) -> Vec<String> {
        let answer = json!({
            "kind": "Table",
            "columnDefinitions": [
                {"name": "Name", "priority": 0}, {"name": "Ready", "priority": 0}, {"name": "IP", "priority": 1},
            ],
            "rows": [
                {"cells": ["a", "1/1", "10.0.0.1"], "object": {"metadata": {"namespace": "default"}}},
                {"cells": ["long\u{1b}[2Jer", "0/1", null], "object": {"metadata": {"namespace": "x"}}},
            ],
        });
        let mut table = Table::new(shape);
        let rows = table.add(&answer).unwrap_or_default();
        table.lines(&rows, true)
    }

    #[test]
    fn tables() {
        assert_eq!(
            shown(Shape {
                wide: false,
                namespaces: false
            }),
            ["NAME         READY", "a            1/1", "long [2Jer   0/1"]
        );
        assert_eq!(
            shown(Shape {
                wide: true,
                namespaces: true
            }),
            [
                "NAMESPACE   NAME         READY   IP",
                "default     a            1/1     10.0.0.1",
                "x           long [2Jer   0/1     <none>",
            ]
        );
        assert!(
            Table::new(Shape {
                wide: false,
                namespaces: false
            })
            .add(&json!({"kind": "PodList"}))
            .is_err()
        );
    }
}
