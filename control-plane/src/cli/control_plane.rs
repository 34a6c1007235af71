//! `leno control-plane`

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    pin::pin,
    time::Duration,
};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::duration;
use crate::{
    authority,
    model::{DEFAULT_CLUSTER_DOMAIN, Explain},
    operator,
    serve::{self, ControlPlane},
    sources::Source,
    webhook,
};

/// Run the control plane: read the configuration, issue certificates, serve policy to proxies
///
/// On first start it makes a root certificate and an issuer in the state folder, readable by its owner only. Proxies
/// need a copy of `trust-bundle.pem` from there, and a token (see `leno token`). Documents in the configuration folder
/// may be changed at any time; a bad one changes nothing, and `leno get` says what is wrong with it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// YAML file with any of the options below, by their long names; options and environment win over it
    #[arg(long, value_name = "FILE", env = "LENO_CONFIG_FILE")]
    config_file: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// The same from the command line, the environment and the file.
#[derive(Debug, Default, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    /// Folder of YAML documents: Services, EndpointSlices, Pods, and routes of the Gateway API. Required without --kubernetes
    #[arg(long, value_name = "DIR", env = "LENO_CONFIG")]
    config: Option<PathBuf>,
    /// Read the API server that KUBECONFIG names, or that of the cluster this runs in, instead of a folder
    #[arg(long, env = "LENO_KUBERNETES", num_args = 0..=1, default_missing_value = "true")]
    kubernetes: Option<bool>,
    /// Folder of keys, certificates, generations and the operator's socket; made if absent. Required without --kubernetes
    #[arg(long, value_name = "DIR", env = "LENO_STATE")]
    state: Option<PathBuf>,
    /// Address that proxies connect to [default: 127.0.0.1:4190; with --kubernetes [::]:4190]
    #[arg(long, value_name = "IP:PORT", env = "LENO_LISTEN")]
    listen: Option<SocketAddr>,
    /// Trust domain of all identities; belongs to the state folder once it is used [default: cluster.local]
    #[arg(long, value_name = "NAME", env = "LENO_TRUST_DOMAIN")]
    trust_domain: Option<String>,
    /// Life of a workload's certificate, 10s to 2160h [default: 24h]
    #[arg(long, value_name = "DURATION", env = "LENO_CERTIFICATE_LIFETIME")]
    certificate_lifetime: Option<String>,
    /// Folder with root.pem, issuer.pem and issuer.key of an authority brought along; never written to
    #[arg(long, value_name = "DIR", env = "LENO_CA_DIR")]
    ca_dir: Option<PathBuf>,
    /// Networks whose addresses belong to the mesh: unknown addresses in them are refused, all others are let through
    /// without asking [default: private addresses, and public networks in which Services or Pods have addresses, are asked
    /// for, and unknown ones let through]
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', env = "LENO_MESH_NETWORKS")]
    mesh_networks: Vec<IpNet>,
    /// Domain of the cluster's DNS, which ends the full names of Services [default: cluster.local]
    #[arg(long, value_name = "NAME", env = "LENO_CLUSTER_DOMAIN")]
    cluster_domain: Option<String>,
    /// Headers by which proxies keep what they decided over a request, for `leno explain`; their values are kept, too
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', env = "LENO_EXPLAIN_HEADERS")]
    explain_headers: Vec<String>,
    /// Whether they keep it of requests that are sampled by trace [default: true]
    #[arg(long, value_name = "BOOL", env = "LENO_EXPLAIN_SAMPLED")]
    explain_sampled: Option<bool>,
    /// Address to serve Prometheus metrics on, at /metrics, and health, at /live and /ready [default: none; with
    /// --kubernetes [::]:4193]
    #[arg(long, value_name = "IP:PORT", env = "LENO_METRICS")]
    metrics: Option<SocketAddr>,
    /// Address, on a loopback, to answer operators on [default: a socket in the state folder; with --kubernetes
    /// 127.0.0.1:4192]
    #[arg(long, value_name = "IP:PORT", env = "LENO_OPERATOR")]
    operator: Option<SocketAddr>,
    /// Address to answer the API server's admission webhooks on, with --kubernetes [default: none]
    #[arg(long, value_name = "IP:PORT", env = "LENO_WEBHOOKS")]
    webhooks: Option<SocketAddr>,
    /// Who makes the webhooks' certificate, in the Secret leno-webhook: leno or cert-manager [default: leno]
    #[arg(long, value_name = "WHO", env = "LENO_WEBHOOK_CERTIFICATES")]
    webhook_certificates: Option<CertificateMaker>,
    /// YAML file that says how Pods are injected, as the chart makes it [default: as the chart's defaults are]
    #[arg(long, value_name = "FILE", env = "LENO_INJECTION")]
    injection: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a filter per module [default: info]
    #[arg(long, value_name = "FILTER", env = "LENO_LOG")]
    log: Option<String>,
    /// How to log: text or json [default: text]
    #[arg(long, value_name = "FORMAT", env = "LENO_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CertificateMaker {
    Leno,
    CertManager,
}

