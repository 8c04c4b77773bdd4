//! Programs that start from the mount: a cold start against the transfer of what it reads and a warm start.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    lab::{GIGABIT, Lab, Remote, run, timed},
    work,
};

const ROUND_TRIP: u64 = 20;

const IMPORTS: &str = "import argparse, ast, asyncio, base64, bz2, cProfile, calendar, codeop, concurrent.futures, configparser, \
    csv, ctypes, curses, dataclasses, datetime, decimal, difflib, dis, doctest, email.mime.multipart, email.parser, \
    email.policy, filecmp, fractions, ftplib, getpass, gettext, gzip, hashlib, html.parser, http.client, http.cookiejar, \
    http.server, imaplib, importlib.metadata, importlib.resources, inspect, ipaddress, json, locale, logging.config, \
    logging.handlers, lzma, mailbox, mimetypes, multiprocessing.managers, multiprocessing.pool, netrc, optparse, pathlib, \
    pdb, pickletools, platform, plistlib, poplib, pprint, profile, pstats, pydoc, queue, random, sched, secrets, selectors, \
    shelve, shlex, shutil, smtplib, socketserver, sqlite3, ssl, statistics, subprocess, symtable, tarfile, tempfile, \
    timeit, tokenize, trace, tracemalloc, typing, unittest.mock, urllib.request, uuid, venv, wave, webbrowser, \
    wsgiref.simple_server, xml.dom.minidom, xml.etree.ElementTree, xml.sax.expatreader, xmlrpc.server, zipapp, zipfile, \
    zoneinfo";

pub fn python(lab: &Lab, remote: &Remote) -> String {
    let Some(python) = installed_python() else {
        return "no Python here | ".to_owned();
    };
    let tree = lab.tree("python", |source| python_tree(&python, source, false));
    let changed = lab.tree("python-changed", |source| {
        python_tree(&python, source, true);
    });
    let start = |root: &Path| {
        let script = format!(
            "PYTHONHOME=$PWD LD_LIBRARY_PATH=$PWD/lib PYTHONDONTWRITEBYTECODE=1 bin/python3 -c '{IMPORTS}'"
        );
        work::shell(root, &script);
    };
    cold_starts(lab, remote, &tree, &changed, &start)
}

pub fn rustc(lab: &Lab, remote: &Remote) -> String {
    let Some(sysroot) = sysroot() else {
        return "no Rust here | ".to_owned();
    };
    let tree = lab.tree("rust", |source| rust_tree(&sysroot, source));
    let changed = lab.tree("rust-changed", |source| {
        rust_tree(&sysroot, source);
        // Archives cannot be changed like that.
        let script = "find . -type f ! -name '*.r*' | sort | awk 'NR % 20 == 0' | while read f; do echo >> \"$f\"; done; \
                      for f in lib/*.so*; do echo >> $f; break; done";
        work::shell(source, script);
    });
    let own = lab.scratch.path("crate");
    fs::create_dir_all(&own).unwrap();
    fs::write(
        own.join("main.rs"),
        "use std::collections::HashMap;\nfn main() {\n    let mut map = HashMap::new();\n    map.insert(1, \"one\");\n    \
         println!(\"{map:?}\");\n}\n",
    )
    .unwrap();
    let start = |root: &Path| {
        let script = format!(
            "{0}/bin/rustc --sysroot {0} --edition 2024 -o main main.rs",
            root.display()
        );
        work::shell(&own, &script);
    };
    cold_starts(lab, remote, &tree, &changed, &start)
}

/// With a recorded profile, without, and with the profile of the tree before it was changed.
fn cold_starts(
    lab: &Lab,
    remote: &Remote,
    tree: &str,
    changed: &str,
    start: &dyn Fn(&Path),
) -> String {
    // What it reads, and its profile.
    remote.link(0, 100 * GIGABIT);
    let mount = lab.mount(remote, ["--profile", "record", "--prefetch", "off", tree]);
    start(&mount.path);
    let reads = lab.counters()["fetched_bytes"] as f64;
    mount.stop();
    let profile = lab.scratch.path("profile");
    let export = ["profile", "export", tree, profile.to_str().unwrap()];
    run(lab.scratch.command(export));
    let warm = |tree: &str| {
        let mount = lab.remount(remote, ["--profile", "off", tree]);
        start(&mount.path);
        mount.stop();
        lab.median(|| {
            let mount = lab.remount(remote, ["--profile", "off", tree]);
            let took = timed(|| start(&mount.path));
            mount.stop();
            took
        })
    };
    let cold = |tree: &str, profile: &str| {
        lab.median(|| {
            let mount = lab.mount(remote, ["--profile", profile, tree]);
            let took = timed(|| start(&mount.path));
            mount.stop();
            took
        })
    };
    let least = reads / GIGABIT as f64 + warm(tree);
    remote.link(ROUND_TRIP, GIGABIT);
    let with = cold(tree, profile.to_str().unwrap()) / least;
    let without = cold(tree, "off") / least;
    let changed = cold(changed, profile.to_str().unwrap()) / least;
    format!(
        "{with:.2} ({without:.2} without a profile, {changed:.2} with 5 % of the files changed; {:.0} MB in {least:.2} s at the best) | ",
        reads / 1e6
    )
}

/// Where the Python is installed that is called `python3`: its program, its library, and where its own shared object is.
fn installed_python() -> Option<[PathBuf; 3]> {
    let script = "import sys, os; print(os.path.realpath(sys.executable)); print(os.path.dirname(os.__file__)); \
                  print(sys.base_prefix + '/lib')";
    let output = Command::new("python3").args(["-c", script]).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    let paths: Vec<_> = said.lines().map(PathBuf::from).collect();
    paths.try_into().ok()
}

/// The same as a tree; `changed` has one source in twenty changed.
fn python_tree([program, library, shared]: &[PathBuf; 3], tree: &Path, changed: bool) {
    copy(program, &tree.join("bin/python3"));
    let own = tree.join("lib").join(library.file_name().unwrap());
    copy(library, &own);
    for entry in fs::read_dir(shared).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("libpython") {
            copy(&entry.path(), &tree.join("lib").join(entry.file_name()));
        }
    }
    let script = "find . -name __pycache__ -prune -exec rm -rf {} +; rm -rf test */test */tests site-packages dist-packages";
    work::shell(&own, script);
    if changed {
        let script = "find . -name '*.py' | sort | awk 'NR % 20 == 0' | while read f; do echo '# changed' >> \"$f\"; done";
        work::shell(&own, script);
    }
    // Times say nothing in a content-addressed tree.
    let compile =
        "python3 -m compileall -q --invalidation-mode unchecked-hash . > /dev/null 2>&1 || true";
    work::shell(&own, compile);
}

fn sysroot() -> Option<PathBuf> {
    let mut rustc = Command::new("rustc");
    let output = rustc.args(["--print", "sysroot"]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_dir().then_some(path)
}

fn rust_tree(sysroot: &Path, tree: &Path) {
    copy(&sysroot.join("bin/rustc"), &tree.join("bin/rustc"));
    copy(&sysroot.join("lib"), &tree.join("lib"));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let mut copy = Command::new("cp");
    copy.args(["-r", "--reflink=auto"]).arg(from).arg(to);
    run(copy);
}
