//! Compilers, the dynamic linker, Python and programs without large-file support.

use std::{fs, path::Path, process::Command};

use crate::{
    Test,
    fixture::{Tree, helper, run_command, shell, twins},
    support::{Scratch, output, tree::file},
};

pub const ALL: [Test; 7] = [
    ("clang_pragma_once", &["clang"], clang_pragma_once),
    ("clang_depends_on_both", &["clang"], clang_depends_on_both),
    ("gcc_includes_both", &["gcc"], gcc_includes_both),
    ("two_plugins", &["cc"], two_plugins),
    ("python_modules", &["python3"], python_modules),
    ("stat_of_32_bits", &["cc", "-m32"], stat_of_32_bits),
    (
        "inode32_for_old_programs",
        &["cc", "-m32"],
        inode32_for_old_programs,
    ),
];

/// Two equal headers, each of which may be included once, and a source that wants both.
fn headers(root: &Path, guard: &str) {
    let header =
        format!("{guard}\n#ifndef FIRST\n#define FIRST 1\n#else\n#define SECOND 1\n#endif\n");
    file(root, "a/header.h", header.as_bytes(), false);
    file(root, "b/header.h", header.as_bytes(), false);
    let source = b"#include \"a/header.h\"\n#include \"b/header.h\"\n#ifndef SECOND\n\
        #error the second header was not included\n#endif\nint main(void) { return 0; }\n";
    file(root, "main.c", source, false);
}

/// clang takes files of one device and number for the same, and never included the second of two equal headers.
fn clang_pragma_once() {
    let tree = Tree::of(&[], |root| headers(root, "#pragma once"));
    shell(&tree.mount.path, "clang -fsyntax-only main.c");
    // The same of directories that are searched, by #import.
    let line = "printf '#import <a/header.h>\n#import <b/header.h>\n#ifndef SECOND\n#error none\n#endif\n' |
        clang -fsyntax-only -Wno-import-preprocessor-directive-pedantic -x objective-c -I. -";
    shell(&tree.mount.path, line);
    tree.mount.stop();
}

/// A build goes wrong when a file that it depends on is listed under another's name.
fn clang_depends_on_both() {
    let tree = Tree::of(&[], |root| headers(root, ""));
    let listed = shell(&tree.mount.path, "clang -M main.c");
    assert!(
        listed.contains("a/header.h") && listed.contains("b/header.h"),
        "{listed}"
    );
    // A diagnostic in the second names the second.
    let tree = Tree::of(&[], |root| {
        for name in ["a/header.h", "b/header.h"] {
            file(root, name, b"static int twice;\n", false);
        }
        let source = b"#include \"a/header.h\"\n#define twice 1\n#include \"b/header.h\"\n";
        file(root, "main.c", source, false);
    });
    let mut command = Command::new("clang");
    command.args(["-fsyntax-only", "main.c"]);
    command.current_dir(&tree.mount.path);
    let said = output(command);
    let said = String::from_utf8_lossy(&said.stderr);
    assert!(said.contains("b/header.h:1:"), "{said}");
    tree.mount.stop();
}

/// gcc compares content, time and size for `#pragma once`, so that one is left out on any filesystem; the others not.
fn gcc_includes_both() {
    let tree = Tree::of(&[], |root| headers(root, ""));
    shell(&tree.mount.path, "gcc -fsyntax-only main.c");
    let listed = shell(&tree.mount.path, "gcc -M main.c");
    assert!(
        listed.contains("a/header.h") && listed.contains("b/header.h"),
        "{listed}"
    );
    tree.mount.stop();
}

/// The dynamic linker takes libraries of one device and number for one, so that two equal plugins had one state.
fn two_plugins() {
    let scratch = Scratch::new();
    let plugin = helper(&scratch, "plugin", &["-shared", "-fPIC"]);
    let host = helper(&scratch, "load", &["-ldl"]);
    let tree = Tree::with(scratch, &[], |root| {
        let plugin = fs::read(plugin).unwrap();
        file(root, "a/plugin.so", &plugin, true);
        file(root, "b/plugin.so", &plugin, true);
    });
    let mut command = Command::new(host);
    command.args(["a/plugin.so", "b/plugin.so"]);
    command.current_dir(&tree.mount.path);
    assert_eq!(run_command(command), "handles 2, calls 1\n");
    tree.mount.stop();
}

/// Equal modules, empty packages, and what Python itself calls the same file.
fn python_modules() {
    let tree = Tree::of(&[], |root| {
        twins(root);
        for dir in ["left", "right"] {
            file(root, &format!("{dir}/__init__.py"), b"", false);
            file(root, &format!("{dir}/twin.py"), b"state = []\n", false);
        }
    });
    let script = r"
import os, shutil, sys
import left.twin, right.twin
left.twin.state.append(1)
assert right.twin.state == [], 'one state'
assert left.twin.__file__ != right.twin.__file__
walked = sorted(os.path.join(d, n) for d, ds, fs in os.walk('.', followlinks=True) for n in ds + fs)
assert len(set(walked)) == len(walked)
for name in ['same-a', 'same-b', 'sub/same-a', 'to-same']:
    assert './' + name + '/inner/twin' in walked, name
for a, b in [('one', 'two'), ('same-a', 'same-b'), ('x.lock', 'y.lock'), ('left/twin.py', 'right/twin.py')]:
    assert not os.path.samefile(a, b), (a, b)
assert os.path.samefile('link-a', 'link-b')
out = sys.argv[1]
shutil.copytree('.', out, symlinks=True)
seen = {}
for d, ds, fs in os.walk('.'):
    for n in ds + fs:
        path = os.path.join(d, n)
        stat = os.lstat(path)
        other = seen.setdefault((stat.st_dev, stat.st_ino), path)
        assert other == path, (other, path)
";
    let out = tree.scratch.path("out");
    let mut command = Command::new("python3");
    command.args(["-B", "-c", script]).arg(&out);
    command.current_dir(&tree.mount.path);
    command.env("PYTHONPATH", ".");
    run_command(command);
    crate::support::tree::assert_equal(&tree.source(), &out);
    let chmod = ["-R".as_ref(), "u+w".as_ref(), out.as_os_str()];
    crate::fixture::run("chmod", chmod);
    tree.mount.stop();
}

/// What a program of 32 bits without large-file support says of a tree.
fn old_program(tree: &Tree) -> (String, String) {
    let options = ["-m32", "-U_FILE_OFFSET_BITS", "-U_TIME_BITS"];
    let program = helper(&tree.scratch, "stat32", &options);
    let say = |verb: &str| {
        let mut command = Command::new(&program);
        command.arg(verb).args(["one", "same-a", "sub/three"]);
        command.current_dir(&tree.mount.path);
        run_command(command)
    };
    (say("stat"), say("list"))
}

/// The numbers need more than 32 bits, which such a program is told.
fn stat_of_32_bits() {
    let tree = Tree::of_twins();
    let (stat, _) = old_program(&tree);
    let overflow = "one: EOVERFLOW\nsame-a: EOVERFLOW\nsub/three: EOVERFLOW\n";
    assert_eq!(stat, overflow);
    tree.mount.stop();
}

/// `--inode32` is for them.
fn inode32_for_old_programs() {
    let tree = Tree::of(&["--inode32"], twins);
    let (stat, list) = old_program(&tree);
    assert_eq!(stat, "one: ok\nsame-a: ok\nsub/three: ok\n");
    assert_eq!(list, "one: ENOTDIR\nsame-a: 5\nsub/three: ENOTDIR\n");
    tree.mount.stop();
}
