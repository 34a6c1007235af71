//! Who is compared: Leno, nothing at all, and whatever `benches/contenders/*.yaml` describe.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::work::{Group, Load, Protocol, Work};

/// The name of the contender that is no proxy.
pub(crate) const DIRECT: &str = "direct";
/// The pair of Leno's sidecars, whose ratios to all others the report gives.
pub(crate) const LENO: &str = "leno";

/// One way to get from client to server.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    pub name: String,
    pub kind: Kind,
    pub how: How,
}

/// How many proxies there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    /// One, plaintext on both sides.
    Hop,
    /// Two, mTLS between them.
    Pair,
}

/// Who runs it.
#[derive(Debug, Clone)]
pub(crate) enum How {
    Direct,
    Leno {
        /// The policy changes all the time.
        churn: bool,
    },
    Programs(Box<Definition>),
}

/// A contender's file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Definition {
    /// One line for the report.
    pub about: String,
    /// Prints its version.
    pub version: Vec<String>,
    /// What it can carry, and variables whose value depends on that.
    pub protocols: BTreeMap<Protocol, BTreeMap<String, String>>,
    /// Key exchanges that its inbound proxy accepts.
    #[serde(default)]
    pub key_exchange: Vec<Group>,
    /// ALPN names that its inbound proxy expects of mTLS clients.
    #[serde(default)]
    pub mesh_alpn: BTreeMap<Protocol, String>,
    /// Works (or families) that it takes part in; empty: all that it can.
    #[serde(default)]
    pub works: Vec<String>,
    /// The client's proxy; alone, it is a hop.
    pub outbound: Program,
    pub inbound: Option<Program>,
}

/// One proxy.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Program {
    /// Template of its configuration, beside the contender's file.
    pub config: Option<String>,
    pub command: Vec<String>,
}

impl Contender {
    /// Leno, nothing, and those of a folder, by name.
    pub(crate) fn all(folder: &Path) -> Result<Vec<Self>> {
        let built_in = |name: &str, kind, how| Self { name: name.to_owned(), kind, how };
        let mut all = vec![
            built_in(DIRECT, Kind::Direct, How::Direct),
            built_in(LENO, Kind::Pair, How::Leno { churn: false }),
            built_in("leno-churn", Kind::Pair, How::Leno { churn: true }),
            built_in("leno-hop", Kind::Hop, How::Leno { churn: false }),
        ];
        let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        files.sort();
        for file in files {
            all.push(Self::read(&file)?);
        }
        Ok(all)
    }

    fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let name = file.file_stem().context("a contender's file name")?.to_string_lossy().into_owned();
        Self::parse(name, &text).with_context(|| format!("{}", file.display()))
    }

    fn parse(name: String, text: &str) -> Result<Self> {
        let definition: Definition = serde_saphyr::from_str(text).context("not a contender")?;
        let kind = if definition.inbound.is_some() { Kind::Pair } else { Kind::Hop };
        ensure!(!definition.outbound.command.is_empty(), "outbound.command is empty");
        Ok(Self { name, kind, how: How::Programs(Box::new(definition)) })
    }

    /// Whether it can do this work, and is meant to.
    pub(crate) fn takes_part(&self, work: &Work) -> bool {
        match self.kind {
            Kind::Direct => return work.direct(),
            Kind::Hop if work.at_inbound() || !work.hops => return false,
            Kind::Hop | Kind::Pair => {}
        }
        match &self.how {
            How::Direct => true,
            How::Leno { churn } => !churn || matches!(work.load, Load::Paced { .. }),
            How::Programs(definition) => {
                let listed = definition.works.is_empty()
                    || definition.works.iter().any(|name| crate::work::is_called(work, name));
                let exchange = match work.load {
                    Load::Handshake { group } => definition.key_exchange.contains(&group),
                    _ => true,
                };
                listed && exchange && definition.protocols.contains_key(&work.upstream.protocol())
            }
        }
    }

    /// "HAProxy version 2.6.12…"; fails if the program cannot be run.
    pub(crate) fn version(&self) -> Result<String> {
        let command = match &self.how {
            How::Direct => return Ok(String::new()),
            How::Leno { .. } => vec![leno_e2e::binaries::leno_proxy()?.display().to_string(), "version".to_owned()],
            How::Programs(definition) => definition.version.clone(),
        };
        printed_version(&command)
    }

    /// A line for the report.
    pub(crate) fn about(&self) -> &str {
        match (&self.how, self.kind) {
            (How::Direct, _) => "no proxy: what load generator and server can do",
            (How::Leno { churn: true }, _) => "the pair while the route that it uses is changed every 10 ms",
            (How::Leno { churn: false }, Kind::Hop) => "one Leno sidecar, to an endpoint outside the mesh, plaintext",
            (How::Leno { churn: false }, _) => {
                "a pair of Leno sidecars as shipped: mTLS, policy from the control plane, metrics"
            }
            (How::Programs(definition), _) => &definition.about,
        }
    }
}

