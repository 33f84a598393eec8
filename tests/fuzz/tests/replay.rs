//! What the fuzzers have found once is tried at every run: the inputs that reach new code, and those that broke something.

use std::fs;
use std::path::Path;

/// A fuzz target.
type Target = fn(&[u8]);

#[test]
fn the_corpus_does_no_harm() {
    let targets: [(&str, Target); 8] = [
        ("frames", postbox_fuzz::frames),
        ("options", postbox_fuzz::options),
        ("conninfo", postbox_fuzz::conninfo),
        ("login", postbox_fuzz::login),
        ("messages", postbox_fuzz::messages),
        ("jsonb", postbox_fuzz::jsonb),
        ("pgoutput", postbox_fuzz::pgoutput),
        ("emitted", postbox_fuzz::emitted),
    ];
    for (name, target) in targets {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut inputs = 0;
        for file in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = file.unwrap().path();
            println!("{}", path.display());
            target(&fs::read(&path).unwrap());
            inputs += 1;
        }
        assert!(inputs >= 10, "{inputs} inputs for {name}");
    }
}
