//! `leno wait`

use std::time::{Duration, Instant};

use leno_proto::v1::{ObjectRef, ObjectStatus};
use tokio::time::timeout_at;

use super::{State, block_on, connect::is_away, duration, get, kinds, print::clean};
use crate::model::DocumentError;

/// For an answer about now.
const LOOK: Duration = Duration::from_secs(10);

/// Between tries to reach a control plane that is away.
const AGAIN: Duration = Duration::from_millis(250);

/// Wait until an object's newest generation is in force at every proxy that uses it
///
/// A generation is in force where it, or a later one, was acknowledged by the proxy, once all its workers serve by it.
/// A proxy that is cut off still serves what it had, and lags until it is back or its Pod is gone (one without a Pod document:
/// for five minutes). If the object's document is bad, waiting is in vain, and it says so at once. A control plane that is rolled out or started anew
/// meanwhile is waited for.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  leno wait httproute/cart -n shop\n  leno wait httproute/shop/cart --generation 7 \
                        --timeout 5s\n\nExit codes: 0 it is so; 1 it is not: who lags and why is on standard error; \
                        2 the command line is wrong."
)]
pub(super) struct Args {
    /// KIND/NAME, or KIND/NAMESPACE/NAME
    object: String,
    /// Its namespace [default: that of the kubeconfig's context, or default]
    #[arg(short, long, env = "LENO_NAMESPACE")]
    namespace: Option<String>,
    /// What to wait for
    #[arg(long = "for", value_name = "STATE", env = "LENO_FOR", default_value = "programmed")]
    state_wanted: Wanted,
    /// At least this generation of the object [default: the newest there is]
    #[arg(long, value_name = "N", env = "LENO_GENERATION", default_value_t = 0)]
    generation: u64,
    /// At least so many proxies that use it
    #[arg(long, value_name = "N", env = "LENO_PROXIES", default_value_t = 0)]
    proxies: u32,
    /// How long at most; 0s: see whether it is so now
    #[arg(long, value_name = "DURATION", env = "LENO_TIMEOUT", default_value = "30s", value_parser = duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wanted {
    /// In force at every proxy that uses it
    Programmed,
    /// Gone, from the configuration and from every proxy
    Removed,
}

pub(super) fn run(args: Args) -> anyhow::Result<u8> {
    let parsed = kinds::parse_object(&args.object)
        .and_then(|(kind, namespace, name)| Ok((kind, kinds::namespace(namespace, args.namespace.as_deref())?, name)));
    let object = match parsed {
        Ok((kind, namespace, name)) => ObjectRef {
            kind: kind.to_owned(),
            namespace: match kind {
                "Namespace" => String::new(),
                _ => args.state.namespace(namespace),
            },
            name: name.to_owned(),
        },
        Err(wrong) => return super::usage(&wrong),
    };
    block_on(watch(&args, object))
}

async fn watch(args: &Args, object: ObjectRef) -> anyhow::Result<u8> {
    let started = Instant::now();
    let title = title(&object);
    let mut known = Known::default();
    let most = if args.timeout.is_zero() { LOOK } else { args.timeout };
    let deadline = tokio::time::Instant::from_std(started + most);
    match timeout_at(deadline, follow_on(args, &object, &mut known)).await {
        Ok(End::Holds(what)) => {
            outln!("{title} {what} ({:.3} s)", started.elapsed().as_secs_f64());
            Ok(super::SUCCESS)
        }
        Ok(End::Never(status)) => {
            if status.errors.iter().all(|error| DocumentError::is_of_all(&error.file)) {
                eprintln!(
                    "leno: whether there is a newer {title} is not known, since the configuration cannot be read:"
                );
            } else if status.errors.iter().all(|error| error.object.is_empty()) && status.absent {
                eprintln!("leno: {title} does not exist; it may be in what cannot be read:");
            } else {
                eprintln!("leno: {title} has a bad document, so it will not come into force:");
            }
            for error in &status.errors {
                eprintln!("  {}", get::error_line(error));
            }
            Ok(super::FAILURE)
        }
        Ok(End::Failed(error)) => Err(error),
        Ok(End::NotNow) | Err(_) => {
            let missed = match args.state_wanted {
                Wanted::Programmed => "is not in force at every proxy that uses it",
                Wanted::Removed => "is not gone everywhere",
            };
            let when = if args.timeout.is_zero() { " now".to_owned() } else { format!(", after {:?}", args.timeout) };
            eprintln!("leno: {title} {missed}{when}{}", explain(args, &known));
            Ok(super::FAILURE)
        }
    }
}

/// How waiting ends before its time.
enum End {
    Holds(String),
    /// It would be in vain.
    Never(ObjectStatus),
    Failed(anyhow::Error),
    /// It does not hold, and is not waited for.
    NotNow,
}

