//! The adaptive limit before a simulated application, in virtual time: `slots` requests at once, the others in a queue.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use super::*;
use crate::worker::Random;

/// An application, and who calls it.
#[derive(Clone, Copy)]
struct Scene {
    /// Requests that it serves at once, at a given time.
    slots: fn(f64) -> usize,
    /// Seconds to serve a request, on average, at a given time.
    service: fn(f64) -> f64,
    /// 0: all alike; 1: exponentially distributed.
    spread: f64,
    /// Requests per second at a given time, as independent clients make them.
    load: fn(f64) -> f64,
    /// The share of requests that are answered in a millisecond, outside the slots.
    cheap: f64,
    seconds: f64,
    /// Of all that is random.
    seed: u64,
}

#[derive(Default)]
struct Seen {
    /// When it was answered, and the seconds it took; in order. Without the cheap ones.
    answers: Vec<(f64, f64)>,
    /// When.
    refused: Vec<f64>,
}

impl Seen {
    /// Of what was asked after the quiet seconds.
    fn latency(&self, quantile: f64) -> f64 {
        self.latency_since(5.0, quantile)
    }

    /// Of what was asked since then.
    fn latency_since(&self, since: f64, quantile: f64) -> f64 {
        self.latency_between(since, f64::INFINITY, quantile)
    }

    /// Of what was asked from then until then.
    fn latency_between(&self, since: f64, until: f64, quantile: f64) -> f64 {
        let late = self.answers.iter().filter(|(at, took)| (since..until).contains(&(at - took)));
        let mut took: Vec<f64> = late.map(|(_, took)| *took).collect();
        took.sort_by(f64::total_cmp);
        took[((took.len() - 1) as f64 * quantile) as usize]
    }

    /// Answers per second that took no longer than `most`, from the moment `since` on.
    fn goodput(&self, most: f64, since: f64, until: f64) -> f64 {
        let good = |(at, took): &&(f64, f64)| (since..until).contains(at) && *took <= most;
        self.answers.iter().filter(good).count() as f64 / (until - since)
    }
}

/// In nanoseconds, so that the heap has an order.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Served(usize),
    /// One that needs no slot.
    Cheap(usize),
    Arrival,
}

