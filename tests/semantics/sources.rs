//! The tests that the sources in `tests/` hold, read as text in the form that `cargo fmt` gives them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Every test as `binary::name`, and whether its body asserts something. The binary is a file or a folder of `tests`.
pub(crate) fn tests() -> BTreeMap<String, bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let binary = path.file_stem().unwrap().to_str().unwrap();
        if binary == "support" {
            continue;
        }
        for file in compiled(&path) {
            for (name, asserts) in of_file(&fs::read_to_string(file).unwrap()) {
                let other = found.insert(format!("{binary}::{name}"), asserts);
                assert_eq!(other, None, "two tests are called {binary}::{name}");
            }
        }
    }
    found
}

/// The files of a test binary: a single one, or `main.rs` and the modules that it declares, and theirs.
fn compiled(path: &Path) -> Vec<PathBuf> {
    if path.extension().is_some_and(|extension| extension == "rs") {
        return vec![path.to_owned()];
    }
    let main = path.join("main.rs");
    if main.exists() {
        with_modules(main)
    } else {
        Vec::new()
    }
}

fn with_modules(file: PathBuf) -> Vec<PathBuf> {
    let text = fs::read_to_string(&file).unwrap();
    let dir = file.parent().unwrap().to_owned();
    let mut files = vec![file];
    // The modules of `x.rs` are not looked for: here those that have some are folders.
    if !files[0].ends_with("main.rs") && !files[0].ends_with("mod.rs") {
        return files;
    }
    for line in text.lines() {
        let Some(name) = line
            .strip_prefix("mod ")
            .and_then(|line| line.strip_suffix(';'))
        else {
            continue;
        };
        // A module at another place is what several binaries share.
        let places = [
            dir.join(name).with_extension("rs"),
            dir.join(name).join("mod.rs"),
        ];
        let place = places.into_iter().find(|place| place.exists());
        files.extend(place.into_iter().flat_map(with_modules));
    }
    files
}

/// The tests of one file, and whether each asserts something: itself, or in a function of the file that it calls.
pub(crate) fn of_file(source: &str) -> Vec<(String, bool)> {
    let lines: Vec<_> = source.lines().collect();
    let mut functions = BTreeMap::new();
    let mut tests = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        functions.insert(name, body(&lines[at..]));
        let attributes = lines[..at].iter().rev().map(|line| line.trim());
        let mut attributes = attributes.take_while(|line| line.starts_with("#["));
        if attributes.any(|line| line == "#[test]" || line.starts_with("#[tokio::test")) {
            tests.push((name.to_owned(), name.to_owned()));
        }
    }
    tests.extend(trials(&lines));
    tests.extend(cases(&lines));
    let asserting = asserting(&functions);
    let asserts = |code: &str| words(code).any(|word| asserting.contains(word));
    tests
        .into_iter()
        .map(|(name, code)| (name, asserts(&code)))
        .collect()
}

fn function_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    line.strip_prefix("fn ")?.split(['(', '<']).next()
}

/// A function without its first line and its comments. It ends at the brace that stands where the function begins.
fn body(lines: &[&str]) -> String {
    if lines[0].ends_with('}') {
        return lines[0].split_once('{').unwrap().1.to_owned();
    }
    let indented = lines[0].len() - lines[0].trim_start().len();
    let end = format!("{}}}", " ".repeat(indented));
    let body = lines[1..].iter().take_while(|line| **line != end);
    let code = body.filter(|line| !line.trim_start().starts_with("//"));
    code.fold(String::new(), |text, line| text + line + "\n")
}

/// The rows of `pub const ALL`: the name of each trial, and the code that it runs.
fn trials(lines: &[&str]) -> Vec<(String, String)> {
    let begins = |line: &&str| line.starts_with("pub const ALL: [Test; ");
    let rows = lines.iter().skip_while(|line| !begins(line));
    let rows = rows.take_while(|line| !line.ends_with("];") || begins(line));
    let mut table: String = rows.map(|line| line.trim()).collect();
    // A table of one row ends on the line on which it begins.
    if let Some(at) = lines
        .iter()
        .position(|line| begins(line) && line.ends_with("];"))
    {
        lines[at].clone_into(&mut table);
    }
    let table = table.replace("[(\"", ",(\"");
    let rows = table.split(",(\"").skip(1);
    let row = |row: &str| {
        let (name, code) = row.split_once('"').unwrap();
        (name.to_owned(), code.to_owned())
    };
    rows.map(row).collect()
}

/// The names in `cases! { "theme": … }`, which are functions.
fn cases(lines: &[&str]) -> Vec<(String, String)> {
    let block = lines
        .iter()
        .skip_while(|line| !line.starts_with("cases! {"));
    let names = block.skip(1).take_while(|line| **line != "}");
    let name = |line: &&str| line.trim().trim_end_matches(',').to_owned();
    names.map(|line| (name(line), name(line))).collect()
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != '!')
}

/// The words that assert: the standard macros, the assertions of `tests/support`, and functions that use one of them.
fn asserting<'a>(functions: &BTreeMap<&'a str, String>) -> BTreeSet<&'a str> {
    let macros = [
        "assert!",
        "assert_eq!",
        "assert_ne!",
        "prop_assert!",
        "prop_assert_eq!",
        "panic!",
    ];
    // Of `support`: they fail unless a command has ended well, has failed well, or two trees are equal.
    let shared = [
        "succeeded",
        "failed",
        "fails",
        "assert_equal",
        "run_command",
    ];
    let mut asserting: BTreeSet<_> = macros.into_iter().chain(shared).collect();
    loop {
        let new = |(name, body): (&&'a str, &String)| {
            let asserts =
                !asserting.contains(name) && words(body).any(|word| asserting.contains(word));
            asserts.then_some(*name)
        };
        let more: Vec<_> = functions.iter().filter_map(new).collect();
        if more.is_empty() {
            return asserting;
        }
        asserting.extend(more);
    }
}
