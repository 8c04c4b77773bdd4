//! This very program as a program of the guest, with the libraries that it is linked with.

use std::{path::PathBuf, process::Command};

use super::machine::GuestOptions;

fn this() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// The dynamic linker is among them.
fn libraries() -> Result<Vec<PathBuf>, String> {
    let output = match Command::new("ldd").arg(this()).output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => return Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => return Err(format!("ldd: {error}")),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// Why it cannot be run in a guest.
pub fn missing() -> Option<String> {
    libraries().err()
}

/// Gives it to the guest, and the words that run it there.
pub fn add_to(options: &mut GuestOptions) -> String {
    let mut linker = None;
    for path in libraries().unwrap() {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("ld-") {
            linker = Some(name.clone());
        }
        options.programs.push((name, path));
    }
    options.programs.push(("this".into(), this()));
    let linker = linker.unwrap();
    format!("/programs/{linker} --library-path /programs /programs/this")
}
