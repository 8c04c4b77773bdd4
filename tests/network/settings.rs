//! `castore.toml`.

use std::fs;

use crate::support::{Scratch, output, succeeded, tree};

struct Settings {
    scratch: Scratch,
}

impl Settings {
    fn new(text: &str) -> Self {
        let scratch = Scratch::new();
        let source = scratch.path("source");
        fs::create_dir(&source).unwrap();
        tree::file(&source, "f", b"content", false);
        scratch.ok(["import", "--name", "tree", source.to_str().unwrap()]);
        let text = text
            .replace("STORE", &scratch.remote())
            .replace("DIR", scratch.dir.path().to_str().unwrap());
        fs::write(scratch.path("castore.toml"), text).unwrap();
        Self { scratch }
    }

    /// Without what the other tests set in the environment.
    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.scratch.command(args);
        for variable in ["CASTORE_REMOTE", "CASTORE_CACHE_DIR", "CASTORE_MIN_FREE"] {
            command.env_remove(variable);
        }
        command.env("CASTORE_CONFIG", self.scratch.path("castore.toml"));
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        succeeded(&output(self.command(args)))
    }

    fn fails(&self, args: &[&str]) -> String {
        crate::support::failed(&output(self.command(args)))
    }
}

const GOOD: &str = "
remote = ['here']
timeout = '7s'
[remotes.here]
url = 'STORE'
[remotes.cloud]
url = 'objectstore+s3://bucket/prefix'
options = { region = 'r', access_key_id = 'hidden-id', secret_access_key = { file = 'DIR/secret' } }
[remotes.by-env]
url = 'objectstore+s3://bucket/prefix'
options = { secret_access_key = { env = 'NOT_SET_ANYWHERE' } }
[cache]
dir = 'DIR/configured-cache'
size = '64MiB'
min-free = '0'
[mount]
xattr = false
[presets.p]
root = 'tree'
mountpoint = 'DIR/mnt'
xattr = true
";

#[test]
fn flags_win_over_the_environment_over_files() {
    let settings = Settings::new(GOOD);
    assert!(settings.ok(&["roots"]).contains(" tree\n"));
    assert!(
        settings
            .scratch
            .path("configured-cache/index.sqlite")
            .exists()
    );
    let shown = settings.ok(&["config", "show"]);
    assert!(
        shown.contains("remote = [\"here\"]") && shown.contains("timeout = \"7s\""),
        "{shown}"
    );
    assert!(
        shown.contains("size = \"64MiB\"") && shown.contains("castore.toml"),
        "{shown}"
    );
    assert!(
        !shown.contains("hidden-id") && shown.contains("(hidden)"),
        "{shown}"
    );
    assert!(
        shown.contains("region = \"r\"") && shown.contains("outage = \"fail\" # default"),
        "{shown}"
    );
    // The environment wins over the file, …
    let mut command = self::Settings::command(&settings, &["config", "show"]);
    command.env("CASTORE_TIMEOUT", "8s");
    let shown = succeeded(&output(command));
    assert!(
        shown.contains("timeout = \"8s\" # CASTORE_TIMEOUT"),
        "{shown}"
    );
    let by_env = settings.scratch.path("by-env");
    let mut command = settings.command(&["roots"]);
    command.env("CASTORE_CACHE_DIR", &by_env);
    succeeded(&output(command));
    assert!(by_env.join("index.sqlite").exists());
    // … and a flag over both.
    let by_flag = settings.scratch.path("by-flag");
    let mut command = settings.command(&["roots", "--cache-dir", by_flag.to_str().unwrap()]);
    command.env("CASTORE_CACHE_DIR", &by_env);
    succeeded(&output(command));
    assert!(by_flag.join("index.sqlite").exists());
    // A user's own file, and --config on the command line.
    let home = settings.scratch.path("home/.config/castore");
    fs::create_dir_all(&home).unwrap();
    fs::write(
        home.join("castore.toml"),
        "timeout = '1s'\noutage = 'wait=5m'",
    )
    .unwrap();
    let shown = settings.ok(&["config", "show"]);
    assert!(
        shown.contains("timeout = \"7s\"") && shown.contains("outage = \"wait=5m\""),
        "{shown}"
    );
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let settings = Settings::new(GOOD);
    let file = settings.scratch.path("castore.toml");
    for (text, parts) in [
        ("colour = 'red'", &["castore.toml", "colour"][..]),
        (
            "[cache]\ncolour = 'red'",
            &["castore.toml", "[cache]", "colour", "min-free"],
        ),
        (
            "[mount]\ncolour = 'red'",
            &["castore.toml", "[mount]", "colour", "names-ttl"],
        ),
        (
            "[presets.x]\ncolour = 'red'",
            &["castore.toml", "[presets.x]", "colour"],
        ),
        ("timeout = 'soon'", &["castore.toml", "soon"]),
        ("timeout =", &["castore.toml", "line 1"]),
        ("[cache]\nx = \"hush-hush", &["castore.toml", "line 2"]),
        ("remote = ['nowhere']", &["nowhere", "castore.toml"]),
    ] {
        fs::write(&file, text).unwrap();
        let said = settings.fails(&["roots"]);
        assert!(
            parts.iter().all(|part| said.contains(part)) && !said.contains("hush"),
            "{text}: {said}"
        );
    }
    fs::remove_file(&file).unwrap();
    assert!(settings.fails(&["roots"]).contains("castore.toml"));
}

