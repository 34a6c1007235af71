//! The flags of `leno-proxy run`, and how flag, environment and file become one [`Config`].

use std::{ffi::OsString, fs, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, parser::ValueSource};

use super::{
    Config, InboundListener, LogFormat, OutboundListener, Transparent, environment, file, limits, listeners,
    probes::{self, Probes},
    values,
};

/// Runs the proxy beside one workload.
///
/// Every option can be given as a flag, as an environment variable, or in the file that --config-file names (YAML, with the
/// flags' names as keys); a flag goes before the environment, and the environment before the file. An environment
/// variable that is empty counts as not set.
#[derive(Debug, Parser)]
#[command(name = "leno-proxy run", no_binary_name = true, disable_version_flag = true)]
pub struct RunArgs {
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct Options {
    /// Configuration file (YAML): the names of these flags as keys, lists for those that repeat. An unknown key is an
    /// error.
    #[arg(long, value_name = "FILE", env = "LENO_CONFIG_FILE", hide_env_values = true)]
    config_file: Option<PathBuf>,

    /// The control plane. Required.
    #[arg(long, value_name = "HOST:PORT", env = "LENO_CONTROL_PLANE", hide_env_values = true, value_parser = values::host_port)]
    control_plane: Option<String>,

    /// PEM file with the mesh's trust anchors (the control plane writes it to its state folder). Required.
    #[arg(long, value_name = "FILE", env = "LENO_TRUST_BUNDLE", hide_env_values = true)]
    trust_bundle: Option<PathBuf>,

    /// File with the token that proves who this workload is: made by `leno token`, or a projected service account token.
    /// Read whenever a certificate is asked for with it.
    #[arg(long, value_name = "FILE", env = "LENO_TOKEN_FILE", hide_env_values = true)]
    token_file: Option<PathBuf>,

    /// Name of this workload instance (the Pod's name), unique in its namespace [default: the host name]
    #[arg(long, value_name = "NAME", env = "LENO_WORKLOAD", hide_env_values = true)]
    workload: Option<String>,

    /// Explicit mode: listen on the address; what connects there goes to the named destination, `service.namespace:port` or
    /// any `host:port`. A name with a namespace that is the workload's own, or that the configuration has anything in, or is known to have had,
    /// is the mesh's: without its Service it is refused. With any other namespace it may be a domain's, and is a matter for DNS,
    /// in plaintext; `service.namespace.svc:port` never is. A name without a dot is a Service of the workload's own namespace, or
    /// else a matter for DNS, too. Of each that is, a warning is logged. Repeats; several in the environment are separated by
    /// commas.
    #[arg(long, value_name = "ADDRESS=DESTINATION", env = "LENO_OUTBOUND", hide_env_values = true,
          value_parser = values::outbound, value_delimiter = ',', action = ArgAction::Append)]
    outbound: Vec<OutboundListener>,

    /// Explicit mode: listen on the address for the mesh, for the application that listens at the second one. Repeats; several
    /// in the environment are separated by commas.
    #[arg(long, value_name = "ADDRESS=APPLICATION", env = "LENO_INBOUND", hide_env_values = true,
          value_parser = values::inbound, value_delimiter = ',', action = ArgAction::Append)]
    inbound: Vec<InboundListener>,

    /// Transparent mode: take the connections that `leno-proxy redirect install` sends here.
    #[arg(long, env = "LENO_TRANSPARENT", hide_env_values = true, value_name = "true|false",
          action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true",
          hide_default_value = true, hide_possible_values = true)]
    transparent: bool,

    /// Transparent mode: port that outbound connections are redirected to.
    #[arg(long, value_name = "PORT", env = "LENO_OUTBOUND_PORT", hide_env_values = true, default_value_t = limits::OUTBOUND_PORT)]
    outbound_port: u16,

    /// Transparent mode: port that inbound connections are redirected to.
    #[arg(long, value_name = "PORT", env = "LENO_INBOUND_PORT", hide_env_values = true, default_value_t = limits::INBOUND_PORT)]
    inbound_port: u16,

    /// Transparent mode: SO_MARK of the proxy's own connections, by which the redirect leaves them alone. Needs CAP_NET_ADMIN.
    /// 0: none, where the redirect knows the proxy by its user (`redirect install --proxy-uid`).
    #[arg(long, value_name = "MARK", env = "LENO_MARK", hide_env_values = true, value_parser = values::mark, default_value = "0x1e40")]
    mark: u32,

    /// Admin server: readiness, metrics, what the proxy holds. It has no access control: keep it on loopback.
    #[arg(long, value_name = "ADDRESS", env = "LENO_ADMIN", hide_env_values = true, value_parser = values::address, default_value = "127.0.0.1:4191")]
    admin: SocketAddr,

    /// Port on every address of the workload where a kubelet asks, without TLS: /ready, which holds the answer back for a moment
    /// until the proxy is ready, and what --probes lists. 0: none.
    #[arg(long, value_name = "PORT", env = "LENO_PROBE_PORT", hide_env_values = true, default_value_t = 0)]
    probe_port: u16,

    /// Serve /metrics on the probe port, too, for a Prometheus outside the workload: the admin server's is on loopback. Whoever
    /// reaches the workload can read it, without TLS.
    #[arg(long, env = "LENO_PROBE_METRICS", hide_env_values = true)]
    probe_metrics: bool,

    /// Probes that the proxy asks the application in the kubelet's place: a JSON list of objects with `path` (where the
    /// kubelet asks), `timeoutSeconds`, and `httpGet`, `tcpSocket` or `grpc` as in a Pod, with the port's number.
    #[arg(long, value_name = "JSON", env = "LENO_PROBES", hide_env_values = true, value_parser = probes::parse)]
    probes: Option<Probes>,

    /// Worker threads; "auto": as many as CPUs may be used (the cgroup's quota, rounded up).
    #[arg(long, value_name = "NUMBER|auto", env = "LENO_WORKERS", hide_env_values = true, value_parser = values::workers, default_value = "1")]
    workers: usize,

    /// Longest wait for open connections after SIGTERM: a number with ms, s, m or h. A second signal ends it at once.
    #[arg(long, value_name = "DURATION", env = "LENO_DRAIN_TIMEOUT", hide_env_values = true, value_parser = values::duration, default_value = "30s")]
    drain_timeout: Duration,

    /// One line on standard output for each request, and each TCP connection that carried no HTTP, that ended.
    #[arg(long, value_name = "FORMAT", env = "LENO_ACCESS_LOG", hide_env_values = true, default_value = "off")]
    access_log: LogFormat,

    /// Send spans to this collector by OTLP over gRPC, "http://host:4317" (also: OTEL_EXPORTER_OTLP_ENDPOINT). None: no spans.
    #[arg(long, value_name = "URL", env = "LENO_OTLP_ENDPOINT", hide_env_values = true, value_parser = values::otlp_endpoint)]
    otlp_endpoint: Option<String>,

    /// Share of requests without a trace that get a sampled one, 0 to 1; in a trace that came with the request, its decision holds.
    #[arg(long, value_name = "SHARE", env = "LENO_TRACE_SAMPLE", hide_env_values = true, value_parser = values::share, default_value = "0.01")]
    trace_sample: f64,

    /// Name server for names outside the mesh [default: those of /etc/resolv.conf]
    #[arg(long, value_name = "ADDRESS", env = "LENO_DNS_SERVER", hide_env_values = true, value_parser = values::address)]
    dns_server: Option<SocketAddr>,

    /// What the proxy's own log (standard error) tells: error, warn, info, debug or trace, also by module,
    /// "info,leno_proxy::policy=debug". The admin server can change it.
    #[arg(long, value_name = "FILTER", env = "LENO_LOG", hide_env_values = true, default_value = "info")]
    log: String,

    /// How the proxy's own log is written.
    #[arg(long, value_name = "FORMAT", env = "LENO_LOG_FORMAT", hide_env_values = true, default_value = "text")]
    log_format: LogFormat,
}

