use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::worker::Random;

fn generator(seed: u64) -> impl Fn() -> u64 {
    let random = Random::seeded(seed);
    move || random.next()
}

/// Sends `requests` one every millisecond, each answered after its endpoint's latency; counts by endpoint.
fn simulate(latencies: &[Duration], weights: &[u32], requests: usize, seed: u64) -> Vec<usize> {
    let start = Instant::now();
    let random = generator(seed);
    let mut estimates = vec![Estimate::new(DEFAULT_LATENCY, start); latencies.len()];
    let mut in_flight: Vec<Vec<Instant>> = vec![Vec::new(); latencies.len()];
    let mut counts = vec![0; latencies.len()];
    for step in 0..requests {
        let now = start + Duration::from_millis(step as u64);
        for index in 0..latencies.len() {
            let ended = in_flight[index].extract_if(.., |ends| *ends <= now).count();
            for _ in 0..ended {
                estimates[index].succeeded(latencies[index], now);
            }
        }
        let chosen = choose(
            latencies.len(),
            |_| Standing::Ready,
            |index| cost(&estimates[index], in_flight[index].len() as u32, weights[index], now),
            |_| false,
            &random,
        )
        .unwrap();
        counts[chosen] += 1;
        in_flight[chosen].push(now + latencies[chosen]);
    }
    counts
}

#[test]
fn endpoints_that_are_alike_share_alike() {
    let counts = simulate(&[Duration::from_millis(20); 5], &[1; 5], 20_000, 7);
    for count in &counts {
        assert!((3_200..=4_800).contains(count), "{counts:?}");
    }
}

#[test]
fn a_slow_endpoint_gets_little() {
    let mut latencies = [Duration::from_millis(5); 4];
    latencies[2] = Duration::from_millis(500);
    let counts = simulate(&latencies, &[1; 4], 20_000, 11);
    assert!(counts[2] < 600, "{counts:?}");
    assert!(counts[2] > 0, "it is still looked at: {counts:?}");
}

#[test]
fn weight_attracts_load() {
    let counts = simulate(&[Duration::from_millis(20); 2], &[3, 1], 20_000, 3);
    let share = counts[0] as f64 / 20_000.0;
    assert!((0.65..0.85).contains(&share), "{counts:?}");
}

#[test]
fn an_estimate_jumps_to_peaks_and_decays_from_them() {
    let start = Instant::now();
    let mut estimate = Estimate::new(DEFAULT_LATENCY, start);
    estimate.succeeded(Duration::from_millis(1), start);
    assert!((estimate.seconds(start) - 0.001).abs() < 1e-9, "the first observation replaces the assumption");
    estimate.succeeded(Duration::from_secs(1), start);
    assert!((estimate.seconds(start) - 1.0).abs() < 1e-9);
    let later = start + DECAY;
    assert!((estimate.seconds(later) - (-1.0_f64).exp()).abs() < 1e-9);
    estimate.succeeded(Duration::from_millis(1), later);
    assert!((estimate.seconds(later) - ((-1.0_f64).exp() + 0.001 * (1.0 - (-1.0_f64).exp()))).abs() < 1e-9);
}

#[test]
fn a_failure_is_a_penalty_that_time_and_success_take_away() {
    let start = Instant::now();
    let mut estimate = Estimate::new(DEFAULT_LATENCY, start);
    estimate.succeeded(Duration::from_millis(1), start);
    estimate.failed(Duration::from_micros(200), start);
    assert!((estimate.seconds(start) - 1.0).abs() < 1e-9, "failing fast is not being fast");
    assert!((estimate.latency(start) - 0.001).abs() < 1e-9, "nor is it a measurement");
    assert!(estimate.seconds(start + Duration::from_secs(14)) < 0.001);
    estimate.succeeded(Duration::from_millis(1), start);
    assert!((estimate.seconds(start) - 0.5).abs() < 1e-9);
    estimate.failed(Duration::from_secs(60), start);
    assert!((estimate.seconds(start) - MOST_PENALTY.as_secs_f64()).abs() < 1e-9);
    estimate.pardon();
    assert!(estimate.seconds(start) < 0.0011);
}

#[test]
fn time_that_runs_backwards_changes_nothing() {
    let start = Instant::now() + Duration::from_secs(5);
    let mut estimate = Estimate::new(DEFAULT_LATENCY, start);
    estimate.succeeded(Duration::from_millis(8), start);
    estimate.succeeded(Duration::from_millis(2), start - Duration::from_secs(3));
    assert!((estimate.seconds(start) - 0.008).abs() < 1e-9);
}

#[test]
fn a_probe_is_admitted_once_and_then_its_endpoint_is_left_alone() {
    let random = generator(5);
    let admitted = Cell::new(0);
    let standing = |index| if index == 1 { Standing::ProbeDue } else { Standing::Ready };
    let admit = |_| admitted.replace(admitted.get() + 1) == 0;
    let chosen: Vec<_> = (0..200).filter_map(|_| choose(3, standing, |_| 1.0, admit, &random)).collect();
    assert_eq!(chosen.len(), 200);
    assert_eq!(chosen.iter().filter(|index| **index == 1).count(), 1);
}

#[test]
fn the_best_of_what_is_left_is_taken() {
    let random = generator(9);
    let choice = |standings: &[Standing]| {
        choose(standings.len(), |index| standings[index], |_| 1.0, |_| false, &random).map(|index| standings[index])
    };
    use Standing::*;
    assert_eq!(choice(&[]), None);
    assert_eq!(choice(&[Draining]), Some(Draining), "the last resort");
    assert_eq!(choice(&[Draining, Ejected, Draining]), Some(Ejected));
    assert_eq!(choice(&[Draining, Ejected, Tried]), Some(Tried));
    assert_eq!(choice(&[Tried, Ejected, Tried, Ready, Draining]), Some(Ready));
    assert_eq!(choice(&[Draining, Draining, Draining]), Some(Draining));
}

fn any_standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        Just(Standing::Ready),
        Just(Standing::Tried),
        Just(Standing::Ejected),
        Just(Standing::Draining),
        Just(Standing::ProbeDue)
    ]
}

proptest! {
    #[test]
    fn nothing_worse_is_taken_while_something_is_ready(
        standings in proptest::collection::vec(any_standing(), 0..40),
        seed: u64,
    ) {
        let random = generator(seed);
        let chosen = choose(standings.len(), |index| standings[index], |index| index as f64, |_| true, &random);
        let Some(index) = chosen else {
            prop_assert!(standings.is_empty());
            return Ok(());
        };
        let taken = standings[index];
        if standings.contains(&Standing::Ready) {
            prop_assert!(matches!(taken, Standing::Ready | Standing::ProbeDue), "{taken:?} of {standings:?}");
        }
        if taken == Standing::Draining {
            prop_assert!(standings.iter().all(|standing| *standing == Standing::Draining));
        }
    }

    #[test]
    fn draws_are_distinct_and_in_range(count in 2_usize..2000, random: u64) {
        let (a, b) = two_of(count, random);
        prop_assert!(a < count && b < count && a != b);
    }

    #[test]
    fn every_ready_endpoint_is_found(count in 1_usize..60, seed: u64) {
        let random = generator(seed);
        let mut seen = vec![false; count];
        for _ in 0..count * 200 {
            seen[choose(count, |_| Standing::Ready, |_| 1.0, |_| false, &random).unwrap()] = true;
        }
        prop_assert!(seen.iter().all(|seen| *seen));
    }
}