/// What is known while nothing has been decided.
#[derive(Default)]
struct Known {
    /// What the control plane said last.
    status: Option<ObjectStatus>,
    /// Why it says nothing more.
    away: Option<anyhow::Error>,
}

/// Follows the object, past control planes that end and others that start.
async fn follow_on(args: &Args, object: &ObjectRef, known: &mut Known) -> End {
    loop {
        match follow(args, object, known).await {
            Ok(end) => return end,
            Err(error) if is_away(&error) => {
                if known.away.is_none() {
                    eprintln!("leno: {error:#}; asking again until --timeout");
                }
                known.away = Some(error);
            }
            Err(error) => return End::Failed(error),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Follows the object for as long as the same replicas answer.
async fn follow(args: &Args, object: &ObjectRef, known: &mut Known) -> anyhow::Result<End> {
    let mut statuses = args.state.connect().await?.watch_object(object).await?;
    loop {
        let status = statuses.next().await?;
        known.away = None;
        match judge(args, &status) {
            // Others may know more.
            Verdict::Holds(_) if statuses.outdated().await? => {
                statuses = args.state.connect().await?.watch_object(object).await?;
            }
            Verdict::Holds(what) => return Ok(End::Holds(what)),
            Verdict::Never => return Ok(End::Never(status)),
            Verdict::NotYet => {
                let settled = status.settled;
                known.status = Some(status);
                if args.timeout.is_zero() && settled {
                    return Ok(End::NotNow);
                }
            }
        }
    }
}

enum Verdict {
    Holds(String),
    NotYet,
    /// Waiting is in vain.
    Never,
}

fn judge(args: &Args, status: &ObjectStatus) -> Verdict {
    let behind = !status.settled || !status.laggards.is_empty() || status.programmed < status.subscribed;
    match args.state_wanted {
        // What another document's trouble is, a removed object need not wait for.
        Wanted::Removed if status.absent && !behind && status.errors.iter().all(|e| e.object.is_empty()) => {
            Verdict::Holds("is gone".to_owned())
        }
        Wanted::Removed => Verdict::NotYet,
        Wanted::Programmed if !status.errors.is_empty() => Verdict::Never,
        Wanted::Programmed => {
            let accepted = status.conditions.iter().all(|c| c.r#type != "Accepted" || c.status);
            let late = status.generation < args.generation || status.subscribed < args.proxies;
            if status.absent || behind || late || !accepted {
                return Verdict::NotYet;
            }
            let at = match status.subscribed {
                0 => "is accepted; no proxy uses it yet".to_owned(),
                1 => "is in force at the 1 proxy that uses it".to_owned(),
                n => format!("is in force at all {n} proxies that use it"),
            };
            Verdict::Holds(format!("generation {} {at}", status.generation))
        }
    }
}

/// What stands in the way.
fn explain(args: &Args, known: &Known) -> String {
    let mut lines = Vec::new();
    lines.extend(known.away.as_ref().map(|error| format!("{error:#}")));
    let Some(status) = &known.status else {
        lines.push("the control plane said nothing about it".to_owned());
        return indented(&lines);
    };
    match (args.state_wanted, status.absent) {
        (Wanted::Programmed, true) => lines.push("it does not exist".to_owned()),
        (Wanted::Removed, false) => lines.push(format!("it is still there: {}", status.source)),
        _ => {}
    }
    if !status.absent && status.generation < args.generation {
        lines.push(format!("its generation is {}, not yet {}", status.generation, args.generation));
    }
    if status.subscribed < args.proxies {
        lines.push(format!("{} of at least {} proxies use it", status.subscribed, args.proxies));
    }
    let bad = status.conditions.iter().filter(|c| !get::is_good(c));
    lines.extend(bad.map(get::condition_line));
    for laggard in &status.laggards {
        let message = if laggard.message.is_empty() { String::new() } else { format!(": {}", laggard.message) };
        let has = match laggard.generation {
            0 => "nothing of it in force".to_owned(),
            generation => format!("generation {generation} in force"),
        };
        lines.push(format!("{} {}, {has}{message}", laggard.proxy, laggard.reason));
    }
    if !status.settled {
        lines.push("some proxies have not been compared with the newest configuration yet".to_owned());
    }
    indented(&lines)
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {}", clean(line))).collect()
}

/// "HTTPRoute shop/cart"
pub(super) fn title(object: &ObjectRef) -> String {
    match object.namespace.is_empty() {
        true => format!("{} {}", object.kind, object.name),
        false => format!("{} {}/{}", object.kind, object.namespace, object.name),
    }
}
