//! `leno check`

mod kubernetes;

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context as _;
use clap::{ArgMatches, parser::ValueSource};
use ipnet::IpNet;
use leno_proto::v1::{CheckAuthorityResponse, ListObjectsRequest, ListObjectsResponse, ListProxiesResponse};

use super::{
    block_on, connect, get,
    print::{Style, clean},
    replicas::Replicas,
    wait,
};
use crate::{
    authority::{DEFAULT_TRUST_DOMAIN, issue},
    model::{DocumentError, MeshSettings, check::check},
    operator,
    sources::folder,
    webhook::inject::PROXY,
};

/// Find what is wrong, or will be: in a cluster, in a folder of documents, or in the running mesh
///
/// Without options it looks at the mesh in the cluster that KUBECONFIG names, and with --pre at the cluster before Leno is
/// installed. With --config it reads documents as the control plane would, needs none running, and changes nothing: for an
/// editor, a commit hook or CI. With --state it asks the running control plane about certificates, proxies and documents.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  leno check --pre\n  leno check\n  leno check --config ./config\n  leno check --state /var/lib/leno\n\n✓ well  ‼ look at \
                        it  × wrong  · not known\n\nExit codes: 0 nothing is wrong; 1 something is; 2 the command line is wrong."
)]
pub(super) struct Args {
    /// Folder of documents to check
    #[arg(long, value_name = "DIR", env = "LENO_CONFIG")]
    config: Option<PathBuf>,
    /// State folder of the running control plane to check
    #[arg(long, value_name = "DIR", env = "LENO_STATE")]
    state: Option<PathBuf>,
    /// Look at the cluster of KUBECONFIG, before Leno is installed there
    #[arg(long, env = "LENO_PRE", conflicts_with = "installed")]
    pre: bool,
    /// Look at the mesh in the cluster of KUBECONFIG [default, unless something else is to be checked]
    #[arg(long, env = "LENO_INSTALLED")]
    installed: bool,
    /// What cannot be told, for want of permission, counts as wrong
    #[arg(long, env = "LENO_FAIL_ON_UNKNOWN")]
    fail_on_unknown: bool,
    #[command(flatten)]
    cluster: connect::Cluster,
    /// As for the control plane, for --config
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', env = "LENO_MESH_NETWORKS")]
    mesh_networks: Vec<IpNet>,
}

impl Args {
    /// Where the command line says what to check, the environment does not add to it: a check of documents before they
    /// are live must not fail for the running mesh's sake.
    pub(super) fn settle(&mut self, matches: &ArgMatches) {
        let said = |option| matches.value_source(option) == Some(ValueSource::CommandLine);
        let cluster = said("pre") || said("installed");
        match (said("config"), said("state")) {
            (true, false) => self.state = None,
            (false, true) => self.config = None,
            (false, false) if cluster => (self.config, self.state) = (None, None),
            _ => {}
        }
    }

    /// Whether documents, and whether the running mesh.
    #[cfg(test)]
    pub(super) fn checked(&self) -> (bool, bool) {
        (self.config.is_some(), self.state.is_some())
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let mut findings =
        Findings { style: Style::of_stdout(), wrong: 0, doubtful: 0, unknown_is_wrong: args.fail_on_unknown };
    if let Some(folder) = &args.config {
        documents(folder, args.mesh_networks, &mut findings)?;
    }
    if let Some(state) = &args.state {
        running(state, &mut findings)?;
    }
    if args.pre || args.installed || (args.config.is_none() && args.state.is_none()) {
        block_on(cluster(&args.cluster, args.pre, &mut findings))?;
    }
    outln!();
    match (findings.wrong, findings.doubtful) {
        (0, 0) => outln!("All is well."),
        (0, doubtful) => outln!("Nothing is wrong; {doubtful} to look at."),
        (wrong, doubtful) => outln!("{wrong} wrong, {doubtful} to look at."),
    }
    Ok(if findings.wrong == 0 { super::SUCCESS } else { super::FAILURE })
}

/// Prints as it goes, and counts.
struct Findings {
    style: Style,
    wrong: usize,
    doubtful: usize,
    unknown_is_wrong: bool,
}

impl Findings {
    fn title(&self, text: &str) {
        outln!("{}", self.style.bold(text));
    }

    fn well(&self, what: &str) {
        outln!("  {} {}", self.style.green("✓"), clean(what));
    }

    /// Neither good nor bad.
    fn note(&self, what: &str) {
        outln!("  · {}", clean(what));
    }

    fn doubtful(&mut self, what: &str, next: &str) {
        self.doubtful += 1;
        outln!("  {} {}", self.style.yellow("‼"), clean(what));
        Self::next(next);
    }

