//! Algorithms against each other, on servers that only exist here: heterogeneous, antagonised, some that fail fast. Time is
//! simulated, random numbers are seeded, so the figures are the same on every machine:
//! `cargo test --lib -- simulation --nocapture` prints them.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{testing::*, *};
use crate::inbound::load::{Load, Underway};

const CLIENTS: usize = 10;
/// Requests that a server works on at a time; others wait in order.
const PARALLEL: usize = 4;
const ROUND_TRIP: Duration = Duration::from_micros(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Turns,
    Random,
    LeastRequest,
    PeakEwma,
    Prequal,
}

/// What servers are like.
struct Fleet {
    /// Mean service times, without load.
    service: Vec<Duration>,
    /// One in so many seconds of each server's time it is three times as slow.
    antagonised_one_in: Option<u64>,
    /// Servers that fail this share of their requests, at once, until so long after the beginning.
    failing: Option<(Range<usize>, f64, Duration)>,
    utilisation: f64,
}

struct Outcome {
    latencies: Vec<Duration>,
    failed: usize,
    /// Requests sent to the failing servers since they are well, and to all.
    since: (usize, usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    /// A request's answer, by its number.
    Done {
        request: usize,
    },
    /// The answer to a probe.
    Report {
        client: usize,
        server: usize,
    },
}

struct Request {
    client: usize,
    server: usize,
    sent: Instant,
    underway: Option<Underway>,
    fails: bool,
}

#[derive(Default)]
struct Server {
    busy: usize,
    waiting: VecDeque<usize>,
    load: Arc<Load>,
}

struct Client {
    endpoints: Endpoints,
    turns: RoundRobin,
    pool: prequal::Pool,
}

struct Simulation<'a> {
    by: By,
    fleet: &'a Fleet,
    start: Instant,
    draw: Box<dyn Fn() -> u64>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    sequence: u64,
    servers: Vec<Server>,
    clients: Vec<Client>,
    requests: Vec<Request>,
    outcome: Outcome,
}

impl<'a> Simulation<'a> {
    fn run(by: By, fleet: &'a Fleet, seconds: u64) -> Outcome {
        let start = Instant::now() + Duration::from_secs(1);
        let count = fleet.service.len();
        let draw = generator(42);
        let client = |_| Client {
            endpoints: Endpoints::ready(count, start),
            turns: RoundRobin::new(count, draw()),
            pool: prequal::Pool::default(),
        };
        let clients = (0..CLIENTS).map(client).collect();
        let servers = (0..count).map(|_| Server::default()).collect();
        let mut simulation = Self {
            by,
            fleet,
            start,
            draw: Box::new(draw),
            events: BinaryHeap::new(),
            sequence: 0,
            servers,
            clients,
            requests: Vec::new(),
            outcome: Outcome { latencies: Vec::new(), failed: 0, since: (0, 0) },
        };
        simulation.at(start, Event::Arrival);
        let end = start + Duration::from_secs(seconds);
        while let Some(Reverse((now, _, event))) = simulation.events.pop().filter(|Reverse((now, ..))| *now < end) {
            match event {
                Event::Arrival => simulation.arrival(now),
                Event::Done { request } => simulation.done(request, now),
                Event::Report { client, server } => simulation.report(client, server, now),
            }
        }
        simulation.outcome.latencies.sort_unstable();
        simulation.outcome
    }

