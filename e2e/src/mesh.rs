//! A mesh on this machine: one control plane reading a folder, and sidecars that run against it.

pub mod documents;
mod workload;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
pub use workload::{Workload, WorkloadBuilder};

use crate::{
    binaries, ports,
    process::{Process, Processes, output, run},
    wait::eventually,
};

/// Longest wait for anything the control plane or a sidecar does: far above what is expected.
pub const LIMIT: Duration = Duration::from_secs(30);
/// By this a folder is known for a mesh's.
const CONTROL_PLANE_LOG: &str = "logs/control-plane.log";

/// How the control plane is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Life of workload certificates.
    pub certificate_lifetime: Duration,
    /// Where proxies reach it; none: a free port of 127.0.0.1.
    pub listen: Option<SocketAddr>,
    /// More flags.
    pub flags: Vec<String>,
    /// For a mesh that a person looks at: a folder that stays (emptied first), and processes that Ctrl-C does not reach,
    /// because whoever runs the mesh ends it in order. None: a temporary folder.
    pub folder: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { certificate_lifetime: Duration::from_secs(24 * 3600), listen: None, flags: Vec::new(), folder: None }
    }
}

/// A control plane with its folders, and every process of the test. End it with [`Mesh::end`].
#[derive(Debug)]
pub struct Mesh {
    options: Options,
    listen: SocketAddr,
    control_plane: Mutex<Process>,
    processes: Processes,
    folder: PathBuf,
    _temporary: Option<TempDir>,
}

impl Mesh {
    /// With the defaults.
    pub async fn start() -> Result<Self> {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Result<Self> {
        let (folder, temporary) = match &options.folder {
            Some(folder) => (folder.clone(), None),
            None => {
                let made = tempfile::Builder::new().prefix("leno-e2e-").tempdir().context("a folder for the mesh")?;
                (made.path().to_owned(), Some(made))
            }
        };
        empty(&folder)?;
        fs::create_dir_all(folder.join("config")).with_context(|| format!("create {}", folder.display()))?;
        let processes = Processes::new(folder.join("logs"), options.folder.is_some())?;
        let listen = options.listen.map_or_else(ports::free, Ok)?;
        let control_plane = Mutex::new(control_plane(&processes, &folder, listen, &options)?);
        let mesh = Self { options, listen, control_plane, processes, folder, _temporary: temporary };
        mesh.answering().await?;
        Ok(mesh)
    }

    /// A folder that lives as long as the mesh, or longer.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder that the control plane reads.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config")
    }

