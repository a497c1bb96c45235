//! What a benchmark leaves: a table on standard output, `target/bench/NAME.json`, and its section of
//! `docs/benchmarks.md`, between markers; what people wrote around them stays.

use std::{
    fmt::Write as _,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use comfy_table::{Table, presets::ASCII_MARKDOWN};

use crate::{Machine, Row};

/// All that a benchmark has found out.
#[derive(Debug)]
pub struct Report {
    /// The benchmark's name: of its file, its section and its command, `make bench-NAME`.
    pub name: &'static str,
    /// The command that was given, for whoever wants to repeat it.
    pub command: String,
    /// How it was measured: a line each, markdown.
    pub method: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
    /// What explains the rows and is not one: markdown.
    pub details: String,
}

/// The benchmarks whose rows stand together in `target/bench/speed.json`, in this order.
const SPEED: [&str; 4] = ["reach", "programming", "packets", "growth"];

const HEAD: [&str; 8] = [
    "row",
    "value",
    "unit",
    "against",
    "its value",
    "ratio",
    "goal",
    "spread",
];

impl Report {
    /// Prints the table and writes both files.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn publish(&self, machine: &Machine) -> Result<()> {
        self.print();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let json = root.join(format!("target/bench/{}.json", self.name));
        write(&json, &format!("{}\n", serde_json::to_string_pretty(&self.rows)?))?;
        if SPEED.contains(&self.name) {
            gather(&root.join("target/bench"))?;
        }
        let docs = root.join("docs/benchmarks.md");
        let before = std::fs::read_to_string(&docs).unwrap_or_else(|_| "# Benchmarks\n".to_owned());
        write(&docs, &with_section(&before, self.name, &self.section(machine)))?;
        for path in [json, docs] {
            let shown = path.canonicalize().unwrap_or(path);
            eprintln!("written: {}", shown.display());
        }
        Ok(())
    }

    /// Prints the table alone.
    pub fn print(&self) {
        println!("{}", self.table());
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header(HEAD);
        for row in &self.rows {
            table.add_row(cells(row));
        }
        table.to_string()
    }

    fn section(&self, machine: &Machine) -> String {
        let mut text = format!("{}, {machine}. `{}`\n\n", Machine::today(), self.command);
        for line in &self.method {
            let _ = writeln!(text, "- {line}");
        }
        let _ = writeln!(text, "\n| {} |\n|{}", HEAD.join(" | "), "---|".repeat(HEAD.len()));
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", cells(row).join(" | "));
        }
        if !self.details.is_empty() {
            let _ = write!(text, "\n{}\n", self.details.trim_end());
        }
        text
    }
}

fn cells(row: &Row) -> [String; 8] {
    let ratio = row.ratio.map_or_else(String::new, |r| format!("{r:.2}"));
    let goal = match (&row.goal, row.met) {
        (Some(goal), Some(true)) => format!("{goal}: met"),
        (Some(goal), Some(false)) => format!("{goal}: **missed**"),
        (Some(goal), None) => format!("{goal}: not judged"),
        (None, _) => String::new(),
    };
    [
        row.row.clone(),
        short(row.value),
        row.unit.clone(),
        row.against.clone().unwrap_or_default(),
        row.against_value.map(short).unwrap_or_default(),
        ratio,
        goal,
        if row.runs > 1 {
            format!("{:.0} % of {}", row.spread * 100.0, row.runs)
        } else {
            String::new()
        },
    ]
}

/// Three digits that matter, or all of a whole number.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Writes a section of a document between its markers, as [`Report::publish`] does in docs/benchmarks.md.
///
/// # Errors
/// When the file cannot be written.
pub fn write_section(docs: &Path, name: &str, section: &str) -> Result<()> {
    let before = std::fs::read_to_string(docs).unwrap_or_default();
    write(docs, &with_section(&before, name, section))
}

fn markers(name: &str) -> (String, String) {
    (
        format!("<!-- bench-{name}: begin; the command writes what follows -->"),
        format!("<!-- bench-{name}: end -->"),
    )
}

/// The text with the section of this name replaced; at its end, with a heading, if there is none yet.
fn with_section(text: &str, name: &str, section: &str) -> String {
    let (begin, end) = markers(name);
    let section = section.trim();
    if let Some((before, rest)) = text.split_once(&begin)
        && let Some((_, after)) = rest.split_once(&end)
    {
        return format!("{before}{begin}\n\n{section}\n\n{end}{after}");
    }
    format!(
        "{}\n\n## {name}\n\n{begin}\n\n{section}\n\n{end}\n",
        text.trim_end()
    )
}

/// Puts what the benchmarks of [`SPEED`] last wrote into one file.
fn gather(dir: &Path) -> Result<()> {
    let mut rows: Vec<serde_json::Value> = Vec::new();
    for name in SPEED {
        let path = dir.join(format!("{name}.json"));
        match std::fs::read(&path) {
            Ok(bytes) => rows.append(
                &mut serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?,
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }
    write(
        &dir.join("speed.json"),
        &format!("{}\n", serde_json::to_string_pretty(&rows)?),
    )
}

/// Writes a file whole, as its directory's owner: benchmarks run as root in somebody's checkout.
fn write(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let draft = path.with_extension("new");
    std::fs::write(&draft, text).with_context(|| format!("writing {}", draft.display()))?;
    let owner = dir.ancestors().nth(1).unwrap_or(&dir).metadata();
    if let Ok(owner) = owner {
        // Only root may, and only root has to.
        let _ = chown(&draft, Some(owner.uid()), Some(owner.gid()));
        let _ = chown(&dir, Some(owner.uid()), Some(owner.gid()));
    }
    std::fs::rename(&draft, path).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Figure;

    #[test]
    fn a_section_is_replaced_and_its_surroundings_stay() {
        let first = with_section("# Benchmarks\n", "one", "old\n");
        let both = with_section(&first, "two", "other");
        let text = with_section(&both.replace("## one", "## One, as people call it"), "one", "new");
        assert!(text.contains("new") && !text.contains("old"), "{text}");
        assert!(
            text.contains("## One, as people call it") && text.contains("other"),
            "{text}"
        );
        assert_eq!(text, with_section(&text, "one", "new"));
    }

    #[test]
    fn a_missed_goal_is_said() {
        let row = Row::new(
            "attempts",
            "each",
            &Figure::from(vec![1.2]),
            None,
            Some(crate::Goal::AtMost(1.05)),
        );
        let report = Report {
            name: "x",
            command: "make bench-x".to_owned(),
            method: vec![],
            rows: vec![row],
            details: String::new(),
        };
        assert!(
            report
                .section(&Machine::here())
                .contains("| attempts | 1.20 | each |  |  |  | ≤ 1.05: **missed** |  |")
        );
    }

    #[test]
    fn rows_of_several_benchmarks_stand_together() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("packets.json"), r#"[{"row":"p"}]"#).unwrap();
        std::fs::write(dir.path().join("reach.json"), r#"[{"row":"a"},{"row":"b"}]"#).unwrap();
        std::fs::write(dir.path().join("addresses.json"), r#"[{"row":"x"}]"#).unwrap();
        gather(dir.path()).unwrap();
        let text = std::fs::read(dir.path().join("speed.json")).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
        let names: Vec<_> = rows.iter().map(|row| row["row"].as_str().unwrap()).collect();
        assert_eq!(names, ["a", "b", "p"]);
    }

    #[test]
    fn files_are_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bench/x.json");
        write(&path, "1").unwrap();
        write(&path, "2").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2");
    }
}
