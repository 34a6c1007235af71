//! Who balances: Leno's algorithms, all in one mesh whose policy is changed between measurements, and the programs that
//! `benches/contenders/balance/*.yaml` describe. Everybody gets the same number of client-side balancers, one worker each.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use leno_e2e::{
    binaries, client,
    mesh::{Mesh, documents},
    ports,
    process::{Process, Processes},
    wait::eventually,
};
use serde::Deserialize;

use crate::{
    contender::render,
    leno::pin,
    rig::{LOAD_CPU, PROXY_CPU, accepts, pinned},
};

/// Balancers on the clients' side.
pub(super) const BALANCERS: usize = 4;

const DESTINATION: &str = "shop.default:80";
const LIMIT: Duration = Duration::from_secs(30);
/// No endpoint is left out, whatever it does.
const NO_EJECTION: &str = "  outlierDetection: {consecutiveFailures: 0, maximumBackOff: 0s}\n";

/// One way to choose servers.
#[derive(Debug)]
pub(super) struct Contender {
    pub(super) name: String,
    pub(super) about: String,
    /// It leaves servers out that fail, and is only of interest where one does.
    pub(super) ejects: bool,
    how: How,
}

#[derive(Debug)]
enum How {
    /// With this policy: sections of a BackendPolicy.
    Leno(String),
    Program(Definition),
}

/// A contender's file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    /// One line for the report.
    about: String,
    #[serde(default)]
    ejects: bool,
    /// Prints its version.
    version: Vec<String>,
    /// Template of its configuration, beside the file.
    config: String,
    /// What stands in `@servers@` once for each server, with `@address@` and `@port@`.
    server: String,
    /// More of the template's variables.
    #[serde(default)]
    variables: BTreeMap<String, String>,
    command: Vec<String>,
}

/// Built in: name, what it is, the policy.
const ALGORITHMS: [(&str, &str, &str); 6] = [
    ("leno-peak-ewma", "Leno's default: of a few the one with the least latency × requests in flight", "PeakEwma"),
    ("leno-prequal", "Leno, `Prequal`: by what the servers' proxies say of themselves", "Prequal"),
    ("leno-least-request", "Leno, `LeastRequest`: of a few the one with the fewest requests in flight", "LeastRequest"),
    ("leno-round-robin", "Leno, `RoundRobin`", "RoundRobin"),
    ("leno-random", "Leno, `Random`", "Random"),
    (
        "leno-hash",
        "Leno, `ConsistentHash` with bounded load, by one of 1,000 users",
        "ConsistentHash, consistentHash: {key: {header: x-user}}",
    ),
];

impl Contender {
    /// Leno's algorithms, then those of a folder by name.
    pub(super) fn all(folder: &Path) -> Result<Vec<Self>> {
        let built_in = |(name, about, algorithm): (&str, &str, &str)| Self {
            name: name.to_owned(),
            about: about.to_owned(),
            ejects: false,
            how: How::Leno(format!("  loadBalancing: {{algorithm: {algorithm}}}\n{NO_EJECTION}")),
        };
        let mut all: Vec<_> = ALGORITHMS.into_iter().map(built_in).collect();
        all.push(Self {
            name: "leno-ejecting".to_owned(),
            about: "Leno, `PeakEwma` with ejection as it is without any policy: five failures in a row".to_owned(),
            ejects: true,
            how: How::Leno("  loadBalancing: {algorithm: PeakEwma}\n".to_owned()),
        });
        let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        files.sort();
        for file in files {
            all.push(Self::read(&file).with_context(|| format!("{}", file.display()))?);
        }
        Ok(all)
    }

    fn read(file: &Path) -> Result<Self> {
        let name = file.file_stem().context("a contender's file name")?.to_string_lossy().into_owned();
        let definition: Definition = serde_saphyr::from_str(&fs::read_to_string(file)?).context("not a contender")?;
        ensure!(!definition.command.is_empty(), "command is empty");
        Ok(Self { name, about: definition.about.clone(), ejects: definition.ejects, how: How::Program(definition) })
    }

    pub(super) fn is_leno(&self) -> bool {
        matches!(self.how, How::Leno(_))
    }

    /// Fails if the program cannot be run.
    pub(super) fn version(&self) -> Result<String> {
        match &self.how {
            How::Leno(_) => {
                crate::contender::printed_version(&[binaries::leno_proxy()?.display().to_string(), "version".into()])
            }
            How::Program(definition) => crate::contender::printed_version(&definition.version),
        }
    }
}

/// Balancers that take requests.
pub(super) struct Running {
    pub(super) addresses: Vec<SocketAddr>,
    keep: Keep,
}

enum Keep {
    Leno(Box<Leno>),
    Programs { processes: Processes, all: Vec<Process> },
}

/// One mesh for all algorithms.
struct Leno {
    mesh: Mesh,
    policy: Option<String>,
}

