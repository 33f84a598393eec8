//! `postbox serve`: several groups in one process, as a file says.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Parser};
use futures_util::future::try_join_all;
use toml::{Table, Value};

use super::{Run, stream};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::ConnInfo;

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// A TOML file with a [[run]] for each group. Its keys are the options of postbox run without the dashes:
    /// group = "billing", sink = "exec", concurrency = 8; an option without a value is true
    file: PathBuf,
}

/// The options of one `[[run]]`, read as those of the command line are.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Entry {
    #[command(flatten)]
    run: Run,
}

impl Serve {
    /// Runs all of them. When one ends with an error, all end: whoever started the process starts it again.
    pub(super) async fn execute(self, database: Option<String>, info: &ConnInfo) -> Result<()> {
        let text = fs::read_to_string(&self.file).map_err(|error| wrong(&self.file, &error.to_string()))?;
        let runs = read(&text).map_err(|what| wrong(&self.file, &what))?;
        try_join_all(runs.into_iter().map(|run| stream(run, database.clone(), info))).await.map(drop)
    }
}

fn wrong(file: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("{}: {what}", file.display())).with_hint(
        "For instance: [[run]] on a line, then group = \"billing\" and sink = \"stdout\" on lines of their own.",
    )
}

fn read(text: &str) -> Result<Vec<Run>, String> {
    let mut table = text.parse::<Table>().map_err(|error| {
        // Not the line itself, which may hold a password.
        let start = error.span().map_or(0, |span| span.start);
        format!("line {}: {}", text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1, error.message())
    })?;
    let Some(Value::Array(entries)) = table.remove("run") else { return Err("there is no [[run]]".to_owned()) };
    if let Some(other) = table.keys().next() {
        return Err(format!("\"{other}\" is not known; everything belongs below a [[run]]"));
    }
    entries
        .into_iter()
        .enumerate()
        .map(|(number, entry)| {
            let at = |what: &str| format!("[[run]] number {}: {what}", number + 1);
            let Value::Table(options) = entry else { return Err(at("is not a table")) };
            let arguments =
                options.into_iter().map(|(name, value)| argument(&name, value)).collect::<Result<Vec<_>, _>>();
            let arguments = arguments.map_err(|what| at(&what))?;
            let entry = Entry::try_parse_from(arguments.into_iter().flatten()).map_err(|error| {
                // Without what clap says about the usage of the command line.
                at(error.to_string().split("\n\n").next().unwrap_or_default().trim_start_matches("error: "))
            })?;
            Ok(entry.run)
        })
        .collect()
}

/// An option as it would stand on the command line.
fn argument(name: &str, value: Value) -> Result<Option<String>, String> {
    Ok(match value {
        Value::Boolean(false) => None,
        Value::Boolean(true) => Some(format!("--{name}")),
        Value::String(text) => Some(format!("--{name}={text}")),
        Value::Integer(number) => Some(format!("--{name}={number}")),
        other => return Err(format!("{name} cannot be of type {}", other.type_str())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_the_command_line() {
        let text = "[[run]]\ngroup = 'a'\nrecover = true\nno-maintenance = false\n\
                    [[run]]\ngroup = 'b'\nsink = 'exec'\nexec = '--odd \"x\"'\nconcurrency = 8\n";
        let runs = read(text).expect("two runs");
        assert_eq!(runs.iter().map(|run| run.group.as_deref()).collect::<Vec<_>>(), [Some("a"), Some("b")]);
        assert!(runs[0].recover && !runs[0].no_maintenance);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("", "there is no [[run]]"),
            ("run = 3", "there is no [[run]]"),
            ("group = 'a'\n[[run]]\ngroup = 'a'", "\"group\" is not known"),
            ("[[run]]\nsink = 'stdout'", "number 1: the following required arguments were not provided"),
            ("[[run]]\ngroup = 'a'\n[[run]]\ngroup = 'b'\ncolour = 'red'", "number 2: unexpected argument '--colour'"),
            ("[[run]]\ngroup = 'a'\nsink = 'fax'", "invalid value 'fax'"),
            ("[[run]]\ngroup = ['a']", "group cannot be of type array"),
            ("[[run", "line 1: "),
            ("[[run]]\ngroup = 'a'\ninbox-url = 'postgres://u:topsecret@h/db\n[[run]]\n", "line 3: "),
            ("[[run]]\ninbox-ulr = 'postgres://u:topsecret@h/db'", "unexpected argument '--inbox-ulr'"),
            ("[[run]]\ngroup = 'a'\ngroup = 'postgres://u:topsecret@h/db'", "line 3: duplicate key"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(says), "{text:?}: {error}");
            assert!(!error.contains("topsecret"), "{text:?}: {error}");
        }
    }
}
