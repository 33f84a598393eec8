//! `make mutants` takes long and runs seldom; here its patches are held against the code as it is.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn every_mutation_fits_and_names_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut wrong = Vec::new();
    let mut fitting = 0;
    for entry in fs::read_dir(root.join("tests/mutations")).expect("the mutations") {
        let path = entry.expect("a file").path();
        let patch = fs::File::open(&path).expect("a patch");
        let mut command = Command::new("patch");
        command.args(["--dry-run", "--force", "--quiet", "-p1", "-d"]).arg(&root).stdin(Stdio::from(patch));
        let output = command.output().expect("patch runs");
        let text = fs::read_to_string(&path).expect("a patch");
        let names = text.lines().filter_map(|line| line.strip_prefix("Tests: ").or(line.strip_prefix("Unit: ")));
        if output.status.success() && names.count() > 0 {
            fitting += 1;
        } else {
            wrong.push(format!("{}: {}", path.display(), String::from_utf8_lossy(&output.stdout)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(fitting > 0);
}