impl Running {
    /// The mesh: a sidecar for each server, and one for each client.
    pub(super) async fn leno(servers: &[SocketAddr]) -> Result<Self> {
        let mesh = Mesh::start().await?;
        pin(LOAD_CPU, mesh.control_plane().pid()).await?;
        mesh.apply("service.yaml", &documents::service(documents::NAMESPACE, "shop", 80, "http"))?;
        // What a server's proxy refuses would be tried again at another: here the algorithms are on their own.
        mesh.apply("inbound.yaml", &documents::inbound_policy("shop", "shop", "  concurrency: {mode: \"Off\"}\n"))?;
        for (number, server) in servers.iter().enumerate() {
            let name = format!("shop-{number}");
            let workload = mesh.workload(&name).account("shop").serves("shop", *server).start().await?;
            pin(PROXY_CPU, workload.process()?.pid()).await?;
        }
        let mut addresses = Vec::new();
        for number in 0..BALANCERS {
            let name = format!("web-{number}");
            let workload = mesh.workload(&name).account("web").outbound(DESTINATION).start().await?;
            pin(PROXY_CPU, workload.process()?.pid()).await?;
            addresses.push(workload.calls(DESTINATION)?);
        }
        let running = Self { addresses, keep: Keep::Leno(Box::new(Leno { mesh, policy: None })) };
        running.answer().await?;
        Ok(running)
    }

    /// A program, with its files in `folder`.
    pub(super) async fn program(
        contender: &Contender,
        templates: &Path,
        servers: &[SocketAddr],
        folder: &Path,
    ) -> Result<Self> {
        let How::Program(definition) = &contender.how else { anyhow::bail!("{} is no program", contender.name) };
        let processes = Processes::new(folder.join("logs"), false)?;
        let (mut addresses, mut all) = (Vec::new(), Vec::new());
        for number in 0..BALANCERS {
            let folder = folder.join(number.to_string());
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            let listen = ports::free()?;
            all.push(definition.launch(&processes, templates, servers, listen, &folder)?);
            addresses.push(listen);
        }
        for address in &addresses {
            accepts(*address).await.with_context(|| contender.name.clone())?;
        }
        let running = Self { addresses, keep: Keep::Programs { processes, all } };
        running.answer().await?;
        Ok(running)
    }

    async fn answer(&self) -> Result<()> {
        for address in &self.addresses {
            eventually("a request gets through", LIMIT, async || {
                let answer = client::get(*address, "shop", "/").await?;
                ensure!(answer.status == 200, "{}", answer.status);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Makes the balancers choose as this contender does.
    pub(super) async fn becomes(&mut self, contender: &Contender) -> Result<()> {
        if let (Keep::Leno(leno), How::Leno(policy)) = (&mut self.keep, &contender.how)
            && leno.policy.as_ref() != Some(policy)
        {
            let document = documents::backend_policy("shop", "shop", policy);
            leno.mesh.change("policy.yaml", &document, "backendpolicy/shop").await?;
            leno.policy = Some(policy.clone());
        }
        Ok(())
    }

    pub(super) async fn stop(self) -> Result<()> {
        match self.keep {
            Keep::Leno(leno) => leno.mesh.end().await,
            Keep::Programs { processes, all } => {
                all.iter().try_for_each(Process::kill)?;
                processes.end(LIMIT).await
            }
        }
    }
}

impl Definition {
    fn launch(
        &self,
        processes: &Processes,
        templates: &Path,
        servers: &[SocketAddr],
        listen: SocketAddr,
        folder: &Path,
    ) -> Result<Process> {
        let mut variables = self.variables.clone();
        let mut put = |name: &str, value: String| variables.insert(name.to_owned(), value);
        put("servers", self.servers(servers)?);
        put("listen_port", listen.port().to_string());
        put("folder", folder.display().to_string());
        let template = templates.join(&self.config);
        let text = fs::read_to_string(&template).with_context(|| format!("read {}", template.display()))?;
        let file = folder.join(self.config.replace('/', "-"));
        fs::write(&file, render(&text, &variables).with_context(|| self.config.clone())?)?;
        variables.insert("config".to_owned(), file.display().to_string());
        let words: Vec<String> = self.command.iter().map(|word| render(word, &variables)).collect::<Result<_>>()?;
        let (executable, arguments) = words.split_first().context("an empty command")?;
        let mut command: Command = pinned(PROXY_CPU, executable);
        command.args(arguments).current_dir(folder);
        processes.spawn("balancer", command)
    }

    fn servers(&self, servers: &[SocketAddr]) -> Result<String> {
        let mut text = String::new();
        for server in servers {
            let variables = [("address", server.ip().to_string()), ("port", server.port().to_string())];
            let variables = variables.map(|(name, value)| (name.to_owned(), value)).into();
            text.push_str(&render(&self.server, &variables)?);
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_files_can_be_written_out() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("contenders/balance");
        let all = Contender::all(&folder).unwrap();
        assert!(all.iter().any(|contender| contender.name == "envoy-least-request"));
        for contender in &all {
            let How::Program(definition) = &contender.how else { continue };
            let mut variables = definition.variables.clone();
            variables.insert("servers".into(), definition.servers(&["127.0.0.1:80".parse().unwrap()]).unwrap());
            variables.extend([("listen_port".into(), "1".into()), ("folder".into(), "x".into())]);
            let template = fs::read_to_string(folder.join(&definition.config)).unwrap();
            let written = render(&template, &variables).unwrap();
            assert!(written.matches("127.0.0.1").count() >= 2, "{}: {written}", contender.name);
        }
    }
}
