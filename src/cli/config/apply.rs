use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, sync::Arc};

use clap::{
    ArgMatches, Command, CommandFactory, FromArgMatches, builder::ValueParser, parser::ValueSource,
};

use super::file::{self, ConfigError, From, Merged, Setting, Value};
use crate::cli::Cli;

/// A configuration that was read.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Loaded(pub(super) Arc<Merged>);

/// Arguments that take the address of a remote, or its name.
const REMOTES: [&str; 3] = ["remote", "from", "to"];

/// Reads the files that the command line, the environment and this machine name.
pub(in crate::cli) fn load(args: &[OsString]) -> Result<Loaded, ConfigError> {
    let merged = file::read(given(args).as_deref())?;
    let loaded = Loaded(Arc::new(merged));
    let cli = Cli::command();
    let known = |command: &str| {
        let command = cli.find_subcommand(command);
        let arguments = command.into_iter().flat_map(Command::get_arguments);
        let longs = arguments.filter_map(|argument| argument.get_long());
        longs.map(str::to_owned).collect::<Vec<_>>()
    };
    let check = |section: &str, command: &str, more: &[&str], keys: &BTreeMap<String, From>| {
        let mut known = known(command);
        known.extend(more.iter().map(ToString::to_string));
        let Some((key, (_, path))) = keys.iter().find(|(key, _)| !known.contains(key)) else {
            return Ok(());
        };
        Err(ConfigError::Key {
            path: path.clone(),
            section: section.to_owned(),
            key: key.clone(),
            known: known.join(", "),
        })
    };
    check("mount", "mount", &[], &loaded.0.mount)?;
    check("serve", "serve", &[], &loaded.0.serve)?;
    for (name, preset) in &loaded.0.presets {
        let section = format!("presets.{name}");
        check(&section, "mount", &["root", "mountpoint"], preset)?;
    }
    Ok(loaded)
}

/// `--config`, which has to be known before the command line can be understood.
fn given(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--config") => return args.next().map(PathBuf::from),
            Some("--") => break,
            Some(arg) => {
                if let Some(path) = arg.strip_prefix("--config=") {
                    return Some(path.into());
                }
            }
            None => {}
        }
    }
    std::env::var_os("CASTORE_CONFIG").map(PathBuf::from)
}

/// Understands a command line. What neither it nor the environment says, the configuration does.
pub(in crate::cli) fn parse(mut args: Vec<OsString>, loaded: &Loaded) -> Result<Cli, ConfigError> {
    let command = || resolving(Cli::command(), loaded);
    // What is wrong already is told as ever.
    let matches = command().get_matches_from(&args);
    let added = loaded.arguments(&matches)?;
    if added.is_empty() {
        return Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()));
    }
    // What stands behind `--` is no option.
    let end = args.iter().position(|arg| arg == "--");
    let end = end.unwrap_or(args.len());
    args.splice(end..end, added);
    let matches = command()
        .try_get_matches_from(&args)
        .map_err(|error| loaded.unusable(&error))?;
    Cli::from_arg_matches(&matches).map_err(|error| loaded.unusable(&error))
}

/// A command whose remotes may be given by the names that the configuration has for them.
fn resolving(mut command: Command, loaded: &Loaded) -> Command {
    let names: Vec<_> = command
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    for name in names {
        command = command.mut_subcommand(name, |mut command| {
            for remote in REMOTES {
                let is_there = |argument: &clap::Arg| argument.get_id() == remote;
                if command.get_arguments().any(is_there) {
                    let loaded = loaded.clone();
                    let parser = move |text: &str| loaded.addresses(text);
                    command = command.mut_arg(remote, |argument| {
                        argument.value_parser(ValueParser::from(parser))
                    });
                }
            }
            command
        });
    }
    command
}

impl Loaded {
    fn unusable(&self, error: &clap::Error) -> ConfigError {
        let files = self.0.files.iter().map(|file| file.display().to_string());
        ConfigError::Value(files.collect::<Vec<_>>().join(" or "), error.to_string())
    }

    /// The addresses in a text, one on each line: those of remotes that are given by name, and others as they are.
    fn addresses(&self, text: &str) -> Result<String, ConfigError> {
        let addresses = split(text).map(|text| self.address(text));
        Ok(addresses.collect::<Result<Vec<_>, _>>()?.join("\n"))
    }

    fn address(&self, text: &str) -> Result<String, ConfigError> {
        let Some(remote) = self.0.remotes.get(text) else {
            return Ok(absolute(text));
        };
        let mut options = url::form_urlencoded::Serializer::new(String::new());
        for (option, setting) in &remote.options {
            let failed = |source_of: String, cause: String| ConfigError::Secret {
                remote: text.to_owned(),
                option: option.clone(),
                source_of,
                cause,
            };
            match setting {
                Setting::Plain(Value::List(values)) => {
                    for value in values {
                        options.append_pair(option, value);
                    }
                }
                Setting::Plain(value) => {
                    options.append_pair(option, &value.to_string());
                }
                Setting::File { file } => {
                    let secret = std::fs::read_to_string(file)
                        .map_err(|error| failed(format!("the file {file:?}"), error.to_string()))?;
                    options.append_pair(option, secret.trim());
                }
                Setting::Env { env } => {
                    let secret = std::env::var(env).map_err(|error| {
                        failed(format!("the variable {env}"), error.to_string())
                    })?;
                    options.append_pair(option, &secret);
                }
            }
        }
        let options = options.finish();
        Ok(match (options.is_empty(), remote.url.contains('?')) {
            (true, _) => remote.url.clone(),
            (false, false) => format!("{}?{options}", remote.url),
            (false, true) => format!("{}&{options}", remote.url),
        })
    }

