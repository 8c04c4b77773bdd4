use std::{collections::BTreeMap, fmt::Write, path::Path};

use clap::{Command, CommandFactory};

use super::{
    apply::Loaded,
    file::{CACHE_KEYS, From, Setting, Value},
};
use crate::{cli::Cli, remote::Address};

/// Options of a remote that are no secrets.
const PLAIN: [&str; 17] = [
    "endpoint",
    "aws_endpoint",
    "region",
    "aws_region",
    "account",
    "account_name",
    "protocol",
    "hub",
    "ca",
    "cert",
    "key",
    "token-file",
    "names-token-file",
    "connections",
    "allow_http",
    "use_emulator",
    "google_service_account",
];

/// Prints the settings as a castore.toml, with where each is from.
pub(super) fn run(loaded: &Loaded) -> anyhow::Result<()> {
    print!("{}", text(loaded)?);
    Ok(())
}

fn text(loaded: &Loaded) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let merged = &loaded.0;
    match merged.files.is_empty() {
        true => writeln!(out, "# no castore.toml was found")?,
        false => {
            for file in &merged.files {
                writeln!(out, "# read {}", file.display())?;
            }
        }
    }
    let cli = Cli::command();
    let common = ["remote", "timeout", "outage", "hedge", "offline"];
    for flag in common {
        setting(&mut out, &cli, "mount", flag, flag, &merged.common)?;
    }
    writeln!(out, "\n[cache]")?;
    for (key, flag) in CACHE_KEYS {
        setting(&mut out, &cli, "mount", flag, key, &merged.common)?;
    }
    for (command, section) in [("mount", &merged.mount), ("serve", &merged.serve)] {
        writeln!(out, "\n[{command}]")?;
        let arguments = cli
            .find_subcommand(command)
            .into_iter()
            .flat_map(Command::get_arguments);
        for flag in arguments.filter_map(|argument| argument.get_long()) {
            let elsewhere = common.contains(&flag)
                || CACHE_KEYS.iter().any(|(_, cache)| *cache == flag)
                || matches!(flag, "help" | "config" | "preset" | "version");
            if !elsewhere || section.contains_key(flag) {
                setting(&mut out, &cli, command, flag, flag, section)?;
            }
        }
    }
    for (name, remote) in &merged.remotes {
        writeln!(out, "\n[remotes.{name}]")?;
        let shown = match Address::parse(&remote.url) {
            Ok(address) => address.shown().to_owned(),
            Err(error) => format!("(not usable: {error})"),
        };
        writeln!(out, "url = {shown:?}")?;
        for (option, setting) in &remote.options {
            match setting {
                Setting::Plain(value) if PLAIN.contains(&option.as_str()) => {
                    writeln!(out, "options.{option} = {}", toml_of(value))?;
                }
                Setting::Plain(_) => writeln!(out, "options.{option} = \"(hidden)\"")?,
                Setting::File { file } => {
                    writeln!(out, "options.{option} = {{ file = {file:?} }}")?;
                }
                Setting::Env { env } => writeln!(out, "options.{option} = {{ env = {env:?} }}")?,
            }
        }
    }
    for (name, preset) in &merged.presets {
        writeln!(out, "\n[presets.{name}]")?;
        for (key, (value, path)) in preset {
            line(&mut out, key, key, value, Some(path))?;
        }
    }
    Ok(out)
}

/// The value in force of a flag: from the environment, a file, or the default.
fn setting(
    out: &mut String,
    cli: &Command,
    command: &str,
    flag: &str,
    key: &str,
    section: &BTreeMap<String, From>,
) -> std::fmt::Result {
    let command = cli.find_subcommand(command);
    let mut arguments = command.into_iter().flat_map(Command::get_arguments);
    let Some(argument) = arguments.find(|argument| argument.get_long() == Some(flag)) else {
        return Ok(());
    };
    let variable = argument.get_env().and_then(|variable| variable.to_str());
    if let Some(variable) = variable
        && let Ok(value) = std::env::var(variable)
    {
        let value = match flag {
            "remote" => Value::List(value.split(',').map(str::to_owned).collect()),
            _ => Value::Text(value),
        };
        let shown = shown(flag, &value);
        return writeln!(out, "{key} = {} # {variable}", toml_of(&shown));
    }
    if let Some((value, path)) = section.get(flag) {
        return line(out, flag, key, value, Some(path));
    }
    let defaults = argument.get_default_values();
    if let [default] = defaults {
        let value = Value::Text(default.to_string_lossy().into_owned());
        return line(out, flag, key, &value, None);
    }
    writeln!(out, "# {key} is not set")
}

fn line(
    out: &mut String,
    flag: &str,
    key: &str,
    value: &Value,
    path: Option<&Path>,
) -> std::fmt::Result {
    let shown = toml_of(&shown(flag, value));
    match path {
        Some(path) => writeln!(out, "{key} = {shown} # {}", path.display()),
        None => writeln!(out, "{key} = {shown} # default"),
    }
}

/// Without the secrets that an address may hold.
fn shown(flag: &str, value: &Value) -> Value {
    let address = |text: &String| match Address::parse(text) {
        Ok(address) if text.contains("://") => address.shown().to_owned(),
        Err(_) if text.contains("://") => "(not an address)".to_owned(),
        _ => text.clone(),
    };
    match (flag, value) {
        ("remote", Value::Text(text)) => Value::Text(address(text)),
        ("remote", Value::List(list)) => Value::List(list.iter().map(address).collect()),
        (_, value) => value.clone(),
    }
}

fn toml_of(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::Text(value) => toml::Value::String(value.clone()).to_string(),
        Value::List(values) => {
            let values = values.iter().cloned().map(toml::Value::String);
            toml::Value::Array(values.collect()).to_string()
        }
    }
}
