//! An error's cause is printed by its `Display` or given by `source()`, never both: what prints whole chains, as the command
//! line does, would say it twice.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use castore::{
    model::RootRef,
    proto::{DecodeError, decode_node},
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

/// The variants of a source's errors that print what they give: each with its text, from `#[error(` to the next one.
fn twice(source: &str) -> Vec<&str> {
    let mut starts: Vec<_> = source.match_indices("#[error(").map(|(at, _)| at).collect();
    starts.push(source.len());
    let variants = starts.windows(2).map(|ends| {
        let variant = &source[ends[0]..ends[1]];
        &variant[..variant.find("\n}").unwrap_or(variant.len())]
    });
    variants
        .filter(|variant| {
            // The message ends before the variant's name, the first line that begins with a capital.
            let name = variant
                .lines()
                .position(|line| line.trim_start().starts_with(|c: char| c.is_uppercase()));
            let message: String = variant.lines().take(name.unwrap_or(1)).collect();
            let fields: String = variant.lines().skip(name.unwrap_or(1)).collect();
            let gives = ["#[from]", "#[source]", "source: ", "source,"]
                .iter()
                .any(|mark| fields.contains(mark));
            let prints = ["{source", "{0", "{cause", "{error"]
                .iter()
                .any(|field| message.contains(field));
            gives && prints
        })
        .collect()
}

#[test]
fn the_reader_of_errors_sees_what_is_said_twice() {
    let source = "enum E {\n    #[error(\"a: {0}\")]\n    A(#[from] X),\n    #[error(transparent)]\n    B(#[from] X),\n    \
                  #[error(\n        \"c {source}\"\n    )]\n    C {\n        source: X,\n    },\n    #[error(\"d\")]\n    D { \
                  source: X },\n}\nstruct Other { source: X }";
    let found: Vec<_> = twice(source).iter().map(|text| &text[..14]).collect();
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn no_error_says_its_cause_twice() {
    let mut files = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        assert_eq!(twice(&source), [""; 0], "{file:?}");
    }
}

/// What the command line prints of an error.
fn printed(error: impl Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

#[test]
fn chains_of_real_errors_do_not_repeat() {
    let once = |printed: String, cause: &str| {
        assert_eq!(printed.matches(cause).count(), 1, "{cause}: {printed}");
    };
    for text in ["..", "/x", "a/..", "b3:abc"] {
        let error = RootRef::parse_with_path(text).unwrap_err();
        let cause = error.to_string();
        once(printed(error), &cause);
    }
    let error = decode_node(&vec![0xff; 4].into()).unwrap_err();
    let DecodeError::Protobuf(cause) = &error else {
        panic!("{error:?}");
    };
    let cause = cause.to_string();
    once(printed(error), &cause);
    let output = Command::new(env!("CARGO_BIN_EXE_castore"))
        .args([
            "import",
            "--remote",
            "objectstore+file:///nonexistent",
            "/nonexistent/tree",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    once(said, "No such file");
}
