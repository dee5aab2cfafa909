//! Tables for people: columns as wide as what stands in them.

use std::fmt::Write as _;

/// A heading and rows of cells, in columns. Cells hold nothing that a terminal would take for a command: ids, numbers, and
/// names that were checked when they were made.
pub(super) fn table<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = [heading.map(str::to_owned)].into_iter().chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut table = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string can't fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

/// A Unix time for people, in UTC.
pub(super) fn moment(unix_s: u64) -> String {
    let moment = i64::try_from(unix_s).ok().and_then(|unix_s| jiff::Timestamp::from_second(unix_s).ok());
    moment.map_or_else(|| "?".to_owned(), |moment| moment.to_string())
}

/// The same for a time that may not be.
pub(super) fn moment_or(unix_s: Option<u64>, otherwise: &str) -> String {
    unix_s.map_or_else(|| otherwise.to_owned(), moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["acme", "1"], ["globex-corp", "23"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(["tenant", "jobs"], rows), "tenant       jobs\nacme         1\nglobex-corp  23\n");
        assert_eq!(table(["tenant"], []), "tenant\n");
    }
}