    fn wrong(&mut self, what: &str, next: &str) {
        self.wrong += 1;
        outln!("  {} {}", self.style.red("×"), clean(what));
        Self::next(next);
    }

    /// What to do about it.
    fn next(step: &str) {
        if !step.is_empty() {
            outln!("    → {}", clean(step));
        }
    }
}

async fn cluster(cluster: &connect::Cluster, pre: bool, findings: &mut Findings) -> anyhow::Result<()> {
    let client = cluster.client().await?;
    if pre {
        return kubernetes::before(&client, findings).await;
    }
    kubernetes::installed(&client, findings).await?;
    findings.title("What the control plane says");
    let asked = async { ask(&cluster.connect().await?).await };
    match asked.await {
        Ok(said) => report(&said, Source::Cluster, findings),
        Err(error) => findings.unknown("what the control plane says", &error),
    }
    Ok(())
}

/// What a control plane says of itself and its mesh.
type Said = (CheckAuthorityResponse, ListObjectsResponse, ListProxiesResponse);

async fn ask(control_plane: &Replicas) -> anyhow::Result<Said> {
    let authority = control_plane.check_authority().await?;
    let objects = control_plane.list_objects(ListObjectsRequest::default()).await?;
    Ok((authority, objects, control_plane.list_proxies().await?))
}

fn documents(folder: &Path, mesh_networks: Vec<IpNet>, findings: &mut Findings) -> anyhow::Result<()> {
    findings.title(&format!("Documents in {}", folder.display()));
    let (documents, unreadable) =
        folder::read(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let settings = MeshSettings { mesh_networks, ..MeshSettings::strict(DEFAULT_TRUST_DOMAIN) };
    let report = check(settings, documents, unreadable);
    if report.objects == 0 {
        findings.doubtful("there is no object in it", "is this the right folder?");
    } else {
        findings.well(&format!("{} objects read", report.objects));
    }
    for error in &report.errors {
        findings.wrong(&get::error_line(&operator::document_error(error)), "");
    }
    for warning in &report.warnings {
        let object = if warning.object.is_empty() { String::new() } else { format!(", {}", warning.object) };
        let what = format!("{}{object}: {}", warning.source, warning.message);
        if warning.wrong { findings.wrong(&what, "") } else { findings.doubtful(&what, "") }
    }
    Ok(())
}

fn running(state: &Path, findings: &mut Findings) -> anyhow::Result<()> {
    findings.title(&format!("Control plane of {}", state.display()));
    let asked = block_on(async {
        let Some(client) = connect::find(state).await? else { return Ok(None) };
        Ok(Some(ask(&Replicas::one(client)).await?))
    })?;
    match asked {
        Some(said) => report(&said, Source::Folder, findings),
        None => findings.wrong(
            &format!("no control plane answers at {}", operator::socket(state).display()),
            &format!("start it: leno control-plane --config DIR --state {}", state.display()),
        ),
    }
    Ok(())
}

/// Where the control plane has its configuration and its root: what is to be done about either depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Folder,
    Cluster,
}

impl Source {
    fn renew_root(self) -> &'static str {
        match self {
            Self::Folder => {
                "add a new root to root.pem beside the old one, wait until every proxy has both, then sign with the new one"
            }
            Self::Cluster => {
                "bring a new root in the Secret leno-root; both are trusted until the old one's certificates are gone"
            }
        }
    }

    fn renew_issuer(self) -> &'static str {
        match self {
            Self::Folder => "there is no root.key to renew it with: sign a new issuer.pem where the root's key is",
            Self::Cluster => {
                "put a newer issuer and its key into the Secret leno-root, or see why cert-manager does not: the root's key is not there"
            }
        }
    }

    fn start_proxy(self) -> &'static str {
        match self {
            Self::Folder => "start one: leno-proxy run --control-plane HOST:4190 --trust-bundle FILE --token-file FILE",
            Self::Cluster => {
                "take a namespace into the mesh, and restart what runs there: kubectl label namespace NAMESPACE \
                 leno.dev/inject=enabled"
            }
        }
    }

    /// `proxy`: namespace and workload, as in "shop/cart-0".
    fn read_log(self, proxy: &str) -> String {
        match (self, proxy.split_once('/')) {
            (Self::Cluster, Some((namespace, pod))) => {
                format!("if it should run: kubectl logs --namespace {namespace} {pod} --container {PROXY}")
            }
            _ => "if it should run, look at its log; if it is gone for good, remove its Pod document".to_owned(),
        }
    }
}

