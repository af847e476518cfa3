//! A command's report, as a table or as JSON.

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use logline::{escaped, is_invisible};
use serde::Serialize;
use serde_json::Value;

#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
}

/// The result of a command, and whether the command did everything that was asked for.
pub(crate) struct Report {
    value: Value,
    /// In place of a table.
    line: Option<String>,
    pub complete: bool,
}

impl Report {
    pub(crate) fn new(report: &impl Serialize, complete: bool) -> Self {
        match serde_json::to_value(report) {
            Ok(value) => Self {
                value,
                line: None,
                complete,
            },
            Err(error) => Self {
                value: error.to_string().into(),
                line: None,
                complete: false,
            },
        }
    }

    /// One that is a single line for people.
    pub(crate) fn line(line: &str, report: &impl Serialize) -> Self {
        Self {
            line: Some(line.to_owned()),
            ..Self::new(report, true)
        }
    }

    /// The report as text, with a line break at its end.
    pub(crate) fn text(&self, format: Format) -> String {
        match format {
            Format::Json => {
                let json = self.value.to_string();
                format!("{}\n", String::from_utf8_lossy(&escaped(json.as_bytes())))
            }
            Format::Table => match &self.line {
                Some(line) => format!("{line}\n"),
                None => table(&self.value),
            },
        }
    }
}

/// Renders single values as lines, then each list of objects as columns.
fn table(report: &Value) -> String {
    let Value::Object(fields) = report else {
        return format!("{report}\n");
    };
    let (lists, singles): (Vec<_>, Vec<_>) = fields.iter().partition(|(_, value)| {
        value
            .as_array()
            .is_some_and(|rows| rows.iter().all(Value::is_object))
    });
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    let line = |(name, value): (&String, &Value)| vec![format!("{name:width$}"), cell(value)];
    let mut text = aligned(singles.into_iter().map(line).collect());
    for rows in lists.into_iter().filter_map(|(_, value)| value.as_array()) {
        let Some(Value::Object(first)) = rows.first() else {
            continue;
        };
        let header = first.keys().map(|name| name.to_uppercase()).collect();
        let rows = rows
            .iter()
            .map(|row| first.keys().map(|name| cell(&row[name])).collect());
        text += &aligned(std::iter::once(header).chain(rows).collect());
    }
    text
}

fn aligned(rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_style(NOTHING).add_rows(rows);
    table
        .column_iter_mut()
        .for_each(|column| _ = column.set_padding((0, 2)));
    table.trim_fmt() + "\n"
}

/// Renders a value. Text may be foreign: characters that could control the terminal become `?`.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text
            .chars()
            .map(|letter| {
                if letter.is_control() || is_invisible(letter) {
                    '?'
                } else {
                    letter
                }
            })
            .collect(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::table;

    #[test]
    fn a_table_has_single_values_as_lines_and_lists_as_columns() {
        let report = json!({"count": 2, "leader": null, "rows": [{"id": "a", "n": 1}, {"id": "longer", "n": 22}]});
        assert_eq!(
            table(&report),
            "count   2\nleader  -\nID      N\na       1\nlonger  22\n"
        );
    }

    #[test]
    fn an_empty_list_prints_no_lines_and_controls_are_replaced() {
        assert_eq!(table(&json!({"count": 0, "messages": []})), "count     0\n");
        assert_eq!(
            table(&json!({"reason": "Ж\u{1b}[2J\u{202e}\u{2028}"})),
            "reason  Ж?[2J??\n"
        );
    }
}
