//! What a person is told of it.

use std::fs;

use super::{Far, noise, read_file};

#[test]
#[ignore = "needs /dev/fuse"]
fn a_trace_shows_what_was_read_and_fetched() {
    let far = Far::new(|source| {
        noise(&source.join("large"), 1, 8 << 20);
        noise(&source.join("a<b>"), 2, 500);
    });
    far.link(10, None);
    let mount = far.mount(&[]);
    let at = &far.scratch.mnt();
    let at = at.to_str().unwrap();
    let trace = |output: &str, args: &[&str]| {
        let output = far.scratch.path(output);
        let mut all = vec!["trace", at, "--output", output.to_str().unwrap()];
        all.extend(args);
        let said = far.scratch.run(all);
        assert!(said.status.success(), "{said:?}");
        fs::read_to_string(output).unwrap()
    };
    let svg = trace("t.svg", &["--", "sh", "-c", "cat \"$0\"/* > /dev/null", at]);
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(svg.contains("a&lt;b&gt;") && svg.contains("large"));
    // Nothing comes by when the kernel has all of it.
    let json = trace("t.json", &["--for", "10ms"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["events"].as_array().unwrap().len(), 0);
    let said = far.scratch.fails([
        "trace",
        far.scratch.dir.path().to_str().unwrap(),
        "--for",
        "1s",
    ]);
    assert!(said.contains("nothing is mounted"), "{said}");
    // One that another one has taken over says so.
    let second = format!("castore=$0; $castore trace {at} --for 10ms -o /dev/null");
    let output = far.scratch.path("first.svg");
    let binary = env!("CARGO_BIN_EXE_castore");
    let said = far.scratch.fails([
        "trace",
        at,
        "--output",
        output.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        &second,
        binary,
    ]);
    assert!(said.contains("another trace"), "{said}");
    mount.stop();
    // The events of a cold read.
    far.scratch.clear_cache();
    let mount = far.mount(&[]);
    let json = trace(
        "u.json",
        &["--", "sh", "-c", "cat \"$0\"/large > /dev/null", at],
    );
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["files"][0]["path"], "large");
    let bytes = |whats: &[&str]| -> u64 {
        let events = json["events"].as_array().unwrap().iter();
        let of = events.filter(|event| whats.contains(&event["what"].as_str().unwrap()));
        of.map(|event| {
            event["range"]["end"].as_u64().unwrap() - event["range"]["start"].as_u64().unwrap()
        })
        .sum()
    };
    assert_eq!(bytes(&["read", "missed"]), 8 << 20);
    // How much of it the kernel asks for first, depends on how busy the machine is.
    assert!(bytes(&["prefetched"]) > 1 << 19);
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn status_tells_what_was_fetched_ahead() {
    let far = Far::new(|source| noise(&source.join("large"), 1, 8 << 20));
    far.link(10, None);
    let mount = far.mount(&[]);
    read_file(&mount, &far, "large");
    let counters = far.settled();
    assert!(counters["prefetch_sequential_bytes"] > 0);
    let said = far.scratch.ok(["status"]);
    let line = said
        .lines()
        .find(|line| line.trim_start().starts_with("fetched ahead"));
    let line = line.unwrap_or_else(|| panic!("{said}"));
    assert!(
        line.contains("sequential") && line.contains("MiB"),
        "{line}"
    );
    mount.stop();
}
