use std::collections::VecDeque;

use proptest::prelude::*;

use super::{testing::*, *};

/// Sends `requests` one every millisecond, each answered after its endpoint's latency; counts by endpoint.
fn simulate(cost: Cost, latencies: &[Duration], weights: &[u32], requests: usize, seed: u64) -> Vec<usize> {
    let start = Instant::now();
    let random = generator(seed);
    let mut endpoints = Endpoints::weighing(weights, start);
    let sampler = endpoints.sampler();
    let mut ends: Vec<Vec<Instant>> = vec![Vec::new(); latencies.len()];
    let mut counts = vec![0; latencies.len()];
    for step in 0..requests {
        let now = start + Duration::from_millis(step as u64);
        for index in 0..latencies.len() {
            let ended = ends[index].extract_if(.., |ends| *ends <= now).count();
            for _ in 0..ended {
                endpoints.estimates[index].succeeded(latencies[index], now);
            }
            endpoints.in_flight[index] = ends[index].len() as u32;
        }
        let chosen = cheapest_drawn(&endpoints, &sampler, cost, now, &random).unwrap().index;
        counts[chosen] += 1;
        ends[chosen].push(now + latencies[chosen]);
    }
    counts
}

#[test]
fn endpoints_that_are_alike_share_alike() {
    for cost in [Cost::PeakEwma, Cost::InFlight] {
        let counts = simulate(cost, &[Duration::from_millis(20); 5], &[1; 5], 20_000, 7);
        for count in &counts {
            assert!((3_200..=4_800).contains(count), "{cost:?}: {counts:?}");
        }
    }
}

#[test]
fn a_slow_endpoint_gets_little() {
    let mut latencies = [Duration::from_millis(5); 4];
    latencies[2] = Duration::from_millis(500);
    let counts = simulate(Cost::PeakEwma, &latencies, &[1; 4], 20_000, 11);
    assert!(counts[2] < 600, "{counts:?}");
    assert!(counts[2] > 0, "it is still looked at: {counts:?}");
    let counts = simulate(Cost::InFlight, &latencies, &[1; 4], 20_000, 11);
    assert!(counts[2] < 1_500, "{counts:?}");
}

#[test]
fn weight_attracts_load() {
    for cost in [Cost::PeakEwma, Cost::InFlight] {
        let counts = simulate(cost, &[Duration::from_millis(20); 2], &[3, 1], 20_000, 3);
        let share = counts[0] as f64 / 20_000.0;
        assert!((0.65..0.85).contains(&share), "{cost:?}: {counts:?}");
    }
}

#[test]
fn weight_counts_without_load_too() {
    let counts = simulate(Cost::InFlight, &[Duration::from_micros(100); 3], &[2, 1, 1], 20_000, 5);
    let share = counts[0] as f64 / 20_000.0;
    assert!((0.45..0.55).contains(&share), "nobody takes all: {counts:?}");

    // Nor do latencies that are nearly the same.
    let weights = [6, 3, 3, 1, 1, 1, 1];
    let latencies = [130, 90, 100, 110, 80, 90, 120].map(Duration::from_micros);
    for cost in [Cost::PeakEwma, Cost::InFlight] {
        for count in 2..=weights.len() {
            let total: u32 = weights.iter().take(count).sum();
            let counts = simulate(cost, &latencies[..count], &weights[..count], 20_000, 5);
            for (chosen, weight) in counts.iter().zip(weights) {
                let fair = 20_000.0 * f64::from(weight) / f64::from(total);
                assert!((*chosen as f64 - fair).abs() < 0.25 * fair, "{cost:?}: {counts:?} by {weights:?}");
            }
        }
    }
}

/// As many clients of one worker, each of which sends its next request once it is answered, which takes about 10 ms; the
/// part that the first endpoint gets.
fn closed_loop(cost: Cost, weights: &[u32], clients: usize) -> f64 {
    let (start, draw) = (Instant::now(), generator(13));
    let mut endpoints = Endpoints::weighing(weights, start);
    let sampler = endpoints.sampler();
    let mut under_way: Vec<(Instant, usize)> = Vec::new();
    let (mut now, mut first) = (start, 0);
    for _ in 0..20_000 {
        while under_way.len() < clients {
            let index = cheapest_drawn(&endpoints, &sampler, cost, now, &draw).unwrap().index;
            let took = Duration::from_micros(8_000 + draw() % 4_000);
            endpoints.in_flight[index] += 1;
            under_way.push((now + took, index));
            first += u32::from(index == 0);
        }
        let (next, _) = under_way.iter().enumerate().min_by_key(|(_, (ends, _))| *ends).unwrap();
        let (ends, index) = under_way.swap_remove(next);
        now = ends;
        endpoints.in_flight[index] -= 1;
        endpoints.estimates[index].succeeded(Duration::from_millis(10), now);
    }
    f64::from(first) / 20_000.0
}

