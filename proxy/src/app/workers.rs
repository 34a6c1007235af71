//! Worker threads: each a single-threaded runtime with listeners of its own on the same addresses.

use std::{
    future::pending,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    runtime,
    sync::{mpsc, oneshot, watch},
    task::{JoinSet, LocalSet},
    time,
};

use super::Shared;
use crate::{
    config::Config,
    inbound,
    net::{self, listener},
    outbound,
    policy::DestinationKey,
    upstream::Upstreams,
    worker::{Context, Worker},
};

/// A worker that was told to end has so long to do it; it only has to drop its tasks.
const STOP: Duration = Duration::from_secs(2);

/// What a listener stands for.
#[derive(Debug, Clone)]
enum Side {
    /// None: the original destination of each redirected connection.
    Inbound(Option<SocketAddr>),
    /// None: the original destination of each redirected connection.
    Outbound(Option<DestinationKey>),
}

/// The running workers.
pub(super) struct Workers {
    /// Each listener has a receiver, as long as it is open.
    close: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    /// Closed once every worker has ended; brings the number of one that ended by itself.
    ended: mpsc::Receiver<usize>,
}

/// Starts all workers; returns once all of them listen.
pub(super) async fn start(shared: &Shared) -> anyhow::Result<Workers> {
    let sides = sides(&shared.config);
    for (address, _) in &sides {
        // SO_REUSEPORT would let us share a port with another proxy without a word: asked without it, the
        // kernel says when somebody listens already. Our own listeners were told apart with the configuration.
        StdListener::bind(address).with_context(|| format!("listening on {address}"))?;
    }
    let (close, closing) = watch::channel(false);
    let (stop, stopped) = watch::channel(false);
    let (ended_sender, ended) = mpsc::channel(shared.config.workers);
    for number in 0..shared.config.workers {
        let (ready_sender, ready) = oneshot::channel();
        let (shared, sides, ended) = (shared.clone(), sides.clone(), ended_sender.clone());
        let told = Told { closing: closing.clone(), stopped: stopped.clone() };
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                let _ended = Ended { number, sender: ended };
                run(&shared, &sides, ready_sender, told);
            })
            .with_context(|| format!("starting the thread of worker {number}"))?;
        ready.await.with_context(|| format!("worker {number} ended while it started"))??;
    }
    Ok(Workers { close, stop, ended })
}

/// What a worker is told.
struct Told {
    closing: watch::Receiver<bool>,
    stopped: watch::Receiver<bool>,
}

/// Tells of a worker's end, however it comes.
struct Ended {
    number: usize,
    sender: mpsc::Sender<usize>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        // Nobody listens any longer if the process is ending.
        let _ = self.sender.try_send(self.number);
    }
}

impl Workers {
    /// The number of a worker that ended by itself; else never.
    pub(super) async fn failed(&mut self) -> usize {
        match self.ended.recv().await {
            Some(number) => number,
            None => pending().await, // There is no worker left to fail.
        }
    }

    /// Closes all listeners; returns once nobody can connect any longer.
    pub(super) async fn close(&self) {
        // An error means that none is left.
        let _ = self.close.send(true);
        if time::timeout(STOP, self.close.closed()).await.is_err() {
            tracing::warn!("a worker did not close its listeners within {STOP:?}");
        }
    }

    /// Ends all workers and whatever they still do.
    pub(super) async fn stop(mut self) {
        // An error means that none is left.
        let _ = self.stop.send(true);
        let all = async { while self.ended.recv().await.is_some() {} };
        if time::timeout(STOP, all).await.is_err() {
            tracing::warn!("a worker did not end within {STOP:?}");
        }
    }
}

fn sides(config: &Config) -> Vec<(SocketAddr, Side)> {
    let mut sides = Vec::new();
    sides.extend(config.inbound.iter().map(|inbound| (inbound.listen, Side::Inbound(Some(inbound.application)))));
    sides.extend(config.outbound.iter().map(|outbound| {
        let key = DestinationKey::from(outbound.destination.as_str());
        (outbound.listen, Side::Outbound(Some(key)))
    }));
    if let Some(transparent) = &config.transparent {
        // The redirect keeps the address family, and sends to the address the connection came in by.
        sides.extend(net::any_address(transparent.inbound_port).map(|any| (any, Side::Inbound(None))));
        sides.extend(net::any_address(transparent.outbound_port).map(|any| (any, Side::Outbound(None))));
    }
    sides
}

/// One worker's thread, until it is stopped.
fn run(shared: &Shared, sides: &[(SocketAddr, Side)], ready: oneshot::Sender<anyhow::Result<()>>, told: Told) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(error).context("starting a worker's runtime"));
            return;
        }
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let listeners = sides.iter().map(|(address, side)| Ok((listener::bind(*address)?, side.clone())));
        let listeners = match listeners.collect::<io::Result<Vec<_>>>() {
            Ok(listeners) => listeners,
            Err(error) => {
                let _ = ready.send(Err(error.into()));
                return;
            }
        };
        let ctx = context(shared);
        // Whoever started us has given up if this fails, and the process ends.
        let _ = ready.send(Ok(()));
        // In a task of its own: what is awaited here is polled whenever anything happens on this thread. A panic in it was
        // logged, and ends the worker as it would here.
        let _ = tokio::task::spawn_local(serve(ctx, listeners, told)).await;
    });
}

fn context(shared: &Shared) -> Context {
    let mark = shared.config.transparent.as_ref().and_then(|transparent| transparent.mark);
    let upstreams = Upstreams::new(mark, Arc::clone(&shared.credentials), shared.resolver.clone());
    upstreams.placed_by(Arc::clone(&shared.policy));
    Worker::new(
        Arc::clone(&shared.config),
        Arc::clone(&shared.policy),
        Arc::clone(&shared.credentials),
        Arc::clone(&shared.telemetry),
        shared.drain.handle(),
        upstreams,
        Arc::clone(&shared.hops),
    )
}

/// Serves all listeners until stopped, or until one of them fails, which none should.
async fn serve(ctx: Context, listeners: Vec<(TcpListener, Side)>, told: Told) {
    let Told { closing, mut stopped } = told;
    let mut accepting = JoinSet::new();
    for (listener, side) in listeners {
        let (ctx, closing) = (Rc::clone(&ctx), closing.clone());
        match side {
            Side::Inbound(application) => accepting.spawn_local(inbound::run(ctx, listener, application, closing)),
            Side::Outbound(key) => accepting.spawn_local(outbound::run(ctx, listener, key, closing)),
        };
    }
    drop(closing);
    let listener_failed = async {
        while let Some(ended) = accepting.join_next().await {
            if ended.is_err() {
                return;
            }
        }
        pending::<()>().await; // All are closed, or there was none.
    };
    tokio::select! {
        () = listener_failed => {}
        // An error means that the process is ending.
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
}