/// Parses the arguments that follow `run`, the environment, and the file they name.
///
/// # Errors
/// With the flag, variable or key that is wrong and what is expected; `--help` is one, too, as clap has it.
pub fn parse(arguments: Vec<OsString>) -> Result<Config, clap::Error> {
    let command = environment::without_empty(RunArgs::command());
    let given =
        command.clone().try_get_matches_from(&arguments).map_err(|error| from_environment(error, &arguments))?;
    let options = match given.get_one::<PathBuf>("config_file") {
        None => Options::from_arg_matches(&given)?,
        Some(path) => {
            let with_file = [arguments, file_arguments(path, &given)?].concat();
            let merged = command.try_get_matches_from(with_file);
            let named = |error: clap::Error| usage(format!("configuration file {}: {}", path.display(), brief(&error)));
            Options::from_arg_matches(&merged.map_err(named)?)?
        }
    };
    resolve(options)
}

/// The file's entries as arguments, without those that flags or environment give.
fn file_arguments(path: &PathBuf, given: &ArgMatches) -> Result<Vec<OsString>, clap::Error> {
    let named = |error: String| usage(format!("configuration file {}: {error}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| named(format!("cannot be read: {error}")))?;
    let command = RunArgs::command();
    let known: Vec<_> =
        command.get_arguments().filter(|arg| arg.get_id() != "config_file").filter_map(|arg| arg.get_long()).collect();
    let is_given = |name: &str| {
        let id = name.replace('-', "_");
        matches!(given.value_source(&id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    };
    file::arguments(&text, &known, is_given).map_err(named)
}

/// Checks what must be there, and fills in what the machine knows.
fn resolve(options: Options) -> Result<Config, clap::Error> {
    let missing = |flag: &str, what: &str| {
        let variable = flag.to_ascii_uppercase().replace('-', "_");
        usage(format!(
            "--{flag} is missing: {what} (or the environment variable LENO_{variable}, or `{flag}` in the file that --config-file names)"
        ))
    };
    let control_plane =
        options.control_plane.ok_or_else(|| missing("control-plane", "the control plane, as host:port"))?;
    let trust_bundle =
        options.trust_bundle.ok_or_else(|| missing("trust-bundle", "a PEM file with the mesh's trust anchors"))?;
    let workload = match options.workload {
        Some(name) => name,
        None => host_name().ok_or_else(|| missing("workload", "this machine has no host name to take its place"))?,
    };
    if options.log_format == LogFormat::Off {
        return Err(usage("--log-format: expected text or json; to log less, use --log error".to_owned()));
    }
    let mark = (options.mark != 0).then_some(options.mark);
    let transparent = options.transparent.then_some(Transparent {
        outbound_port: options.outbound_port,
        inbound_port: options.inbound_port,
        mark,
    });
    let config = Config {
        control_plane,
        trust_bundle,
        token_file: options.token_file,
        workload,
        outbound: options.outbound,
        inbound: options.inbound,
        transparent,
        admin: options.admin,
        probe_port: (options.probe_port != 0).then_some(options.probe_port),
        probe_metrics: options.probe_metrics,
        probes: options.probes.unwrap_or_default(),
        workers: options.workers,
        drain_timeout: options.drain_timeout,
        access_log: options.access_log,
        otlp_endpoint: options.otlp_endpoint.or(standard_otlp_endpoint()?),
        trace_sample: options.trace_sample,
        dns_server: options.dns_server,
        log: options.log,
        log_format: options.log_format,
    };
    match listeners::conflict(&config) {
        None => Ok(config),
        Some((one, other)) => Err(usage(format!(
            "{one} and {other} listen on the same address: a connection would be either's; give one of them another port or address"
        ))),
    }
}

/// OpenTelemetry's own variables, which operators and injectors set.
fn standard_otlp_endpoint() -> Result<Option<String>, clap::Error> {
    for name in ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
        match std::env::var(name) {
            Ok(value) if !value.is_empty() => {
                let endpoint = values::otlp_endpoint(&value).map_err(|error| usage(format!("{name}: {error}")))?;
                return Ok(Some(endpoint));
            }
            _ => {}
        }
    }
    Ok(None)
}

fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

fn usage(message: String) -> clap::Error {
    clap::Error::raw(clap::error::ErrorKind::InvalidValue, message + "\n")
}

/// clap names the flag of a wrong value; if the value came from the environment, the reader looks there.
fn from_environment(error: clap::Error, arguments: &[OsString]) -> clap::Error {
    use clap::error::{ContextKind, ContextValue};
    let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return error };
    let flag = arg.split([' ', '=', '[']).next().unwrap_or(arg);
    let is_flag = |given: &OsString| {
        given
            .to_str()
            .and_then(|given| given.strip_prefix(flag))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    if !flag.starts_with("--") || arguments.iter().any(is_flag) {
        return error;
    }
    let variable = flag.trim_start_matches('-').to_ascii_uppercase().replace('-', "_");
    usage(format!("environment variable LENO_{variable}: {}", brief(&error)))
}

/// clap's message without its "error: " and its hints.
fn brief(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    text.split("\n\n").next().unwrap_or(text).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const REQUIRED: [&str; 2] = ["--control-plane=cp:8443", "--trust-bundle=/b.pem"];

    fn run(more: &[&str]) -> Result<Config, String> {
        let arguments = REQUIRED.iter().chain(more).map(OsString::from).collect();
        parse(arguments).map_err(|error| error.render().to_string())
    }

    fn file(text: &str) -> (tempfile::NamedTempFile, String) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let flag = format!("--config-file={}", file.path().display());
        (file, flag)
    }

    #[test]
    fn the_definition_holds_together() {
        RunArgs::command().debug_assert();
        for arg in RunArgs::command().get_arguments().filter(|arg| arg.get_id() != "help") {
            let long = arg.get_long().unwrap();
            let variable = format!("LENO_{}", long.to_ascii_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().unwrap(), variable.as_str(), "--{long}");
            assert!(arg.get_help().is_some(), "--{long}");
        }
    }

    #[test]
    fn defaults() {
        let config = run(&[]).unwrap();
        assert_eq!(config.admin, "127.0.0.1:4191".parse().unwrap());
        assert_eq!((config.workers, config.drain_timeout), (1, Duration::from_secs(30)));
        assert_eq!((config.access_log, config.log_format), (LogFormat::Off, LogFormat::Text));
        assert_eq!(config.transparent, None);
        assert!(!config.workload.is_empty());
    }

    #[test]
    fn the_file_gives_what_flags_do_not() {
        let (_file, flag) = file(
            "workers: 2\nmark: 0x1e40\ntransparent: true\ndrain-timeout: 5s\ntrace-sample: 1\noutbound:\n\
             - 127.0.0.1:1=a.b:80\n- 127.0.0.1:2=c.d:80\ninbound: 0.0.0.0:3=127.0.0.1:4\n",
        );
        let config = run(&[&flag, "--drain-timeout=7s"]).unwrap();
        assert_eq!(config.drain_timeout, Duration::from_secs(7));
        assert_eq!(config.workers, 2);
        assert_eq!(config.outbound.len(), 2);
        assert_eq!(config.inbound.len(), 1);
        assert_eq!(config.transparent.unwrap().mark, Some(0x1e40));
        assert_eq!(config.trace_sample, 1.0);
    }

    #[test]
    fn no_two_listeners_take_the_same_connections() {
        for (flags, one, other) in [
            (&["--outbound=127.0.0.1:1=a.b:80", "--outbound=127.0.0.1:1=c.d:80"][..], "1=a.b:80", "1=c.d:80"),
            (
                &["--inbound=0.0.0.0:2=127.0.0.1:4", "--outbound=127.0.0.1:2=a.b:80"],
                "--inbound 0.0.0.0:2=",
                "--outbound",
            ),
            (&["--transparent", "--outbound-port=3", "--inbound-port=3"], "--inbound-port 3", "--outbound-port 3"),
            (&["--transparent", "--outbound=[::1]:4140=a.b:80"], "--outbound [::1]:4140=", "--outbound-port 4140"),
            (&["--inbound=127.0.0.1:4191=127.0.0.1:4"], "--admin 127.0.0.1:4191", "--inbound"),
        ] {
            let error = run(flags).unwrap_err();
            assert!(error.contains(one) && error.contains(other), "{flags:?}: {error}");
        }
        run(&["--transparent", "--outbound=127.0.0.1:1=a.b:80", "--outbound=127.0.0.2:1=a.b:80"]).unwrap();
    }

    #[test]
    fn errors_name_the_flag_or_the_key() {
        let error = run(&["--drain-timeout=5"]).unwrap_err();
        assert!(error.contains("--drain-timeout") && error.contains("500ms or 30s"), "{error}");
        for (text, key) in [
            ("drain-timeout: 5\n", "--drain-timeout"),
            ("drain_timeout: 5s\n", "drain_timeout"),
            ("workers: [1, 2]\n", "workers"),
            ("outbound: {a: b}\n", "outbound"),
            ("config-file: /a\n", "config-file"),
            ("- a\n", "key: value"),
        ] {
            let (_file, flag) = file(text);
            let error = run(&[&flag]).unwrap_err();
            assert!(error.contains("configuration file") && error.contains(key), "{text}: {error}");
        }
        let error = run(&["--config-file=/nonexistent"]).unwrap_err();
        assert!(error.contains("/nonexistent: cannot be read"), "{error}");
        let error = parse(vec!["--control-plane=a:1".into()]).unwrap_err().render().to_string();
        assert!(error.contains("--trust-bundle is missing") && error.contains("LENO_TRUST_BUNDLE"), "{error}");
    }
}