#[test]
fn weights_count_however_few_requests_are_under_way() {
    for cost in [Cost::PeakEwma, Cost::InFlight] {
        for weights in [&[1_u32, 9][..], &[3, 1], &[1, 1, 8], &[1, 2, 3, 4, 5, 6], &[20, 1, 1, 1, 1, 1, 1, 1, 1, 1]] {
            let fair = f64::from(weights[0]) / f64::from(weights.iter().sum::<u32>());
            for clients in [1, 2, 4, 8, 32] {
                let share = closed_loop(cost, weights, clients);
                let range = fair * 0.75..fair * 1.25;
                assert!(range.contains(&share), "{cost:?}, {weights:?}, {clients} clients: {share} for {fair}");
            }
        }
    }
}

#[test]
fn a_cold_first_answer_does_not_end_a_slow_start() {
    let (now, draw) = (Instant::now(), generator(17));
    let mut endpoints = Endpoints::ready(4, now);
    endpoints.estimates.iter_mut().for_each(|estimate| estimate.succeeded(Duration::from_millis(5), now));
    endpoints.estimates[0] = Estimate::new(Duration::from_millis(5), now);
    (0..2).for_each(|_| endpoints.estimates[0].succeeded(Duration::from_millis(500), now));
    endpoints.warmth[0] = 0.5;
    let sampler = endpoints.sampler();
    let chosen = (0..4000).filter(|_| {
        let choice = cheapest_drawn(&endpoints, &sampler, Cost::PeakEwma, now, &draw);
        choice.unwrap().index == 0
    });
    let chosen = chosen.count();
    assert!((400..700).contains(&chosen), "{chosen} of 4000, for a share of 500");
}

/// Ways to choose that go by warmth.
#[derive(Debug, Clone, Copy)]
enum Way {
    Cheapest(Cost),
    Random,
    Turns,
    Prequal,
}

/// Sends requests to as many endpoints that take `took`, so fast that each has `busy` in flight in the mean; the first one's slow
/// start has come as far as `warmth`. Its share of what is fair.
fn share_in_slow_start(way: Way, count: usize, warmth: f64, busy: f64, seed: u64) -> f64 {
    let requests = 3000 * count as u32;
    let took = Duration::from_millis(20);
    let gap = took.div_f64(busy * count as f64);
    let (start, random) = (Instant::now(), generator(seed));
    let mut endpoints = Endpoints::ready(count, start);
    endpoints.warmth[0] = warmth;
    let (sampler, mut turns) = (endpoints.sampler(), RoundRobin::new(count, seed));
    let (mut pool, settings) = (prequal::Pool::default(), prequal::Settings::default());
    let mut under_way = VecDeque::new();
    let mut chosen = 0_u32;
    for step in 0..requests {
        let now = start + gap * step;
        while let Some((_, index, took)) =
            under_way.pop_front_if(|(ends, ..): &mut (Instant, usize, Duration)| *ends <= now)
        {
            endpoints.in_flight[index] -= 1;
            endpoints.estimates[index].succeeded(took, now);
        }
        let choice = match way {
            Way::Cheapest(cost) => cheapest_drawn(&endpoints, &sampler, cost, now, &random),
            Way::Random => self::random(&endpoints, &sampler, &random),
            Way::Turns => turns.choose(&endpoints, false),
            Way::Prequal => {
                for _ in 0..3 {
                    let index = sampler.draw(random());
                    let in_flight = endpoints.in_flight[index];
                    pool.take(index, prequal::Report { in_flight, latency: took, at: now });
                }
                starting(&endpoints, sampler.draw(random()), now, &random).or_else(|| {
                    let usable = |index: usize| endpoints.warmth[index] >= 1.0;
                    pool.choose(&settings, count - 1, now, usable, |_| 0.0).map(Choice::of)
                })
            }
        };
        let Some(Choice { index, .. }) =
            choice.or_else(|| cheapest_drawn(&endpoints, &sampler, Cost::PeakEwma, now, &random))
        else {
            unreachable!("all are ready");
        };
        endpoints.in_flight[index] += 1;
        under_way.push_back((now + took, index, took));
        chosen += u32::from(index == 0);
    }
    f64::from(chosen) * count as f64 / f64::from(requests)
}

