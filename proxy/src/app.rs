//! The process: builds the runtimes, starts the tasks, and ends them. The only module that hands out what is
//! shared; nobody imports it.
//!
//! The main thread runs the control runtime: identity, policy, admin server, look-ups of names, span export.
//! Each worker is a thread of its own ([`workers`]).

mod descriptors;
mod footprint;
mod panics;
mod workers;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use tokio::{
    runtime, select,
    signal::unix::{Signal, SignalKind, signal},
    task::LocalSet,
    time,
};

use self::workers::Workers;
use crate::{
    admin,
    config::Config,
    drain::DrainOwner,
    http::hops::Hops,
    policy, probes, telemetry,
    telemetry::{Telemetry, access_log::AccessLog, log::LogControl, recorder::Registry, trace},
    tls,
    upstream::dns,
};

/// How often metric series that nobody holds are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// Wait before a task of the control runtime that panicked is started again.
const RESTART: Duration = Duration::from_secs(1);
/// Spans and log lines get so long to be written at the end.
const FLUSH: Duration = Duration::from_secs(2);

/// What the tasks of the control runtime, and the workers, share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) policy: Arc<policy::Store>,
    pub(crate) credentials: Arc<tls::CredentialStore>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) drain: Arc<DrainOwner>,
    pub(crate) resolver: dns::Resolver,
    pub(crate) hops: Arc<Hops>,
}

/// Runs the proxy until it is told to end.
///
/// # Errors
/// What keeps it from starting: an address that is taken, a trust bundle that is none.
pub fn run(config: Config) -> anyhow::Result<()> {
    let registry = Arc::new(Registry::default());
    telemetry::install(&registry)?;
    let log = telemetry::log::init(&config.log, config.log_format)?;
    panics::count_and_log();
    let descriptors = descriptors::raise();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        workload = config.workload,
        control_plane = config.control_plane,
        workers = config.workers,
        descriptors,
        "leno-proxy starts"
    );
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("blocking")
        // Look-ups of the control plane's name, and nothing else, leave this thread.
        .max_blocking_threads(2)
        .build()
        .context("starting the control runtime")?;
    let result = LocalSet::new().block_on(&runtime, control(Arc::new(config), registry, log.clone()));
    match &result {
        Ok(()) => tracing::info!("leno-proxy ended"),
        Err(error) => tracing::error!("leno-proxy ended: {error:#}"),
    }
    log.flush();
    // A look-up that hangs must not hold up the end.
    runtime.shutdown_background();
    result
}

/// The control runtime's main task: starts everything, waits for a signal, drains.
async fn control(config: Arc<Config>, registry: Arc<Registry>, log: LogControl) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let (policy, asks) = policy::Store::new();
    let credentials = Arc::new(tls::CredentialStore::default());
    let shared = Shared {
        telemetry: Arc::new(start_telemetry(&config, &credentials)?),
        resolver: dns::Resolver::new(runtime::Handle::current(), config.dns_server),
        drain: Arc::default(),
        config,
        policy,
        credentials,
        hops: Arc::default(),
    };
    warn_of_pointless_configuration(&shared.config);
    // Everything that can be taken by others is taken before anything starts.
    let admin = admin::bind(shared.config.admin).await?;
    let probes = probes::bind(&shared.config)?;
    let mut workers = workers::start(&shared).await?;

    let (stop, stopped) = tokio::sync::watch::channel(false);
    let status = Arc::new(admin::Status {
        policy: shared.policy.clone(),
        credentials: shared.credentials.clone(),
        drain: shared.drain.clone(),
        registry: registry.clone(),
        log,
        started: SystemTime::now(),
        drain_requested: tokio::sync::Notify::new(),
    });
    tokio::task::spawn_local(admin::serve(admin, status.clone()));
    probes::start(probes, &shared.config, &status);
    tokio::task::spawn_local(keep_identity(shared.clone()));
    let mut policy = tokio::task::spawn_local(follow_policy(shared.clone(), asks, stopped));
    tokio::task::spawn_local(sweep(registry));
    tokio::task::spawn_local(footprint::shrink_when_ready(shared.clone()));

    // What should never end by itself did: better restarted by whoever runs us than half alive.
    let failure = select! {
        name = signals.next() => {
            tracing::info!(signal = name, "draining");
            None
        }
        () = status.drain_requested.notified() => {
            tracing::info!("draining, as the admin server was asked to");
            None
        }
        worker = workers.failed() => Some(format!("worker {worker} ended by itself")),
        _ = &mut policy => Some("the policy client ended by itself".to_owned()),
    };
    if let Some(failure) = &failure {
        tracing::error!("{failure}; draining");
    }
    drain(&shared, &workers, &mut signals).await;
    // Whoever has left is not waited for to run what is in force: nothing may be served after that.
    workers.stop().await;
    // Said to the control plane, which then need not wait for us to be missed.
    let _ = stop.send(true);
    if !policy.is_finished() {
        let _ = time::timeout(FLUSH, policy).await;
    }
    shared.telemetry.flush(FLUSH).await;
    failure.map_or(Ok(()), |failure| Err(anyhow::Error::msg(failure)))
}

