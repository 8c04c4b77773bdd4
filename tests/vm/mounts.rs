//! What a guest sees of a tree.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use crate::{
    Test,
    support::{
        guest::{
            back_end::{BackEnd, Served},
            machine,
        },
        output, succeeded, tree,
    },
};

pub const ALL: [Test; 3] = [
    ("boots_and_mounts", boots_and_mounts),
    ("digests_agree", digests_agree),
    ("short_queues_suffice", short_queues_suffice),
];

/// Prints one line for each directory, executable, symlink and digest of the working directory, sorted. Busybox runs it, in
/// the guest and on the host, so that odd names are printed alike. What a back end may present as it likes is left out:
/// owners, times, the other bits of modes, sizes of directories.
const LISTING: &str = r#"
    {
        find . -type d | sed 's/^/directory /'
        find . -type f -perm -100 | sed 's/^/executable /'
        find . -type f -exec busybox stat -c 'size %s %n' {} +
        find . -type f -exec busybox sha256sum {} +
        find . -type l | while read -r link; do echo "symlink $link $(readlink "$link")"; done
    } >/tmp/listing && sort /tmp/listing"#;

fn boots_and_mounts(back_end: &BackEnd) {
    let mut served = Served::start(back_end, |root| {
        tree::file(root, "hello", b"Hello World", false);
    });
    let guest = &mut served.guest;
    eprintln!("the guest boots in {:.1} s", guest.boot_time.as_secs_f64());
    guest.mount("/mnt");
    assert_eq!(guest.ok("cat /mnt/hello"), "Hello World");
    let type_of = guest.ok("grep ' /mnt ' /proc/mounts | cut -d ' ' -f 3");
    assert_eq!(type_of, "virtiofs\n");
    let absent = guest.run("cat /mnt/absent");
    assert_eq!(absent.status, 1, "{absent:?}");
    // The line carries any bytes, and any status.
    let bytes = guest.run("printf 'a\\000\\r\\n\\377'; echo no >&2; exit 7");
    assert_eq!(bytes.status, 7);
    assert_eq!(bytes.stdout, b"a\0\r\n\xff");
    assert_eq!(bytes.stderr, b"no\n");
    guest.ok("umount /mnt");
    guest.mount("/mnt");
    assert_eq!(guest.ok("ls /mnt"), "hello\n");
    served.guest.power_off();
}

fn digests_agree(back_end: &BackEnd) {
    let mut served = Served::start(back_end, many_files);
    served.guest.mount("/mnt");
    assert_same(&mut served);
    // Once more with what the guest has cached, and without.
    assert_same(&mut served);
    served.guest.ok("echo 3 >/proc/sys/vm/drop_caches");
    assert_same(&mut served);
    assert!(served.daemon.is_well(), "{}", served.daemon.log());
}

/// The kernel splits reads so that each fits into a queue: at most 124 pages here, where usually 256 go at once.
fn short_queues_suffice(back_end: &BackEnd) {
    let mut served = Served::with(back_end, many_files, |options| options.queue_size = 128);
    served.guest.mount("/mnt");
    assert_same(&mut served);
    assert!(served.daemon.is_well(), "{}", served.daemon.log());
}

pub fn assert_same(served: &mut Served) {
    let found = served.guest.run(&format!("cd /mnt\n{LISTING}"));
    let stderr = String::from_utf8_lossy(&found.stderr);
    assert!(found.status == 0 && stderr.is_empty(), "{stderr}");
    let found = String::from_utf8_lossy(&found.stdout);
    let expected = on_host(served);
    let lines = expected.lines().count();
    assert!(lines > 500, "{lines} lines: {expected}");
    // Line by line, so that a failure names the file.
    for (expected, found) in expected.lines().zip(found.lines()) {
        assert_eq!(expected, found);
    }
    assert_eq!(lines, found.lines().count());
}

/// What the guest must print too.
fn on_host(served: &Served) -> String {
    let busybox = machine::busybox();
    let mut command = Command::new(&busybox);
    // In the scratch directory, not in the one that the guest uses.
    let listing = served.scratch.path("listing").display().to_string();
    let script = LISTING.replace("/tmp/listing", &format!("'{listing}'"));
    command.args(["sh", "-c", &script]).env("LC_ALL", "C");
    command.env("PATH", busybox.parent().unwrap());
    command.current_dir(served.scratch.path("source"));
    let output = output(command);
    assert!(output.stderr.is_empty(), "{output:?}");
    let lossy = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut valid = output;
    valid.stdout = lossy.into_bytes();
    succeeded(&valid)
}

/// Sizes around those of pages and requests, each of them many times, and one of everything else.
pub fn many_files(root: &Path) {
    tree::sample(root);
    let sizes = [0, 1, 4095, 4096, 4097, 128 << 10, (128 << 10) + 1];
    for number in 0..280 {
        let content = tree::noise(number as u64, sizes[number % sizes.len()]);
        let name = format!("many/{}/file-{number}", number / 40);
        tree::file(root, &name, &content, number % 10 == 0);
    }
    for (number, size) in [1 << 20, (1 << 20) + 1, 3 << 20].into_iter().enumerate() {
        let content = tree::noise(1000 + number as u64, size);
        tree::file(root, &format!("big/{size}"), &content, false);
    }
    let deep = ["deep-directory"; 40].join("/");
    tree::file(root, &format!("{deep}/end"), b"the end", false);
    for name in [
        " ",
        "-n",
        "*",
        "it's",
        "a\\b",
        "\u{e9}\u{4e2d}",
        "tab\there",
    ] {
        tree::file(&root.join("odd"), name, name.as_bytes(), false);
        symlink(name, root.join("odd").join(format!("to {name}"))).unwrap();
    }
    fs::create_dir_all(root.join("empty/empty")).unwrap();
}
