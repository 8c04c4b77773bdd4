//! The object store layout, byte for byte: `tests/golden/store` is what `castore import` writes of `tests/golden/source`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::support::{Scratch, tree};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn objects(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in tree::files_and_times(dir).into_keys() {
        let path = PathBuf::from(String::from_utf8(path).unwrap());
        let key = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
        found.insert(key, fs::read(path).unwrap());
    }
    found
}

/// What is too large, too empty or too odd for a repository is made here.
fn source(scratch: &Scratch) -> PathBuf {
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::file(&source, "hello", b"Hello World", false);
    tree::file(&source, "hello-exec", b"Hello World", true);
    tree::file(&source, "nothing", b"", false);
    tree::file(&source, "dir/inner/file", b"inner", false);
    fs::create_dir(source.join("empty")).unwrap();
    // Compresses to little, and is cut into several chunks.
    let lines: Vec<_> = (0..90_000).map(|line| line.to_string()).collect();
    let text = lines.join("\n") + "\n";
    tree::file(&source, "split", text.as_bytes(), false);
    std::os::unix::fs::symlink("hello", source.join("link")).unwrap();
    source
}

#[test]
fn what_is_written_is_the_golden_store() {
    let scratch = Scratch::new();
    let source = source(&scratch);
    let args = ["import", "--name", "golden", source.to_str().unwrap()];
    let digest = scratch.ok(args);
    let expected = fs::read_to_string(golden("digest")).unwrap();
    assert_eq!(digest.trim(), expected.trim());
    let (written, expected) = (objects(&scratch.path("store")), objects(&golden("store")));
    let keys = |objects: &BTreeMap<String, Vec<u8>>| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&written), keys(&expected));
    for (key, bytes) in &expected {
        assert!(written[key] == *bytes, "{key} has other bytes");
    }
    // From the description of the format, not from what castore does.
    let hello = "41f8394111eb713a22165c46c90ab8f0fd9399c92028fd6d288944b23ff5bf76";
    assert!(written.contains_key(&format!("blobs/b3/41f8/{hello}")));
    assert!(written[&format!("blobs/b3/41f8/{hello}")].is_empty());
    assert!(written.contains_key(&format!("chunks/b3/41f8/{hello}")));
}

#[test]
fn the_golden_store_is_read() {
    let scratch = Scratch::new();
    let source = source(&scratch);
    let store = scratch.path("store");
    for (key, bytes) in objects(&golden("store")) {
        let path = store.join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    for file in ["hello", "nothing", "dir/inner/file", "split"] {
        let read = scratch.run(["cat".to_owned(), format!("golden/{file}")]);
        assert!(read.status.success());
        assert!(
            read.stdout == fs::read(source.join(file)).unwrap(),
            "{file}"
        );
    }
    let listed = scratch.ok(["ls", "-l", "golden"]);
    assert!(
        listed.contains("link -> hello") && listed.contains("x           11"),
        "{listed}"
    );
    scratch.ok(["fetch", "golden"]);
}