    fn at(&mut self, when: Instant, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((when, self.sequence, event)));
    }

    fn exponential(&self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - sampler::unit((self.draw)())).ln())
    }

    fn capacity(&self) -> f64 {
        let slowed = self.fleet.antagonised_one_in.map_or(1.0, |one_in| 1.0 + 2.0 / one_in as f64);
        self.fleet.service.iter().map(|service| PARALLEL as f64 / service.as_secs_f64() / slowed).sum()
    }

    fn arrival(&mut self, now: Instant) {
        let mean = Duration::from_secs_f64(1.0 / (self.capacity() * self.fleet.utilisation));
        let next = now + self.exponential(mean);
        self.at(next, Event::Arrival);
        let client = sampler::scale((self.draw)() as u32, CLIENTS);
        let server = self.choose(client, now);
        self.clients[client].endpoints.in_flight[server] += 1;
        let mut fails = false;
        if let Some((failing, share, until)) = &self.fleet.failing {
            let is_one = failing.contains(&server);
            if now < self.start + *until {
                fails = is_one && sampler::unit((self.draw)()) < *share;
            } else {
                self.outcome.since.0 += usize::from(is_one);
                self.outcome.since.1 += 1;
            }
        }
        let underway = self.servers[server].load.begin(now);
        let request = self.requests.len();
        self.requests.push(Request { client, server, sent: now, underway, fails });
        if fails {
            return self.at(now + ROUND_TRIP, Event::Done { request });
        }
        self.servers[server].waiting.push_back(request);
        self.serve(server, now);
    }

    fn serve(&mut self, server: usize, now: Instant) {
        while self.servers[server].busy < PARALLEL {
            let Some(request) = self.servers[server].waiting.pop_front() else { return };
            self.servers[server].busy += 1;
            let second = (now - self.start).as_secs();
            let slow = self
                .fleet
                .antagonised_one_in
                .is_some_and(|one_in| hash::mix(second / 3, server as u64).is_multiple_of(one_in));
            let mean = self.fleet.service[server] * if slow { 3 } else { 1 };
            let took = self.exponential(mean);
            self.at(now + took + ROUND_TRIP, Event::Done { request });
        }
    }

    fn done(&mut self, request: usize, now: Instant) {
        let Request { client, server, sent, fails, .. } = self.requests[request];
        let took = now - sent;
        let underway = self.requests[request].underway.take();
        let endpoints = &mut self.clients[client].endpoints;
        endpoints.in_flight[server] -= 1;
        if fails {
            endpoints.estimates[server].failed(took, now);
            self.outcome.failed += 1;
            return;
        }
        endpoints.estimates[server].succeeded(took, now);
        if let Some(underway) = underway {
            underway.answered(Some(now));
        }
        self.outcome.latencies.push(took);
        self.servers[server].busy -= 1;
        self.serve(server, now);
    }

    fn report(&mut self, client: usize, server: usize, now: Instant) {
        let load = self.servers[server].load.tell(now);
        let report = prequal::Report { in_flight: load.in_flight, latency: load.latency, at: now };
        self.clients[client].pool.take(server, report);
    }

    fn choose(&mut self, client: usize, now: Instant) -> usize {
        let Client { endpoints, turns, pool } = &mut self.clients[client];
        let (count, draw) = (endpoints.count(), &self.draw);
        let sampler = Sampler::new_uniform(count);
        let choice = match self.by {
            By::Turns => turns.choose(endpoints, true),
            By::Random => random(endpoints, &sampler, draw),
            By::LeastRequest => cheapest_drawn(endpoints, &sampler, Cost::InFlight, now, draw),
            By::PeakEwma => cheapest_drawn(endpoints, &sampler, Cost::PeakEwma, now, draw),
            By::Prequal => {
                let settings = prequal::Settings::default();
                let penalty = |index: usize| endpoints.estimates[index].penalty(now);
                let usable = |index: usize| is_trusted(endpoints, index, now, draw);
                let any = sampler.draw(draw());
                let chosen = pool.choose(&settings, count, now, usable, penalty).map(|chosen| {
                    let relieves = !usable(any) && relieves(endpoints, Cost::PeakEwma, now, any, chosen);
                    Choice::of(if relieves { any } else { chosen })
                });
                let asked: Vec<usize> = (0..pool.probes_due(&settings)).map(|_| sampler.draw(draw())).collect();
                let chosen = chosen.or_else(|| cheapest_drawn(endpoints, &sampler, Cost::PeakEwma, now, draw));
                for server in asked {
                    self.at(now + ROUND_TRIP, Event::Report { client, server });
                }
                chosen
            }
        };
        choice.unwrap().index
    }
}

impl Outcome {
    fn quantile(&self, share: f64) -> Duration {
        self.latencies[(self.latencies.len() as f64 * share) as usize]
    }
}