#[test]
fn warmth_grows_from_its_floor() {
    assert_eq!(warmth(Duration::ZERO, Duration::from_secs(10)), SLOW_START_FLOOR);
    assert!((warmth(Duration::from_secs(5), Duration::from_secs(10)) - 0.5).abs() < 1e-9);
    assert_eq!(warmth(Duration::from_secs(11), Duration::from_secs(10)), 1.0);
}

#[test]
fn a_probe_is_admitted_once_and_then_its_endpoint_is_left_alone() {
    let (now, draw) = (Instant::now(), generator(5));
    let mut turns = RoundRobin::new(3, 0);
    for algorithm in 0..4 {
        let endpoints = Endpoints::of(&[Standing::Ready, Standing::ProbeDue, Standing::Ready], now);
        endpoints.probes.set(1);
        let sampler = endpoints.sampler();
        let chosen = (0..200).filter_map(|_| match algorithm {
            0 => cheapest_drawn(&endpoints, &sampler, Cost::PeakEwma, now, &draw),
            1 => random(&endpoints, &sampler, &draw),
            2 => turns.choose(&endpoints, true),
            _ => turns.choose(&endpoints, false),
        });
        let chosen: Vec<_> = chosen.collect();
        assert_eq!(chosen.len(), 200);
        let probes: Vec<_> = chosen.iter().filter(|choice| choice.index == 1).collect();
        assert_eq!(probes, [&Choice::probe(1)], "algorithm {algorithm}");
    }
}

#[test]
fn the_best_of_what_is_left_is_taken() {
    let (now, draw) = (Instant::now(), generator(9));
    let choice = |standings: &[Standing]| {
        let endpoints = Endpoints::of(standings, now);
        let choice = cheapest_drawn(&endpoints, &endpoints.sampler(), Cost::PeakEwma, now, &draw);
        choice.map(|choice| standings[choice.index])
    };
    use Standing::*;
    assert_eq!(choice(&[]), None);
    assert_eq!(choice(&[Draining]), Some(Draining), "the last resort");
    assert_eq!(choice(&[Draining, Ejected, Draining]), Some(Ejected));
    assert_eq!(choice(&[Draining, Ejected, Tried]), Some(Tried));
    assert_eq!(choice(&[Resting, Ejected, Tried]), Some(Resting));
    assert_eq!(choice(&[Tried, Ejected, Tried, Ready, Draining]), Some(Ready));
    assert_eq!(choice(&[Draining, Draining, Draining]), Some(Draining));
}

pub(super) fn any_standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        3 => Just(Standing::Ready),
        1 => Just(Standing::Resting),
        1 => Just(Standing::Tried),
        1 => Just(Standing::Ejected),
        1 => Just(Standing::Draining),
        1 => Just(Standing::ProbeDue),
    ]
}

