//! Each claim of the document names the tests that show it, and those exist.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Functions and trials, as `binary::name`: the binary is a file or a folder of `tests`.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut found = BTreeSet::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap().with_extension("");
        let binary = relative.iter().next().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&file).unwrap();
        for line in text.lines() {
            let line = line.trim();
            // A function, or a trial of libtest-mimic, which has its name first in its row.
            let name = line
                .strip_prefix("fn ")
                .and_then(|rest| rest.split(['(', '<']).next())
                .or_else(|| line.strip_prefix("(\"")?.split('"').next())
                .or_else(|| line.strip_prefix('"')?.strip_suffix("\","));
            found.extend(name.map(|name| format!("{binary}::{name}")));
        }
    }
    found
}

#[test]
fn each_claim_names_its_tests() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/SEMANTICS.md");
    let text = fs::read_to_string(path).unwrap();
    let known = tests();
    let (mut claims, mut named) = (0, 0);
    // A claim is an item of a list, with the lines that belong to it.
    for item in text.split("\n- ").skip(1) {
        let item = item.split("\n\n").next().unwrap();
        claims += 1;
        let brackets = item.rsplit_once("\u{2190} ");
        let Some((_, tests)) = brackets else {
            panic!("a claim without a test: {item}");
        };
        for test in tests.split(',') {
            let test = test.trim().trim_matches('`');
            assert!(known.contains(test), "there is no test {test}, of: {item}");
            named += 1;
        }
    }
    assert!(claims > 25 && named >= claims, "{claims} claims");
}