fn run(scene: Scene, settings: Concurrency) -> Seen {
    let start = Instant::now();
    let limiter = Limiter::new(80, settings, start);
    let random = Random::seeded(scene.seed);
    let uniform = || ((random.next() >> 11) as f64 / (1_u64 << 53) as f64).max(1e-12);
    let mut seen = Seen::default();
    let mut events = BinaryHeap::from([Reverse((0_u64, Event::Arrival))]);
    let mut requests: Vec<(f64, Option<Permit<'_>>)> = Vec::new();
    let mut queue = VecDeque::new();
    let mut busy = 0;
    while let Some(Reverse((at, event))) = events.pop() {
        let (now, instant) = (at as f64 / 1e9, start + Duration::from_nanos(at));
        match event {
            Event::Arrival => {
                if now < scene.seconds {
                    let gap = -uniform().ln() / (scene.load)(now);
                    events.push(Reverse((at + (gap * 1e9) as u64, Event::Arrival)));
                    match limiter.enter(instant) {
                        Ok(permit) => {
                            if scene.cheap > 0.0 && uniform() < scene.cheap {
                                events.push(Reverse((at + 1_000_000, Event::Cheap(requests.len()))));
                            } else {
                                queue.push_back(requests.len());
                            }
                            requests.push((now, permit));
                        }
                        Err(Crowded) => seen.refused.push(now),
                    }
                }
            }
            Event::Cheap(which) => {
                if let Some(permit) = requests[which].1.take() {
                    permit.answered(Some(Sample::Answered), instant);
                }
            }
            Event::Served(which) => {
                busy -= 1;
                let (began, permit) = &mut requests[which];
                seen.answers.push((now, now - *began));
                if let Some(permit) = permit.take() {
                    permit.answered(Some(Sample::Answered), instant);
                }
            }
        }
        while busy < (scene.slots)(now)
            && let Some(next) = queue.pop_front()
        {
            busy += 1;
            let stretch = 1.0 - scene.spread + scene.spread * -uniform().ln();
            let served = at + ((scene.service)(now) * stretch * 1e9) as u64;
            events.push(Reverse((served, Event::Served(next))));
        }
    }
    seen
}

/// A server of 32 slots would hide behind the default for `min`.
fn adaptive() -> Concurrency {
    Concurrency::Adaptive { min: 20, max: limits::CONCURRENCY_MAX }
}

/// 32 at a time, 20 ms each: capacity 1,600/s. After five quiet seconds it is asked for three times as much.
const SERVER: Scene = Scene {
    slots: |_| 32,
    service: |_| 0.020,
    spread: 0.3,
    load: |at| if at < 5.0 { 160.0 } else { 4800.0 },
    cheap: 0.0,
    seconds: 35.0,
    seed: 7,
};
const CAPACITY: f64 = 1600.0;
/// 100 ms each, as many as there are.
const PATIENT: Scene = Scene { slots: |_| usize::MAX, service: |_| 0.100, ..SERVER };

#[test]
fn three_times_the_capacity_for_half_a_minute() {
    for (name, spread) in [("even", 0.0), ("uneven", 0.3), ("exponential", 1.0)] {
        let usual = run(Scene { load: |_| 160.0, spread, ..SERVER }, Concurrency::Off).latency(0.99);
        let seen = run(Scene { spread, ..SERVER }, adaptive());
        let goodput = seen.goodput(f64::INFINITY, 5.0, 35.0);
        println!(
            "{name}: goodput {:.3} C, p50 {:.1} ms, p99 {:.1} ms, unloaded p99 {:.1} ms",
            goodput / CAPACITY,
            seen.latency(0.5) * 1e3,
            seen.latency(0.99) * 1e3,
            usual * 1e3
        );
        assert!(goodput >= 0.9 * CAPACITY, "{name}: {goodput}");
        assert!(seen.latency(0.99) <= 2.0 * usual, "{name}: {} of {usual}", seen.latency(0.99));
    }
    // From the first moment on: what is usual it never saw.
    let cold = run(Scene { load: |_| 4800.0, ..SERVER }, adaptive());
    let goodput = cold.goodput(f64::INFINITY, 0.0, 35.0);
    println!("cold: goodput {:.3} C, p99 {:.1} ms", goodput / CAPACITY, cold.latency(0.99) * 1e3);
    assert!(goodput >= 0.9 * CAPACITY && cold.latency(0.99) <= 0.1);
    // Without a limit everything is answered too late: who waits a second sees nothing of the capacity.
    let none = run(SERVER, Concurrency::Off);
    println!("none: p50 {:.1} s", none.latency(0.5));
    assert!(none.latency(0.5) > 5.0, "{}", none.latency(0.5));
    assert!(none.goodput(1.0, 10.0, 35.0) < 0.01 * CAPACITY);
}

/// Where all requests take the same time, answers come together, and a few of them tell little of how many there are per
/// second: whenever the overload begins, what is let in from the first refusal on is answered in time.
#[test]
fn answers_that_come_together_are_not_taken_for_throughput() {
    let load = |at| if at < 5.0 { 60.0 } else { 600.0 };
    let scene = Scene { slots: |_| 30, service: |_| 0.150, spread: 0.0, load, ..SERVER };
    let usual = run(Scene { load: |_| 60.0, ..scene }, Concurrency::Off).latency(0.99);
    for seed in 1..=30 {
        let seen = run(Scene { seed, ..scene }, Concurrency::Adaptive { min: 10, max: limits::CONCURRENCY_MAX });
        let (goodput, found) = (seen.goodput(f64::INFINITY, 5.0, 35.0), seen.refused[0]);
        let p99 = seen.latency_since(found, 0.99);
        println!(
            "{seed}: {:.3} C, p99 {p99:.3} s, usual {usual:.3}, found after {:.3} s",
            goodput / 200.0,
            found - 5.0
        );
        assert!(goodput >= 0.9 * 200.0 && p99 <= 2.0 * usual, "{seed}: {goodput}, {p99} of {usual}");
        assert!(found - 5.0 <= 6.0 * 0.150, "{seed}: {found}");
    }
}

#[test]
fn overloads_of_all_sizes() {
    type Load = fn(f64) -> f64;
    let loads: [(&str, Load); 4] = [
        ("1.2", |at| if at < 5.0 { 800.0 } else { 1920.0 }),
        ("1.5", |at| if at < 5.0 { 800.0 } else { 2400.0 }),
        ("10", |at| if at < 5.0 { 800.0 } else { 16_000.0 }),
        ("a ramp", |at| 400.0 + at * 160.0),
    ];
    for (name, load) in loads {
        let seen = run(Scene { load, ..SERVER }, adaptive());
        let goodput = seen.goodput(f64::INFINITY, 15.0, 35.0);
        println!("{name}: goodput {:.3} C, p99 {:.1} ms", goodput / CAPACITY, seen.latency(0.99) * 1e3);
        assert!(goodput >= 0.9 * CAPACITY, "{name}: {goodput}");
        assert!(seen.latency(0.95) <= 0.060, "{name}: {}", seen.latency(0.95));
    }
}

#[test]
fn what_is_within_capacity_is_never_refused() {
    let steps: [(&str, Scene); 7] = [
        ("busy", Scene { load: |_| 0.85 * CAPACITY, spread: 1.0, ..SERVER }),
        ("bursts", Scene { load: |at| if at % 2.0 < 0.5 { 1400.0 } else { 10.0 }, ..SERVER }),
        ("a step by a hundred", Scene { load: |at| if at < 10.0 { 14.0 } else { 1400.0 }, ..SERVER }),
        // Whatever it is asked, this one does it in 20 ms.
        ("no limit of its own", Scene { slots: |_| usize::MAX, load: |at| 10.0 + at * 500.0, ..SERVER }),
        // A cache, and long work behind it.
        ("mostly cheap", Scene { load: |at| if at < 10.0 { 300.0 } else { 6000.0 }, cheap: 0.9, ..PATIENT }),
        ("half of it cheap", Scene { load: |at| if at < 10.0 { 60.0 } else { 1200.0 }, cheap: 0.5, ..PATIENT }),
        // One at a time, and hardly ever more than min in its queue.
        ("one at a time", Scene { slots: |_| 1, load: |_| 30.0, ..SERVER }),
    ];
    for (name, scene) in steps {
        let seen = run(scene, adaptive());
        assert_eq!(seen.refused.len(), 0, "{name}, of {}", seen.answers.len());
    }
}

/// A dependency becomes a hundred times as slow: it is not this application that is overloaded, and it may have as many
/// requests at a time as that takes.
#[test]
fn what_only_takes_longer_is_let_in_again() {
    let service = |at: f64| if at < 10.0 { 0.010 } else { 1.0 };
    let seen = run(Scene { slots: |_| usize::MAX, service, load: |_| 1000.0, ..SERVER }, adaptive());
    let late = seen.refused.iter().filter(|at| **at > 15.0).count();
    println!("{} refused of 30000, {late} after the first five seconds", seen.refused.len());
    assert!(seen.refused.len() < 3000, "{}", seen.refused.len());
    assert!(late < 200, "{late}");
}

/// The application becomes three times as slow for good while it is overloaded: its capacity is used all the same.
#[test]
fn a_slower_application_is_kept_busy() {
    let service = |at: f64| if at < 10.0 { 0.020 } else { 0.060 };
    let seen = run(Scene { service, seconds: 60.0, ..SERVER }, adaptive());
    let goodput = seen.goodput(f64::INFINITY, 20.0, 60.0);
    println!("goodput {:.3} C/3, p99 {:.1} ms", goodput / CAPACITY * 3.0, seen.latency(0.99) * 1e3);
    assert!(goodput >= 0.8 * CAPACITY / 3.0, "{goodput}");
}

/// An overload that goes on for ten minutes does not become usual.
#[test]
fn a_lasting_overload_does_not_become_usual() {
    let seen = run(Scene { slots: |_| 16, load: |_| 1600.0, seconds: 600.0, ..SERVER }, adaptive());
    let last = |at: f64| seen.answers.iter().filter(move |(when, _)| *when > at);
    let mean = last(540.0).map(|(_, took)| took).sum::<f64>() / last(540.0).count() as f64;
    println!("mean in the last minute {:.1} ms", mean * 1e3);
    assert!(mean < 0.040, "{mean}");
}

/// Requests that need none of what the others queue for do not hide the overload, and do not count as its throughput.
#[test]
fn cheap_requests_do_not_hide_an_overload() {
    for cheap in [0.03, 0.1, 0.3] {
        for (name, spread) in [("even", 0.0), ("uneven", 0.3), ("exponential", 1.0)] {
            let usual = run(Scene { load: |_| 160.0, spread, cheap, ..SERVER }, Concurrency::Off).latency(0.99);
            for seed in 1..=5 {
                let seen = run(Scene { spread, cheap, seed, ..SERVER }, adaptive());
                let (goodput, found) =
                    (seen.goodput(f64::INFINITY, 5.0, 35.0), seen.refused.first().map_or(35.0, |at| *at));
                let p99 = seen.latency_since(found, 0.99);
                println!(
                    "{cheap} {name} {seed}: {:.3} C, p99 {p99:.3} (all {:.3}), usual {usual:.3}, found after {:.3}",
                    goodput / CAPACITY,
                    seen.latency(0.99),
                    found - 5.0
                );
                assert!(found - 5.0 <= 0.5, "{cheap} {name} {seed}: {found}");
                assert!(goodput >= 0.9 * CAPACITY && p99 <= 2.0 * usual, "{cheap} {name} {seed}: {goodput}, {p99}");
            }
        }
    }
}

/// Where answers come together, too: a cut between two of them, and a cheap one soon after it, tell nothing.
#[test]
fn cheap_requests_among_answers_that_come_together() {
    let load = |at| if at < 5.0 { 300.0 } else { 3000.0 };
    let scene = Scene { slots: |_| 100, service: |_| 0.100, spread: 0.0, load, ..SERVER };
    let usual = run(Scene { load: |_| 300.0, ..scene }, Concurrency::Off).latency(0.99);
    for cheap in [0.0, 0.03, 0.1, 0.3] {
        for seed in 1..=10 {
            let seen = run(Scene { cheap, seed, ..scene }, adaptive());
            let (goodput, found) =
                (seen.goodput(f64::INFINITY, 5.0, 35.0), seen.refused.first().map_or(35.0, |at| *at));
            let p99 = seen.latency_since(found, 0.99);
            println!("{cheap} {seed}: {:.3} C, p99 {p99:.3}, found after {:.3}", goodput / 1000.0, found - 5.0);
            assert!(goodput >= 0.9 * 1000.0_f64.min(3000.0 * (1.0 - cheap)), "{cheap} {seed}: {goodput}");
            assert!(p99 <= 2.0 * usual && found - 5.0 <= 0.6, "{cheap} {seed}: {p99}, {found}");
        }
    }
}

/// Capacity falls to a tenth for twenty seconds, at half its load and at three times: what there is is used, nobody waits
/// longer than `min` requests make it, and it is over when it is over.
#[test]
fn capacity_that_falls_to_a_tenth_and_comes_back() {
    let slots = |at: f64| if (10.0..30.0).contains(&at) { 3 } else { 32 };
    type Load = fn(f64) -> f64;
    let loads: [(&str, Load); 2] =
        [("half", |_| 0.5 * CAPACITY), ("three times", |at| if at < 5.0 { 160.0 } else { 3.0 * CAPACITY })];
    for (name, load) in loads {
        for seed in 1..=10 {
            let seen = run(Scene { slots, load, seed, seconds: 50.0, ..SERVER }, adaptive());
            let (less, more) = (3.0 / 0.020, load(49.0).min(CAPACITY));
            let small = seen.goodput(f64::INFINITY, 11.0, 30.0);
            let (p50, p95) = (seen.latency_between(13.0, 29.5, 0.5), seen.latency_between(13.0, 29.5, 0.95));
            let back = (seen.goodput(f64::INFINITY, 32.0, 50.0), seen.latency_between(32.0, 50.0, 0.99));
            println!(
                "{name} {seed}: {:.3} of the tenth, p50 {p50:.3}, p95 {p95:.3}; then {:.3}, p99 {:.3}; {} refused",
                small / less,
                back.0 / more,
                back.1,
                seen.refused.len()
            );
            assert!(small >= 0.9 * less && p95 <= 0.3, "{name} {seed}: {small}, {p95}");
            assert!(back.0 >= 0.9 * more && back.1 <= 0.08, "{name} {seed}: {back:?}");
            let late = seen.refused.iter().filter(|at| **at > 32.0).count();
            // A limit of `min` that half the load hits now and then is raised until it does not.
            assert!(name != "half" || late <= 20, "{late} refused after it");
        }
    }
}

/// A dependency takes five seconds where it took 50 ms: a limit set for that is noticed for what it is.
#[test]
fn a_slow_dependency_is_soon_let_be() {
    let service = |at: f64| if at < 10.0 { 0.050 } else { 5.0 };
    let (mut most, mut last) = (0, 0.0_f64);
    for seed in 1..=30 {
        let scene = Scene { slots: |_| usize::MAX, service, load: |_| 100.0, seconds: 60.0, seed, ..SERVER };
        let seen = run(scene, adaptive());
        let times = (seen.refused.first().copied().unwrap_or(0.0), seen.refused.last().copied().unwrap_or(0.0));
        println!("{seed}: {} of 6000 refused, {:.1} to {:.1} s", seen.refused.len(), times.0, times.1);
        (most, last) = (most.max(seen.refused.len()), last.max(times.1 - times.0));
    }
    assert!(most <= 1300 && last <= 15.0, "{most} refused, for {last:.1} s");
}