const DEFAULT_PORT: u16 = 4190;
const DEFAULT_METRICS_PORT: u16 = 4193;

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let settings = match &args.config_file {
        Some(file) => args.settings.over(read(file)?),
        None => args.settings,
    };
    let in_cluster = settings.kubernetes == Some(true);
    if in_cluster && settings.config.is_some() {
        return super::usage("control-plane reads either a folder (--config) or the API server (--kubernetes)");
    }
    let needed = [
        (!in_cluster && settings.config.is_none(), "--config DIR, the folder of documents, or --kubernetes"),
        (!in_cluster && settings.state.is_none(), "--state DIR: a folder for keys and certificates"),
    ];
    if let Some((_, what)) = needed.iter().find(|(missing, _)| *missing) {
        return super::usage(&format!("control-plane needs {what} (see leno control-plane --help)"));
    }
    start_log(&settings)?;
    let options = settings.into_options()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let mut shutdown = pin!(shutdown);
        let control_plane = tokio::select! {
            bound = ControlPlane::bind(options) => bound?,
            () = &mut shutdown => return Ok(()),
        };
        control_plane.serve(shutdown).await
    });
    // A task may still be compiling, or waiting for the disk: nothing waits for it, however serving ended.
    runtime.shutdown_timeout(Duration::from_millis(100));
    served.map(|()| super::SUCCESS)
}

fn read(file: &PathBuf) -> anyhow::Result<Settings> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} is not a configuration file", file.display()))
}

impl Settings {
    /// What is not set here is taken from `file`.
    fn over(self, file: Self) -> Self {
        Self {
            config: self.config.or(file.config),
            kubernetes: self.kubernetes.or(file.kubernetes),
            state: self.state.or(file.state),
            listen: self.listen.or(file.listen),
            trust_domain: self.trust_domain.or(file.trust_domain),
            certificate_lifetime: self.certificate_lifetime.or(file.certificate_lifetime),
            ca_dir: self.ca_dir.or(file.ca_dir),
            mesh_networks: if self.mesh_networks.is_empty() { file.mesh_networks } else { self.mesh_networks },
            cluster_domain: self.cluster_domain.or(file.cluster_domain),
            explain_headers: if self.explain_headers.is_empty() { file.explain_headers } else { self.explain_headers },
            explain_sampled: self.explain_sampled.or(file.explain_sampled),
            metrics: self.metrics.or(file.metrics),
            operator: self.operator.or(file.operator),
            webhooks: self.webhooks.or(file.webhooks),
            webhook_certificates: self.webhook_certificates.or(file.webhook_certificates),
            injection: self.injection.or(file.injection),
            log: self.log.or(file.log),
            log_format: self.log_format.or(file.log_format),
        }
    }

    fn into_options(self) -> anyhow::Result<serve::Options> {
        let certificate_lifetime = match &self.certificate_lifetime {
            Some(text) => duration::parse(text).map_err(anyhow::Error::msg).context("--certificate-lifetime")?,
            None => authority::DEFAULT_CERTIFICATE_LIFETIME,
        };
        let in_cluster = self.kubernetes == Some(true);
        let source = match self.config {
            Some(config) => Source::Folder(config),
            None if in_cluster => Source::Kubernetes,
            None => bail!("--config is needed"),
        };
        let state = match self.state {
            Some(state) => state,
            // Nothing in it outlives the Pod.
            None if in_cluster => std::env::temp_dir().join("leno"),
            None => bail!("--state is needed"),
        };
        let (everywhere, here) = (IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::LOCALHOST));
        let listen = SocketAddr::new(if in_cluster { everywhere } else { here }, DEFAULT_PORT);
        let in_pod = |address: IpAddr, port| in_cluster.then(|| SocketAddr::new(address, port));
        let operator = self.operator.or_else(|| in_pod(here, operator::PORT));
        if let Some(open) = operator.filter(|address| !address.ip().is_loopback()) {
            bail!("--operator {open} is no loopback: whoever reaches it may ask anything");
        }
        Ok(serve::Options {
            source,
            listen: self.listen.unwrap_or(listen),
            authority: authority::Options {
                state,
                ca_dir: self.ca_dir,
                trust_domain: self.trust_domain,
                certificate_lifetime,
            },
            mesh_networks: self.mesh_networks,
            cluster_domain: self.cluster_domain.map_or_else(
                || DEFAULT_CLUSTER_DOMAIN.to_owned(),
                |domain| domain.trim_matches('.').to_ascii_lowercase(),
            ),
            explain: Explain {
                ignore_sampled: self.explain_sampled == Some(false),
                headers: explain_headers(&self.explain_headers).context("--explain-headers")?,
            },
            metrics: self.metrics.or_else(|| in_pod(everywhere, DEFAULT_METRICS_PORT)),
            operator,
            webhooks: self
                .webhooks
                .map(|listen| webhooks(listen, self.injection, self.webhook_certificates))
                .transpose()?,
        })
    }
}

