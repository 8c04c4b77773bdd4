//! Dependencies point downwards only. The order is that of the design; an import that points up or sideways fails.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// From the top to the bottom.
const LAYERS: [&str; 10] = [
    "cli", "fs", "serve", "prefetch", "cache", "copy", "import", "remote", "proto", "model",
];

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

/// The layers that a source names as `crate::layer` or in `use crate::{layer, …}`.
fn imports(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in source.match_indices("crate::") {
        let rest = &source[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            let mut first = true;
            for char in group.chars() {
                match char {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => first = true,
                    c if depth == 0 && first && (c.is_alphanumeric() || c == '_') => word.push(c),
                    _ if word.is_empty() => continue,
                    _ => {}
                }
                if !(char.is_alphanumeric() || char == '_' || word.is_empty()) {
                    found.push(std::mem::take(&mut word));
                    first = char == ',';
                }
            }
            if !word.is_empty() {
                found.push(word);
            }
        } else {
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            found.push(rest[..end].to_owned());
        }
    }
    found
}

#[test]
fn the_reader_of_imports_sees_groups() {
    let source = "use crate::{\n    cache::{Cache, Slice},\n    model::Node, remote,\n};\nlet x = crate::proto::y();";
    assert_eq!(imports(source), ["cache", "model", "remote", "proto"]);
}

#[test]
fn dependencies_point_downwards() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rank: BTreeMap<_, _> = LAYERS.iter().enumerate().map(|(i, l)| (*l, i)).collect();
    let mut checked = 0;
    for layer in LAYERS {
        let mut files = Vec::new();
        sources(&src.join(layer), &mut files);
        for file in files {
            for import in imports(&fs::read_to_string(&file).unwrap()) {
                let Some(imported) = rank.get(import.as_str()) else {
                    panic!("{file:?} imports crate::{import}, which is no layer");
                };
                assert!(
                    *imported >= rank[layer],
                    "{file:?} imports crate::{import}, which is above {layer}"
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 50, "only {checked} imports were seen");
}