#[test]
fn secrets_come_from_elsewhere_and_are_not_shown() {
    let settings = Settings::new(GOOD);
    let said = settings.fails(&["roots", "--remote", "cloud"]);
    assert!(
        said.contains("secret_access_key") && said.contains("secret\""),
        "{said}"
    );
    let said = settings.fails(&["roots", "--remote", "by-env"]);
    assert!(said.contains("NOT_SET_ANYWHERE"), "{said}");
    fs::write(settings.scratch.path("secret"), "hush\n").unwrap();
    // It is used, against nobody: what is said has neither.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let text = fs::read_to_string(settings.scratch.path("castore.toml")).unwrap();
    let text = text.replace(
        "region = 'r'",
        &format!("region = 'r', endpoint = 'http://127.0.0.1:{port}'"),
    );
    fs::write(settings.scratch.path("castore.toml"), text).unwrap();
    let said = settings.fails(&["roots", "--timeout", "1s", "--remote", "cloud"]);
    assert!(
        !said.contains("hush") && !said.contains("hidden-id"),
        "{said}"
    );
    assert!(
        said.contains("s3://bucket/prefix") && said.contains("refused"),
        "{said}"
    );
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_preset_is_mounted() {
    let settings = Settings::new(GOOD);
    settings.ok(&["mount", "--preset", "p"]);
    let mnt = settings.scratch.mnt();
    let content = fs::read_to_string(mnt.join("f"));
    let named = rustix::fs::getxattr(
        mnt.join("f"),
        "user.tvix.castore.blob.digest",
        &mut [0_u8; 100],
    );
    let status = settings.ok(&["status"]);
    settings.ok(&["unmount", mnt.to_str().unwrap()]);
    assert_eq!(content.unwrap(), "content");
    // The preset says otherwise than [mount].
    assert!(named.is_ok());
    assert!(status.contains("of tree"), "{status}");
    assert!(
        settings
            .fails(&["mount", "--preset", "q"])
            .contains("it has p")
    );
}

#[test]
fn no_message_shows_an_address_with_its_secrets() {
    let scratch = Scratch::new();
    scratch.ok([
        "import",
        "--name",
        "n",
        scratch.path("home").to_str().unwrap(),
    ]);
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let s3 = format!(
        "objectstore+s3://b/p?secret_access_key=hush&access_key_id=hush-too&endpoint=http://127.0.0.1:{port}"
    );
    let web = format!("objectstore+http://me:hush@127.0.0.1:{port}/x");
    let grpc = format!("grpc+http://me:hush@127.0.0.1:{port}");
    for remote in [&s3, &web, &grpc] {
        for args in [
            &["roots", "--remove", "x"][..],
            &["roots"],
            &["ls", "x"],
            &["cat", "x/y"],
            &["fetch", "x"],
            &["verify", "x"],
            &["status"],
        ] {
            let out = scratch.run([args, &["--timeout", "500ms", "--remote", remote]].concat());
            let said = [out.stdout, out.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert!(!said.contains("hush"), "{args:?}: {said}");
        }
        let out = scratch.run([
            "copy",
            "n",
            "--timeout",
            "500ms",
            "--from",
            &scratch.remote(),
            "--to",
            remote,
        ]);
        let said = [out.stdout, out.stderr].concat();
        assert!(!String::from_utf8_lossy(&said).contains("hush"));
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn relative_files_work_from_anywhere() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::file(&source, "f", b"content", false);
    scratch.ok(["import", "--name", "tree", source.to_str().unwrap()]);
    fs::write(scratch.path("token"), "secret").unwrap();
    let token = scratch.path("token");
    let args = ["--token-file", token.to_str().unwrap()];
    let hub = crate::support::hub::Hub::start(&scratch, "hub", &scratch.remote(), args);
    let text = format!(
        "remote = ['hub']\n[remotes.hub]\nurl = '{}'\noptions = {{ token-file = 'token' }}\n",
        hub.address
    );
    fs::write(scratch.path("castore.toml"), text).unwrap();
    let mnt = scratch.mnt();
    let mnt = mnt.to_str().unwrap();
    let address = format!("{}?token-file=token", hub.address);
    // Relative to where it is called, and to the file that says so.
    for (dir, args) in [
        (scratch.path("."), &["--remote", &address][..]),
        (scratch.path("home"), &["--config", "../castore.toml"]),
    ] {
        let mut command = scratch.command([&["mount", "tree", mnt], args].concat());
        command.current_dir(dir).env_remove("CASTORE_REMOTE");
        succeeded(&output(command));
        let content = fs::read_to_string(scratch.mnt().join("f"));
        scratch.ok(["unmount", mnt]);
        assert_eq!(content.unwrap(), "content");
    }
    hub.stop();
}