    /// Arguments for what a command line leaves open.
    fn arguments(&self, matches: &ArgMatches) -> Result<Vec<OsString>, ConfigError> {
        let Some((name, given)) = matches.subcommand() else {
            return Ok(Vec::new());
        };
        let mut settings = self.0.common.clone();
        match name {
            "mount" => settings.extend(self.0.mount.clone()),
            "serve" => settings.extend(self.0.serve.clone()),
            _ => {}
        }
        let preset = match given.try_get_one::<String>("preset") {
            Ok(Some(preset)) => Some(self.preset(preset)?),
            _ => None,
        };
        settings.extend(preset.cloned().unwrap_or_default());
        let cli = Cli::command();
        let command = cli.find_subcommand(name);
        let mut arguments = Vec::new();
        for argument in command.into_iter().flat_map(Command::get_arguments) {
            let Some(long) = argument.get_long() else {
                continue;
            };
            let is_open = !matches!(
                given.value_source(argument.get_id().as_str()),
                Some(ValueSource::CommandLine | ValueSource::EnvVariable)
            );
            if let Some((value, _)) = settings.get(long).filter(|_| is_open) {
                let is_switch = !argument.get_action().takes_values();
                arguments.extend(value.arguments(long, is_switch));
            }
        }
        let has_positions = matches!(given.try_get_raw("positions"), Ok(Some(_)));
        if let Some(preset) = preset.filter(|_| !has_positions) {
            for key in ["root", "mountpoint"] {
                arguments.extend(preset.get(key).map(|(value, _)| value.to_string().into()));
            }
        }
        Ok(arguments)
    }

    fn preset(&self, name: &str) -> Result<&BTreeMap<String, From>, ConfigError> {
        self.0.presets.get(name).ok_or_else(|| {
            let known: Vec<_> = self.0.presets.keys().map(String::as_str).collect();
            let known = match known.is_empty() {
                true => "none".to_owned(),
                false => known.join(", "),
            };
            ConfigError::Preset(name.to_owned(), known)
        })
    }
}

/// Splits at commas that an address or a name follows: options of an address may hold others.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let is_first = |at: &usize| {
            let (before, after) = (&text[..*at], &text[at + 1..]);
            after.starts_with("objectstore+")
                || after.starts_with("grpc+")
                || !before.contains("://")
        };
        let at = text.match_indices(',').map(|(at, _)| at).find(is_first);
        let (first, others) = match at {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        rest = others;
        Some(first)
    })
    .filter(|text| !text.is_empty())
}

/// Makes the files that an address names absolute: a mount in the background leaves the directory it was called in.
fn absolute(address: &str) -> String {
    let Some((place, query)) = address
        .split_once('?')
        .filter(|_| address.starts_with("grpc+"))
    else {
        return address.to_owned();
    };
    let options: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let is_relative = |(option, value): &(String, String)| {
        file::FILES.contains(&option.as_str()) && !value.starts_with('/')
    };
    if !options.iter().any(is_relative) {
        return address.to_owned();
    }
    let mut written = url::form_urlencoded::Serializer::new(String::new());
    for pair in options {
        let path = std::path::absolute(&pair.1)
            .ok()
            .filter(|_| is_relative(&pair));
        let value = path.map_or(pair.1, |path| path.to_string_lossy().into_owned());
        written.append_pair(&pair.0, &value);
    }
    format!("{place}?{}", written.finish())
}

impl Value {
    /// As arguments of a command.
    fn arguments(&self, long: &str, is_switch: bool) -> Vec<OsString> {
        match self {
            Self::Bool(true) if is_switch => vec![format!("--{long}").into()],
            Self::Bool(false) if is_switch => Vec::new(),
            Self::List(values) => {
                let values = values.iter();
                values
                    .map(|value| format!("--{long}={value}").into())
                    .collect()
            }
            value => vec![format!("--{long}={value}").into()],
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
            Self::List(values) => f.write_str(&values.join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_options_are_theirs() {
        fn parts(text: &str) -> Vec<String> {
            split(text).map(str::to_owned).collect()
        }
        assert_eq!(parts("hub,origin"), ["hub", "origin"]);
        assert_eq!(
            parts("grpc+http://a,objectstore+file:///b"),
            ["grpc+http://a", "objectstore+file:///b"]
        );
        let s3 = "objectstore+s3://b/p?secret_access_key=a,b&region=c,d";
        assert_eq!(parts(s3), [s3]);
        assert_eq!(
            parts(&format!("{s3},grpc+unix:///s")),
            [s3, "grpc+unix:///s"]
        );
        assert_eq!(parts(&format!("hub,{s3}")), ["hub", s3]);
        assert!(parts("").is_empty());
    }

    #[test]
    fn files_of_an_address_become_absolute() {
        let here = std::env::current_dir().unwrap();
        let address = absolute("grpc+https://h:1?ca=tls/ca.pem&protocol=tvix&token-file=/t");
        let options: Vec<_> =
            url::form_urlencoded::parse(address.split_once('?').unwrap().1.as_bytes()).collect();
        assert_eq!(options[0].1, here.join("tls/ca.pem").to_str().unwrap());
        assert_eq!((&*options[1].1, &*options[2].1), ("tvix", "/t"));
        for same in [
            "grpc+http://h?ca=/x",
            "grpc+http://h",
            "objectstore+s3://b?ca=x",
        ] {
            assert_eq!(absolute(same), same);
        }
    }
}
