//! Who of the replicas leads: the holder of the Lease `leno` (coordination.k8s.io). Only writes of status and of ConfigMaps
//! hang on it.
//!
//! As client-go does it: a holder that has not renewed for [`LEASE`], by the clock of who looks on and not by the times in the
//! Lease, has lost it. A leader that cannot renew for [`RENEW_DEADLINE`] steps down before another may step up.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{NAME, NAMESPACE, call, find, is_conflict};

/// How long a silent holder is believed.
const LEASE: Duration = Duration::from_secs(15);
/// How long a leader goes on without having renewed.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between tries, ± 20 %.
const RETRY: Duration = Duration::from_secs(2);
/// For giving the Lease back at the end.
const RELEASE: Duration = Duration::from_secs(2);

/// The Lease as it was last seen to change.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    spec: LeaseSpec,
    at: Instant,
}

/// What is to be done about the Lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// Write this, if nobody else was quicker.
    Write(Box<LeaseSpec>),
    /// It is somebody else's.
    Wait,
}

fn step(seen: Option<&Seen>, me: &str, now: Instant, wall: MicroTime) -> Step {
    let mine = LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
        acquire_time: Some(wall.clone()),
        renew_time: Some(wall),
        lease_transitions: Some(0),
        ..LeaseSpec::default()
    };
    let Some(Seen { spec, at }) = seen else { return Step::Write(Box::new(mine)) };
    let transitions = spec.lease_transitions.unwrap_or_default();
    match spec.holder_identity.as_deref().unwrap_or_default() {
        holder if holder == me => {
            let acquire_time = spec.acquire_time.clone().or_else(|| mine.acquire_time.clone());
            Step::Write(Box::new(LeaseSpec { acquire_time, lease_transitions: Some(transitions), ..mine }))
        }
        holder => {
            let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let duration = duration.map_or(LEASE, Duration::from_secs);
            if !holder.is_empty() && now < *at + duration {
                return Step::Wait;
            }
            Step::Write(Box::new(LeaseSpec { lease_transitions: Some(transitions.saturating_add(1)), ..mine }))
        }
    }
}

/// Takes part in the election, under the name of this Pod.
pub struct Candidate {
    leases: Api<Lease>,
    me: String,
    seen: Option<Seen>,
    renewed: Option<Instant>,
    /// The identity of the Lease's holder, and whether that is us.
    leader: watch::Sender<Leader>,
}

/// Who leads, as far as is known here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leader {
    pub is_me: bool,
    /// Pod name; empty: nobody is known to.
    pub name: Arc<str>,
    /// How often this process has come to lead: who looks seldom sees by it that another led in between.
    pub term: u64,
}

impl Candidate {
    /// `me`: the name of this Pod.
    pub fn new(client: Client, me: &str) -> Self {
        let leases = Api::namespaced(client, NAMESPACE);
        Self { leases, me: me.to_owned(), seen: None, renewed: None, leader: watch::Sender::default() }
    }

    /// Who leads, and its changes.
    pub fn leader(&self) -> watch::Receiver<Leader> {
        self.leader.subscribe()
    }