    /// The control plane's state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Where proxies reach the control plane.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    pub fn processes(&self) -> &Processes {
        &self.processes
    }

    /// The control plane's process.
    pub fn control_plane(&self) -> Process {
        self.control_plane.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts the control plane again, after it was killed.
    pub async fn restart_control_plane(&self) -> Result<()> {
        let process = control_plane(&self.processes, &self.folder, self.listen, &self.options)?;
        *self.control_plane.lock().unwrap_or_else(PoisonError::into_inner) = process;
        self.answering().await
    }

    /// Waits until the control plane answers operators.
    async fn answering(&self) -> Result<()> {
        eventually("the control plane answers", LIMIT, async || {
            let ended = self.control_plane().ended()?;
            ensure!(ended.is_none(), "it ended: {ended:?}");
            ensure!(self.state().join("trust-bundle.pem").exists(), "no trust bundle yet");
            self.leno(&["get", "proxies", "-o", "json"]).await
        })
        .await?;
        Ok(())
    }

    /// A workload's sidecar, to be described and started.
    pub fn workload<'m>(&'m self, name: &str) -> WorkloadBuilder<'m> {
        WorkloadBuilder::new(self, name)
    }

    /// Writes a file of the configuration, all at once (a rename), as careful tools do.
    pub fn apply(&self, file: &str, content: &str) -> Result<()> {
        write_atomically(&self.config().join(file), content)
    }

    /// Removes a file of the configuration.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.config().join(file)).with_context(|| format!("remove {file}"))
    }

    /// Runs `leno` against this control plane, and returns what it prints.
    pub async fn leno(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(binaries::leno()?);
        command.args(arguments).arg("--state").arg(self.state());
        run(command, LIMIT * 2).await
    }

    /// `leno get … -o json`, whatever its exit code says.
    pub async fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(binaries::leno()?);
        command.arg("get").args(arguments).args(["-o", "json", "--state"]).arg(self.state());
        let output = output(command, LIMIT * 2).await?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("leno get {arguments:?} printed {output:?}"))
    }

    /// An object of the default namespace ("httproute/shop") as `leno get` shows it; none: there is no such object.
    pub async fn object(&self, object: &str) -> Result<Option<Value>> {
        let (kind, name) = object.split_once('/').context("KIND/NAME")?;
        let answer = self.get(&[kind, name, "-n", documents::NAMESPACE]).await?;
        Ok(answer.pointer("/objects/0").cloned())
    }

    /// Blocks until every proxy that uses an object runs its newest generation: `leno wait`.
    pub async fn wait(&self, object: &str) -> Result<()> {
        self.wait_for(object, 0).await
    }

    /// The same, for a generation or a later one.
    pub async fn wait_for(&self, object: &str, generation: u64) -> Result<()> {
        let (limit, generation) = (format!("{}s", LIMIT.as_secs()), generation.to_string());
        let bounds = ["--timeout", &limit, "--generation", &generation];
        let object = match object.split_once('/') {
            Some((kind, name)) if !name.contains('/') => format!("{kind}/{}/{name}", documents::NAMESPACE),
            _ => object.to_owned(),
        };
        self.leno(&[&["wait", &object], bounds.as_slice()].concat()).await?;
        Ok(())
    }

    /// Writes a file that holds `object` in a new form, and waits until that is in force.
    pub async fn change(&self, file: &str, content: &str, object: &str) -> Result<()> {
        let before = self.object(object).await?.and_then(|object| object.get("generation")?.as_u64()).unwrap_or(0);
        self.apply(file, content)?;
        self.wait_for(object, before + 1).await
    }

    /// A proxy of the default namespace as `leno get proxies` shows it.
    pub async fn proxy(&self, name: &str) -> Result<Value> {
        let answer = self.get(&["proxies", name]).await?;
        answer.pointer("/proxies/0").cloned().with_context(|| format!("proxy {name} in {answer}"))
    }

    /// Ends every process in order, and fails if one did not end well.
    pub async fn end(self) -> Result<()> {
        self.processes.end(LIMIT).await
    }
}

/// Removes what an earlier mesh left. Folders that no mesh has made are not touched.
fn empty(folder: &Path) -> Result<()> {
    let strangers =
        folder.exists() && fs::read_dir(folder)?.next().is_some() && !folder.join(CONTROL_PLANE_LOG).exists();
    ensure!(!strangers, "{} holds other things: name an empty folder, or one that does not exist", folder.display());
    for part in ["config", "state", "tokens", "logs"].map(|part| folder.join(part)).iter().filter(|part| part.exists())
    {
        fs::remove_dir_all(part).with_context(|| format!("remove {}", part.display()))?;
    }
    Ok(())
}

fn control_plane(processes: &Processes, folder: &Path, listen: SocketAddr, options: &Options) -> Result<Process> {
    let mut command = Command::new(binaries::leno()?);
    command.arg("control-plane").arg("--config").arg(folder.join("config")).arg("--state").arg(folder.join("state"));
    command.args(["--listen", &listen.to_string()]);
    command.args(["--certificate-lifetime", &format!("{}s", options.certificate_lifetime.as_secs())]);
    command.args(&options.flags);
    processes.spawn("control-plane", command)
}

/// Writes beside the target, then renames.
pub fn write_atomically(path: &Path, content: &str) -> Result<()> {
    let name = path.file_name().context("a file's name")?.to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    fs::write(&beside, content).with_context(|| format!("write {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("rename to {}", path.display()))
}