/// The first line that a command prints.
pub(crate) fn printed_version(command: &[String]) -> Result<String> {
    let (program, arguments) = command.split_first().context("version: no command")?;
    let output = Command::new(program).args(arguments).output().with_context(|| format!("run {program}"))?;
    // nginx prints it on standard error.
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    Ok(printed.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned())
}

/// Replaces each `@name@` by its value; a name without a value is an error.
pub(crate) fn render(template: &str, variables: &BTreeMap<String, String>) -> Result<String> {
    let mut rendered = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('@') {
        rendered.push_str(before);
        let is_name = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
        };
        match after.split_once('@') {
            Some((name, tail)) if is_name(name) => {
                match variables.get(name) {
                    Some(value) => rendered.push_str(value),
                    None => bail!("@{name}@ has no value"),
                }
                rest = tail;
            }
            _ => {
                rendered.push('@');
                rest = after;
            }
        }
    }
    rendered.push_str(rest);
    Ok(rendered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("contenders")
    }

    #[test]
    fn the_shipped_files_are_contenders_and_their_templates_exist() {
        let all = Contender::all(&folder()).unwrap();
        assert!(all.iter().any(|contender| contender.name == "haproxy-chain-h2" && contender.kind == Kind::Pair));
        for contender in &all {
            let How::Programs(definition) = &contender.how else { continue };
            for program in [Some(&definition.outbound), definition.inbound.as_ref()].into_iter().flatten() {
                let Some(config) = &program.config else { continue };
                assert!(folder().join(config).is_file(), "{}: {config}", contender.name);
            }
        }
    }

    #[test]
    fn who_takes_part() {
        let all = Contender::all(&folder()).unwrap();
        let names = |work: &str| -> Vec<&str> {
            let work = *work::ALL.iter().find(|one| one.name == work).unwrap();
            all.iter()
                .filter(|contender| contender.takes_part(&work))
                .map(|contender| contender.name.as_str())
                .collect()
        };
        assert!(names("h1-c1").contains(&"direct") && names("h1-c1").contains(&"nginx-hop"));
        assert!(!names("h1-c1").contains(&"leno-churn") && names("paced-1000").contains(&"leno-churn"));
        assert!(!names("handshake-x25519").contains(&"leno-hop"));
        assert!(!names("handshake-x25519mlkem768").iter().any(|name| name.starts_with("haproxy")));
    }

    #[test]
    fn mistakes_in_a_file_are_errors() {
        let parse =
            |text: &str| Contender::parse("x".to_owned(), text).map(|_| ()).map_err(|error| format!("{error:#}"));
        let good = "about: x\nversion: [x]\nprotocols: {h1: {}}\noutbound: {command: [x]}\n";
        assert_eq!(parse(good), Ok(()));
        assert!(parse(&format!("{good}colour: red\n")).unwrap_err().contains("colour"));
        assert!(parse(&good.replace("[x]}", "[]}")).unwrap_err().contains("empty"));
    }

    #[test]
    fn templates() {
        let variables: BTreeMap<_, _> = [("port".to_owned(), "80".to_owned())].into();
        assert_eq!(render("listen @port@; a@b me@port@", &variables).unwrap(), "listen 80; a@b me80");
        assert!(render("@other@", &variables).is_err());
        assert_eq!(render("a @ b @", &variables).unwrap(), "a @ b @");
    }
}
