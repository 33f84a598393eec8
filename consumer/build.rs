//! Puts the SQL of the schema `postbox` together for `postbox install`, in the order of the extension's script.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    // Asked for now: a target directory may have been copied from another tree.
    let sql = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo says it")).join("../sql");
    let plain = sql.join("plain");
    println!("cargo::rerun-if-changed={}", sql.display());
    let order = read(&sql.join("order"));
    let mut script = String::new();
    let listed = order.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>();
    for name in &listed {
        let instead = plain.join(name);
        let file = if instead.exists() { instead } else { sql.join(name) };
        script.push_str(&format!("-- {name}\n"));
        // What only members of an extension need.
        for line in read(&file).lines().filter(|line| !line.starts_with("select pg_extension_config_dump(")) {
            script.push_str(line);
            script.push('\n');
        }
    }
    let entries = fs::read_dir(&plain).unwrap_or_else(|error| panic!("{}: {error}", plain.display()));
    let mut others = entries.filter_map(|entry| Some(entry.ok()?.path())).collect::<Vec<PathBuf>>();
    others.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.ends_with(".sql") && !listed.contains(&name)
    });
    others.sort();
    for file in others {
        script.push_str(&read(&file));
    }
    let out = env::var_os("OUT_DIR").expect("cargo gives a directory");
    fs::write(Path::new(&out).join("install.sql"), script).expect("the script is written");
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