fn start_telemetry(config: &Config, credentials: &Arc<tls::CredentialStore>) -> anyhow::Result<Telemetry> {
    let access_log = AccessLog::start(config.access_log)?;
    let tracer = config.otlp_endpoint.clone().map(|endpoint| {
        let (workload, credentials) = (config.workload.clone(), credentials.clone());
        let mark = config.transparent.as_ref().and_then(|transparent| transparent.mark);
        trace::Tracer::start(endpoint, mark, move || {
            let identity = credentials.current();
            let id = identity.as_ref().map(|identity| &identity.id);
            trace::Service {
                workload,
                namespace: id.map(|id| id.namespace().to_owned()),
                service_account: id.map(|id| id.service_account().to_owned()),
            }
        })
    });
    Ok(Telemetry::new(access_log, tracer))
}

/// Gets and renews the certificate. A bug there must not let it expire.
async fn keep_identity(shared: Shared) {
    loop {
        let renewing = tls::identity::run(shared.config.clone(), shared.credentials.clone());
        // Never returns but by a panic, which was logged.
        let _ = tokio::task::spawn_local(renewing).await;
        time::sleep(RESTART).await;
    }
}

async fn follow_policy(
    shared: Shared,
    asks: tokio::sync::mpsc::Receiver<policy::store::Ask>,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) {
    let shutdown = async move {
        // An error means that the sender is gone: stopped, too.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    policy::client::run(shared.config, shared.policy, shared.credentials, shared.telemetry, asks, shutdown).await;
}

/// Tells connections to finish and waits for them; a second signal ends the process at once. Nobody can connect when it
/// returns: who did, and was served, would be cut off when the process ends.
async fn drain(shared: &Shared, workers: &Workers, signals: &mut Signals) {
    let timeout = shared.config.drain_timeout;
    shared.drain.begin();
    let began = Instant::now();
    let finished = async {
        // Who comes until then is served: clients learn late that they should go elsewhere.
        shared.drain.wait(timeout).await;
        workers.close().await;
        shared.drain.wait(timeout.saturating_sub(began.elapsed())).await
    };
    select! {
        open = finished => match open {
            0 => tracing::info!(took = ?began.elapsed(), "drained"),
            open => tracing::warn!(open, "connections were still open after {timeout:?}; they are closed"),
        },
        name = signals.next() => {
            tracing::warn!(signal = name, open = shared.drain.open(), "second signal: connections are closed");
        }
    }
}

async fn sweep(registry: Arc<Registry>) {
    loop {
        time::sleep(SWEEP).await;
        registry.sweep(Instant::now());
    }
}

fn warn_of_pointless_configuration(config: &Config) {
    if config.inbound.is_empty() && config.outbound.is_empty() && config.transparent.is_none() {
        tracing::warn!("nothing to serve: neither --inbound nor --outbound nor --transparent is given");
    }
    if !config.admin.ip().is_loopback() {
        tracing::warn!(admin = %config.admin, "the admin server has no access control and is not on loopback");
    }
}

/// SIGTERM and SIGINT, which mean the same.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("listening for signals");
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
