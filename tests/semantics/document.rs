//! Each claim of `docs/SEMANTICS.md` names tests that exist and assert something, and nothing but claims stands there.
//!
//! Below the introduction a section has lists and tables alone, and each item and row ends with an arrow and its tests. What
//! is no claim stands in a section whose heading begins with `Explanation`.

use std::{fs, path::Path};

use crate::sources;

/// The mark between a claim and its tests.
const ARROW: &str = "\u{2190} ";

/// The items and rows of the document, or what in it is neither and no explanation.
fn claims(document: &str) -> Result<Vec<String>, String> {
    let mut claims = Vec::new();
    // The first part is the title and the introduction.
    for section in document.split("\n## ").skip(1) {
        let (heading, text) = section.split_once('\n').unwrap_or((section, ""));
        if heading.starts_with("Explanation") {
            continue;
        }
        let before = claims.len();
        for block in text.split("\n\n").filter(|block| !block.trim().is_empty()) {
            claims.extend(items_or_rows(block)?);
        }
        if claims.len() == before {
            return Err(format!("a section without a claim: {heading}"));
        }
    }
    Ok(claims)
}

fn items_or_rows(block: &str) -> Result<Vec<String>, String> {
    let mut found: Vec<String> = Vec::new();
    let mut lines = block.trim_matches('\n').lines();
    if block.trim_start().starts_with('|') {
        // The first two lines of a table are its head.
        return Ok(lines.skip(2).map(str::to_owned).collect());
    }
    lines.try_for_each(|line| {
        match (line.strip_prefix("- "), found.last_mut()) {
            (Some(item), _) => found.push(item.to_owned()),
            (None, Some(item)) if line.starts_with("  ") => *item = format!("{item}\n{line}"),
            _ => {
                return Err(format!(
                    "neither a list, a table nor an explanation: {line}"
                ));
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// The tests of a claim, or what is wrong with them.
fn tests_of(claim: &str) -> Result<Vec<&str>, String> {
    let claim = claim.trim_end_matches([' ', '|']);
    let Some((text, tests)) = claim.split_once(ARROW) else {
        return Err(format!("a claim without a test: {claim}"));
    };
    if text.trim_matches([' ', '|']).is_empty() {
        return Err(format!("tests of no claim: {claim}"));
    }
    let name = |test: &'_ str| -> bool {
        let inner = test
            .strip_prefix('`')
            .and_then(|test| test.strip_suffix('`'));
        inner.is_some_and(|test| test.contains("::") && !test.contains(['`', ' ']))
    };
    // Whatever stands after the arrow and is no name is a claim that names none.
    let tests: Vec<_> = tests.split(',').map(str::trim).collect();
    match tests.iter().find(|test| !name(test)) {
        Some(odd) => Err(format!("`{odd}` is not the name of a test, of: {claim}")),
        None => Ok(tests.iter().map(|test| test.trim_matches('`')).collect()),
    }
}

#[test]
fn each_claim_names_its_tests() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/SEMANTICS.md");
    let text = fs::read_to_string(path).unwrap();
    let known = sources::tests();
    let claims = claims(&text).unwrap();
    let mut wrong = Vec::new();
    for claim in &claims {
        match tests_of(claim) {
            Err(error) => wrong.push(error),
            Ok(tests) => wrong.extend(tests.into_iter().filter_map(|test| match known.get(test) {
                None => Some(format!("there is no test {test}, of: {claim}")),
                Some(false) => Some(format!("{test} asserts nothing, of: {claim}")),
                Some(true) => None,
            })),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(claims.len() > 45, "{} claims", claims.len());
}

#[test]
fn a_claim_that_names_no_test_is_found() {
    let document = |section: &str| format!("# Title\n\nIntroduction.\n\n## Heading\n\n{section}\n");
    let found = |section: &str| {
        let claims = claims(&document(section))?;
        claims.iter().try_fold(0, |sum, claim| {
            Ok::<_, String>(sum + tests_of(claim)?.len())
        })
    };
    assert_eq!(
        found("- One. \u{2190} `a::b`\n- Two,\n  with more.\n  \u{2190} `a::b`, `c::d`"),
        Ok(3)
    );
    assert_eq!(
        found("| a | b |\n| --- | --- |\n| it | is \u{2190} `a::b` |"),
        Ok(1)
    );
    assert_eq!(
        found("- One. \u{2190} `a::b`\n\n## Explanation: why\n\nSo."),
        Ok(1)
    );
    for wrong in [
        "",
        "A paragraph.",
        "- One.",
        "- One. \u{2190} `a::b`\n\nA paragraph after a list.",
        "- One. \u{2190} `a::b`\nA line that no item has.",
        "- One. \u{2190} `a::b` and more.",
        "- One. \u{2190} `a::b`. Two.",
        "- \u{2190} `a::b`",
        "- One. \u{2190} ",
        "| a | b |\n| --- | --- |\n| it | is |",
    ] {
        assert!(found(wrong).is_err(), "{wrong}");
    }
}

/// A source of tests. Its lines begin with a mark, so that nobody takes them for tests of this file.
fn sample(marked: &str) -> String {
    marked.replace('~', "")
}

#[test]
fn what_is_no_test_is_not_taken_for_one() {
    let source = sample(
        "
~#[test]
~#[ignore = \"needs something\"]
~fn asserts() {
~    assert!(true);
~}
~
~fn helper() {
~    assert!(true);
~}
~
~#[test]
~fn calls() {
~    helper();
~}
~
~#[test]
~fn empty() {
~    // It would assert!(true).
~}
",
    );
    let named = |name: &str, asserts| (name.to_owned(), asserts);
    let expected = [
        named("asserts", true),
        named("calls", true),
        named("empty", false),
    ];
    assert_eq!(sources::of_file(&source), expected);
    let trials = sample(
        "
~pub const ALL: [Test; 3] = [
~    (\"one\", &[], one),
~    (
~        \"two\",
~        &[\"program\", \"option\"],
~        || one(\"two\"),
~    ),
~    (\"three\", &[], nothing),
~];
~
~fn one(_: &str) {
~    assert!(true);
~}
~
~fn nothing() {}
",
    );
    let expected = [
        named("one", true),
        named("two", true),
        named("three", false),
    ];
    assert_eq!(sources::of_file(&trials), expected);
    let cases = sample(
        "
~cases! { \"theme\":
~    one,
~    two,
~}
~
~fn one(on: &Fixture) {
~    assert!(true);
~}
~
~fn two(on: &Fixture) {}
",
    );
    let expected = [named("one", true), named("two", false)];
    assert_eq!(sources::of_file(&cases), expected);
}