/// Every algorithm's choice among the same endpoints.
fn choices(endpoints: &Endpoints, now: Instant, seed: u64) -> Vec<(&'static str, Option<Choice>)> {
    let draw = generator(seed);
    let sampler = endpoints.sampler();
    let count = endpoints.count();
    let names: Vec<String> = (0..count).map(|index| format!("10.0.0.{index}:80")).collect();
    let table = maglev::Table::new(
        names.iter().enumerate().map(|(index, name)| (index, name.as_str(), endpoints.weights[index])),
    );
    let near = |index: usize| (seed >> (index % 60) & 1 == 0, endpoints.weights[index]);
    let zones = zone::Zones::new((0..count).map(near));
    let in_zone = zones.and_then(|zones| zones.choose(endpoints, Cost::PeakEwma, now, &draw));
    let by_key = table.and_then(|table| maglev::choose(endpoints, &table, 125, seed));
    vec![
        ("peak-EWMA", cheapest_drawn(endpoints, &sampler, Cost::PeakEwma, now, &draw)),
        ("least request", cheapest_drawn(endpoints, &sampler, Cost::InFlight, now, &draw)),
        ("random", random(endpoints, &sampler, &draw)),
        ("turns", RoundRobin::new(count, seed).choose(endpoints, true)),
        ("turns by weight", RoundRobin::new(count, seed).choose(endpoints, false)),
        ("key", by_key),
        ("zone", in_zone.or_else(|| cheapest_drawn(endpoints, &sampler, Cost::PeakEwma, now, &draw))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever is under way, and whoever chooses.
    #[test]
    fn an_endpoint_in_slow_start_gets_about_its_part_of_a_fair_share(
        count in 2_usize..12, warmth in 0.1..0.9_f64, busy in prop_oneof![0.01..0.1_f64, 0.1..8.0_f64], seed: u64,
    ) {
        let ways =
            [Way::Cheapest(Cost::PeakEwma), Way::Cheapest(Cost::InFlight), Way::Random, Way::Turns, Way::Prequal];
        for way in ways {
            let share = share_in_slow_start(way, count, warmth, busy, seed);
            // Of all that are warm it would be a bit more: of two, nearly twice as much.
            let most = warmth * count as f64 / (count as f64 - 1.0 + warmth);
            prop_assert!(share > 0.65 * warmth && share < 1.3 * most, "{way:?}: {share} of {most}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_algorithm_takes_worse_while_something_is_ready(
        endpoints in proptest::collection::vec((any_standing(), 1_u32..20, 0_u32..30), 0..24),
        seed: u64,
        probes in 0_usize..3,
    ) {
        let now = Instant::now();
        let standings: Vec<_> = endpoints.iter().map(|(standing, ..)| *standing).collect();
        let mut view = Endpoints::of(&standings, now);
        view.weights = endpoints.iter().map(|(_, weight, _)| *weight).collect();
        view.in_flight = endpoints.iter().map(|(.., in_flight)| *in_flight).collect();
        for (name, choice) in {
            view.probes.set(probes);
            choices(&view, now, seed)
        } {
            let Some(Choice { index, probe, .. }) = choice else {
                prop_assert!(standings.is_empty(), "{name} chooses nothing of {standings:?}");
                continue;
            };
            let taken = standings[index];
            prop_assert_eq!(taken == Standing::ProbeDue && probe, probe, "{}", name);
            if standings.contains(&Standing::Ready) {
                // By key, an endpoint that rests is as good.
                let fine = taken == Standing::Ready || probe || (name == "key" && taken == Standing::Resting);
                prop_assert!(fine, "{name}: {taken:?} of {standings:?}");
            }
            if taken == Standing::Draining {
                prop_assert!(standings.iter().all(|standing| *standing == Standing::Draining), "{name}");
            }
        }
    }

    #[test]
    fn every_ready_endpoint_is_found(count in 1_usize..60, seed: u64) {
        let (now, draw) = (Instant::now(), generator(seed));
        let endpoints = Endpoints::ready(count, now);
        let sampler = endpoints.sampler();
        let mut seen = vec![false; count];
        for _ in 0..count * 200 {
            seen[cheapest_drawn(&endpoints, &sampler, Cost::PeakEwma, now, &draw).unwrap().index] = true;
        }
        prop_assert!(seen.iter().all(|seen| *seen));
    }

    #[test]
    fn turns_are_fair_to_within_one(
        weights in proptest::collection::vec(1_u32..50, 1..30), seed: u64, requests in 1_usize..2000,
    ) {
        let endpoints = Endpoints::weighing(&weights, Instant::now());
        let total = f64::from(weights.iter().sum::<u32>());
        let mut turns = RoundRobin::new(weights.len(), seed);
        let mut counts = vec![0.0; weights.len()];
        for done in 1..=requests {
            counts[turns.choose(&endpoints, false).unwrap().index] += 1.0;
            for (count, weight) in counts.iter().zip(&weights) {
                let share: f64 = done as f64 * f64::from(*weight) / total;
                prop_assert!((count - share).abs() <= 1.0 + 1e-6, "{count} for {share} after {done} of {weights:?}");
            }
        }
    }

    #[test]
    fn turns_without_weights_are_fair_whoever_is_missing(
        standings in proptest::collection::vec(any_standing(), 1..30), seed: u64,
    ) {
        let endpoints = Endpoints::of(&standings, Instant::now());
        let mut turns = RoundRobin::new(standings.len(), seed);
        let best = best_standing(&endpoints).unwrap();
        let members: Vec<usize> = of_standing(&endpoints, best).collect();
        let mut counts = vec![0; standings.len()];
        for _ in 0..members.len() * 7 {
            counts[turns.choose(&endpoints, true).unwrap().index] += 1;
        }
        prop_assert!(members.iter().all(|index| counts[*index] == 7), "{counts:?} of {standings:?}");
    }
}