fn webhooks(
    listen: SocketAddr,
    injection: Option<PathBuf>,
    certificates: Option<CertificateMaker>,
) -> anyhow::Result<webhook::serve::Options> {
    let (settings, unknown) = match injection {
        Some(file) => webhook::settings::Settings::read(&file).context("--injection")?,
        None => Default::default(),
    };
    for field in unknown {
        tracing::warn!(
            field,
            "the settings of injection have a field that this version does not know, which has no effect: misspelt, or of a newer chart"
        );
    }
    let namespace = settings.namespace.clone();
    let managed = certificates != Some(CertificateMaker::CertManager);
    let certificates = webhook::certificates::Options::new(namespace, managed);
    Ok(webhook::serve::Options { listen, settings, certificates })
}

/// Names that proxies can use, in lower case.
fn explain_headers(names: &[String]) -> anyhow::Result<Vec<String>> {
    let mut parsed = Vec::new();
    for name in names {
        let lower = name.trim().to_ascii_lowercase();
        // RFC 9110 5.6.2: a token.
        if lower.is_empty() || !lower.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)) {
            anyhow::bail!("{name:?} is not the name of a header");
        }
        if leno_proto::headers::is_secret(&lower) {
            anyhow::bail!("{name:?} carries secrets: name a header whose value operators may read");
        }
        if !parsed.contains(&lower) {
            parsed.push(lower);
        }
    }
    if parsed.len() > serve::limits::EXPLAIN_HEADERS {
        anyhow::bail!("{} headers; at most {} are possible", parsed.len(), serve::limits::EXPLAIN_HEADERS);
    }
    Ok(parsed)
}

fn start_log(settings: &Settings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(settings.log.as_deref().unwrap_or("info")).context("--log")?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match settings.log_format.unwrap_or(LogFormat::Text) {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_to_explain_by_are_no_secrets() {
        let names = |text: &str| explain_headers(&text.split(',').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(names("X-Request-Id,x-request-id, x-order").unwrap(), ["x-request-id", "x-order"]);
        for wrong in ["Cookie", "a b", "", "a,b,c,d,e,f,g,h,i"] {
            assert!(names(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_win_over_the_file() {
        let file: Settings = serde_saphyr::from_str(
            "config: /etc/leno\nlisten: 0.0.0.0:4190\ncertificate-lifetime: 1h\nmesh-networks: [10.0.0.0/8, 'fd00::/8']\n\
             cluster-domain: k8s.example.\n\
             log-format: json\nexplain-headers: [X-Order, x-request-id]\nexplain-sampled: false\n",
        )
        .unwrap();
        let options = Settings {
            state: Some("/var/lib/leno".into()),
            listen: Some("127.0.0.1:1".parse().unwrap()),
            ..Settings::default()
        };
        let options = options.over(file).into_options().unwrap();
        assert_eq!(options.source, Source::Folder("/etc/leno".into()));
        assert_eq!(options.listen, "127.0.0.1:1".parse().unwrap());
        assert_eq!(options.authority.certificate_lifetime, Duration::from_secs(3600));
        assert_eq!(options.mesh_networks.len(), 2);
        assert_eq!(options.cluster_domain, "k8s.example");
        assert_eq!(options.explain.headers, ["x-order", "x-request-id"]);
        assert!(options.explain.ignore_sampled);
        let in_cluster = Settings { kubernetes: Some(true), ..Settings::default() }.into_options().unwrap();
        assert_eq!(in_cluster.source, Source::Kubernetes);
        assert_eq!(in_cluster.listen, "[::]:4190".parse().unwrap());
        assert_eq!(in_cluster.operator, Some("127.0.0.1:4192".parse().unwrap()));
        let open =
            Settings { kubernetes: Some(true), operator: Some("0.0.0.0:4192".parse().unwrap()), ..Settings::default() };
        assert!(open.into_options().unwrap_err().to_string().contains("loopback"));
        let unknown = serde_saphyr::from_str::<Settings>("lisen: 127.0.0.1:1\n").unwrap_err();
        assert!(unknown.to_string().contains("lisen"), "{unknown}");
    }
}