    /// Until `stopping`; then the Lease is given back, so that another need not wait for it to end.
    ///
    /// # Errors
    /// None: without the API server nobody leads.
    pub async fn run(mut self, mut stopping: watch::Receiver<bool>) -> anyhow::Result<()> {
        loop {
            match timeout(RENEW_DEADLINE, self.try_once()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "the Lease of the leader"),
                Err(_) => tracing::warn!("the Lease of the leader: no answer within {RENEW_DEADLINE:?}"),
            }
            self.tell(Instant::now());
            tokio::select! {
                () = sleep(RETRY.mul_f64(0.8 + 0.4 * fastrand::f64())) => {}
                _ = stopping.wait_for(|stop| *stop) => break,
            }
        }
        if self.leader.borrow().is_me
            && let Ok(Err(error)) = timeout(RELEASE, self.release()).await
        {
            tracing::info!(error = format!("{error:#}"), "the Lease of the leader was not given back");
        }
        self.leader.send_replace(Leader::default());
        Ok(())
    }

    async fn try_once(&mut self) -> anyhow::Result<()> {
        let found = find("read the Lease of the leader", self.leases.get(NAME)).await?;
        let now = Instant::now();
        let spec = found.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        if self.seen.as_ref().map(|seen| &seen.spec) != spec.as_ref() {
            self.seen = spec.map(|spec| Seen { spec, at: now });
        }
        let Step::Write(spec) = step(self.seen.as_ref(), &self.me, now, wall()?) else { return Ok(()) };
        let lease = match found {
            // Its resourceVersion is given with it: whoever was quicker has it.
            Some(lease) => Lease { spec: Some((*spec).clone()), ..lease },
            None => Lease {
                metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                spec: Some((*spec).clone()),
            },
        };
        let options = PostParams::default();
        let written = match lease.metadata.resource_version {
            Some(_) => call("write the Lease of the leader", self.leases.replace(NAME, &options, &lease)).await,
            None => call("make the Lease of the leader", self.leases.create(&options, &lease)).await,
        };
        match written {
            Ok(lease) => {
                self.renewed = Some(now);
                self.seen = Some(Seen { spec: lease.spec.unwrap_or_default(), at: now });
                Ok(())
            }
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn tell(&self, now: Instant) {
        let holder = self.seen.as_ref().and_then(|seen| seen.spec.holder_identity.clone()).unwrap_or_default();
        let is_me = holder == self.me && self.renewed.is_some_and(|at| now < at + RENEW_DEADLINE);
        self.leader.send_if_modified(|leader| {
            let term = leader.term + u64::from(is_me && !leader.is_me);
            let next = Leader { is_me, name: holder.as_str().into(), term };
            if *leader == next {
                return false;
            }
            if leader.is_me != next.is_me {
                tracing::info!(leader = %next.name, "{}", if is_me { "leading" } else { "no longer leading" });
            }
            *leader = next;
            true
        });
    }

    async fn release(&mut self) -> anyhow::Result<()> {
        let lease = call("read the Lease of the leader", self.leases.get(NAME)).await?;
        let Some(spec) = lease.spec.clone().filter(|spec| spec.holder_identity.as_deref() == Some(self.me.as_str()))
        else {
            return Ok(());
        };
        let released = LeaseSpec { holder_identity: None, lease_duration_seconds: Some(1), ..spec };
        let lease = Lease { spec: Some(released), ..lease };
        call("give back the Lease of the leader", self.leases.replace(NAME, &PostParams::default(), &lease)).await?;
        Ok(())
    }
}

fn wall() -> anyhow::Result<MicroTime> {
    Ok(MicroTime(SystemTime::now().try_into().context("the clock cannot be read")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: &str, at: Instant) -> Seen {
        let Step::Write(spec) = step(None, holder, at, wall().unwrap()) else { panic!("not taken") };
        Seen { spec: *spec, at }
    }

    fn after(seen: &Seen, me: &str, later: Duration) -> Option<LeaseSpec> {
        match step(Some(seen), me, seen.at + later, wall().unwrap()) {
            Step::Write(spec) => Some(*spec),
            Step::Wait => None,
        }
    }

    #[test]
    fn the_first_takes_it_and_keeps_it() {
        let first = seen("a", Instant::now());
        assert_eq!(first.spec.lease_transitions, Some(0));
        let renewed = after(&first, "a", Duration::from_secs(2)).unwrap();
        assert_eq!((&renewed.acquire_time, renewed.lease_transitions), (&first.spec.acquire_time, Some(0)));
        assert_ne!(renewed.renew_time, first.spec.renew_time);
    }

    #[test]
    fn another_waits_until_the_holder_has_been_silent_for_long() {
        let held = seen("a", Instant::now());
        assert_eq!(after(&held, "b", LEASE - Duration::from_millis(1)), None);
        let taken = after(&held, "b", LEASE).unwrap();
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("b"), Some(1)));
        assert!(taken.acquire_time > held.spec.acquire_time);
        // A leader has stepped down by then.
        assert!(RENEW_DEADLINE < LEASE);
    }

    #[test]
    fn each_time_it_is_regained_is_another_term() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let now = Instant::now();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let mut candidate = Candidate::new(Client::try_from(config).unwrap(), "a");
            let leader = candidate.leader();
            candidate.seen = Some(seen("a", now));
            candidate.renewed = Some(now);
            candidate.tell(now);
            assert_eq!((leader.borrow().is_me, leader.borrow().term), (true, 1));
            candidate.tell(now);
            // It was late, and nobody looked meanwhile.
            candidate.tell(now + RENEW_DEADLINE);
            candidate.renewed = Some(now + RENEW_DEADLINE);
            candidate.tell(now + RENEW_DEADLINE);
            assert_eq!((leader.borrow().is_me, leader.borrow().term), (true, 2));
        });
    }

    #[test]
    fn a_lease_that_was_given_back_is_free() {
        let mut released = seen("a", Instant::now());
        released.spec.holder_identity = None;
        assert!(after(&released, "b", Duration::ZERO).is_some());
        released.spec.holder_identity = Some(String::new());
        assert!(after(&released, "b", Duration::ZERO).is_some());
    }
}