/// Prints a table, and gives back p99 by algorithm.
fn compare(name: &str, fleet: &Fleet, seconds: u64) -> Vec<(By, Duration, usize)> {
    println!("{name}: p50, p99, p999 in ms; failed of all");
    let all = [By::Turns, By::Random, By::LeastRequest, By::PeakEwma, By::Prequal];
    let run = |by: By| {
        let outcome = Simulation::run(by, fleet, seconds);
        let millis = |share| outcome.quantile(share).as_secs_f64() * 1e3;
        let all = outcome.failed + outcome.latencies.len();
        println!(
            "  {by:<14?} {:8.1} {:8.1} {:8.1}   {} of {all}",
            millis(0.5),
            millis(0.99),
            millis(0.999),
            outcome.failed
        );
        (by, outcome.quantile(0.99), outcome.failed)
    };
    all.map(run).to_vec()
}

fn of(results: &[(By, Duration, usize)], by: By) -> (Duration, usize) {
    results.iter().find(|(other, ..)| *other == by).map(|(_, p99, failed)| (*p99, *failed)).unwrap()
}

/// Half of the servers are half as fast as the others.
fn heterogeneous() -> Vec<Duration> {
    (0..20).map(|index| Duration::from_millis(if index % 2 == 0 { 20 } else { 40 })).collect()
}

#[test]
fn simulation_of_heterogeneous_and_antagonised_servers() {
    for (utilisation, antagonised_one_in) in [(0.7, None), (0.7, Some(10)), (0.8, Some(10)), (0.9, Some(10))] {
        let fleet = Fleet { service: heterogeneous(), antagonised_one_in, failing: None, utilisation };
        let antagonised = if antagonised_one_in.is_some() { ", antagonised" } else { "" };
        let results = compare(&format!("{:.0} % used{antagonised}", utilisation * 100.0), &fleet, 20);
        for by in [By::PeakEwma, By::Prequal] {
            for other in [By::Turns, By::LeastRequest] {
                assert!(of(&results, by).0 < of(&results, other).0, "{by:?} is no better than {other:?}");
            }
        }
    }
}

/// One of ten fails at once, nine times of ten.
fn failing(utilisation: f64, until: Duration) -> Fleet {
    Fleet {
        service: vec![Duration::from_millis(20); 10],
        antagonised_one_in: None,
        failing: Some((3..4, 0.9, until)),
        utilisation,
    }
}

#[test]
fn simulation_of_most_servers_failing_fast() {
    let fleet = Fleet { failing: Some((2..10, 1.0, Duration::from_secs(3600))), ..failing(0.6, Duration::ZERO) };
    compare("60 % used, eight of ten fail fast", &fleet, 20);
    for by in [By::LeastRequest, By::PeakEwma, By::Prequal] {
        let outcome = Simulation::run(by, &fleet, 20);
        // What the two can do in twenty seconds, and how long whoever is with them waits.
        let most = 2.0 * PARALLEL as f64 / 0.02 * 20.0;
        let (used, slowest) = (outcome.latencies.len() as f64 / most, outcome.quantile(0.999));
        println!("{by:?}: {:.0} % of what the two can do", used * 100.0);
        assert!(used > 0.85, "{by:?} spares the two that are well: {used}");
        assert!(slowest < Duration::from_secs(2), "{by:?} overloads them: {slowest:?}");
    }
}

#[test]
fn simulation_of_a_server_that_fails_fast() {
    for utilisation in [0.7, 0.9, 1.1] {
        let fleet = failing(utilisation, Duration::from_secs(3600));
        let results = compare(&format!("{:.0} % used, one of ten fails fast", utilisation * 100.0), &fleet, 20);
        let share = of(&results, By::Turns).1;
        // What the nine cannot do goes to the tenth, but no more than its share.
        let most = if utilisation < 1.0 { share / 4 } else { share };
        for by in [By::LeastRequest, By::PeakEwma, By::Prequal] {
            assert!(of(&results, by).1 < most, "{by:?} is drawn to it");
        }
    }
}

#[test]
fn simulation_of_a_server_that_is_well_again() {
    for by in [By::LeastRequest, By::PeakEwma, By::Prequal] {
        let outcome = Simulation::run(by, &failing(0.7, Duration::from_secs(10)), 20);
        let share = outcome.since.0 as f64 / outcome.since.1 as f64;
        println!("{by:?}: {:.1} % of the next ten seconds' requests, for a fair share of 10 %", share * 100.0);
        assert!(share > 0.05, "{by:?} stays away from it: {share}");
    }
}