fn report((authority, objects, proxies): &Said, source: Source, findings: &mut Findings) {
    findings.well(&format!("it answers, at generation {}", objects.generation));
    certificates(authority, source, SystemTime::now(), findings);

    findings.title("Documents");
    let held_over = get::HeldOver::of(&objects.objects);
    for document in get::by_document(&objects.errors) {
        let Some((last, others)) = document.split_last() else { continue };
        others.iter().for_each(|error| findings.wrong(&get::error_line(error), ""));
        let next = match held_over.instead_of(last) {
            Some(instead) => instead,
            None if DocumentError::is_of_all(&last.file) => "see where it is gone, or who may not read it".to_owned(),
            None => "mend it: there is no earlier version".to_owned(),
        };
        findings.wrong(&get::error_line(last), &next);
    }
    if objects.errors.is_empty() {
        findings.well(&format!("all could be read ({} objects)", objects.objects.len()));
    }
    for object in &objects.objects {
        let title = wait::title(&object.object.clone().unwrap_or_default());
        for condition in object.conditions.iter().filter(|c| !get::is_good(c)) {
            let what = format!("{title} ({}): {}", object.source, get::condition_line(condition));
            if get::is_wrong(condition) { findings.wrong(&what, "") } else { findings.doubtful(&what, "") }
        }
        for laggard in object.laggards.iter().filter(|l| l.reason != "disconnected") {
            let what = format!(
                "{title}: {} is at generation {} of {} ({}{}{})",
                laggard.proxy,
                laggard.generation,
                object.generation,
                laggard.reason,
                if laggard.message.is_empty() { "" } else { ": " },
                laggard.message
            );
            match laggard.reason.as_str() {
                "pending" => findings.doubtful(&what, "if it stays so, look at that proxy's log"),
                _ => findings
                    .wrong(&what, "the last good version stays in force there: mend the object, or upgrade the proxy"),
            }
        }
    }
    proxies_of(&proxies.proxies, source, findings);
}

fn certificates(authority: &CheckAuthorityResponse, source: Source, now: SystemTime, findings: &mut Findings) {
    findings.title("Certificates");
    let judge = |what: &str, not_after: i64, renewed: bool, next: &str, findings: &mut Findings| {
        let alarm = issue::alarm(get::time(not_after), now);
        let text = format!("{what} is valid until {}", get::date(not_after));
        match alarm {
            Some(0) => findings.wrong(&format!("{what} expired at {}", get::date(not_after)), next),
            Some(7 | 30) if !renewed => findings.wrong(&text, next),
            Some(_) if !renewed => findings.doubtful(&text, next),
            _ => findings.well(&text),
        }
    };
    judge("the root certificate", authority.root_not_after, false, source.renew_root(), findings);
    judge(
        "the issuer's certificate",
        authority.issuer_not_after,
        authority.root_key_present,
        source.renew_issuer(),
        findings,
    );
    findings.well(&format!("workloads' certificates live {} s", authority.certificate_lifetime_s));
}

fn proxies_of(proxies: &[leno_proto::v1::ProxyStatus], source: Source, findings: &mut Findings) {
    findings.title("Proxies");
    if proxies.is_empty() {
        findings.doubtful("none is, or lately was, connected", source.start_proxy());
    }
    let connected = proxies.iter().filter(|p| p.connected).count();
    if connected > 0 {
        findings.well(&format!("{connected} connected"));
    }
    for proxy in proxies.iter().filter(|p| !p.connected) {
        let what = format!("{} is not connected; it goes on with what it has", proxy.name);
        findings.doubtful(&what, &source.read_log(&proxy.name));
    }
    for proxy in proxies.iter().filter(|p| !p.rejected.is_empty()) {
        let what = format!("{} rejected {} resources", proxy.name, proxy.rejected.len());
        findings.wrong(&what, &format!("leno get proxies {}", proxy.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_done_is_said_by_source() {
        let said = |source: Source| {
            [
                source.renew_root().into(),
                source.renew_issuer().into(),
                source.start_proxy().into(),
                source.read_log("shop/a"),
            ]
        };
        let (folder, cluster): ([String; 4], [String; 4]) = (said(Source::Folder), said(Source::Cluster));
        let words = |all: &[String], words: &[&str]| all.iter().any(|one| words.iter().any(|word| one.contains(word)));
        assert!(!words(&cluster, &["root.pem", "root.key", "issuer.pem", "--token-file"]), "{cluster:?}");
        assert!(!words(&folder, &["Secret", "kubectl"]), "{folder:?}");
        assert!(cluster[3].ends_with("kubectl logs --namespace shop a --container leno-proxy"), "{cluster:?}");
    }
}
