use proptest::prelude::*;

use super::*;

fn settings() -> Arc<Settings> {
    Arc::new(Settings {
        consecutive: Some(5),
        percent: Some(50),
        window: Duration::from_secs(10),
        minimum_volume: 20,
        open: Duration::from_secs(5),
        open_max: Duration::from_secs(60),
        probes: 2,
        successes: 3,
    })
}

fn at(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

fn run(breaker: &Arc<Breaker>, settings: &Arc<Settings>, success: bool, now: Instant) -> bool {
    breaker.admit(settings, now).unwrap().report(Some(success), now)
}

fn runs(times: u32, breaker: &Arc<Breaker>, settings: &Arc<Settings>, success: bool, now: Instant) {
    for _ in 0..times {
        run(breaker, settings, success, now);
    }
}

#[test]
fn failures_in_a_row_open_it() {
    let (breaker, settings, now) = (Arc::new(Breaker::default()), settings(), Instant::now());
    for _ in 0..4 {
        assert!(!run(&breaker, &settings, false, now));
    }
    run(&breaker, &settings, true, now);
    for _ in 0..4 {
        assert!(!run(&breaker, &settings, false, now), "a success begins the count anew");
    }
    assert!(!breaker.is_open(now));
    assert!(run(&breaker, &settings, false, now));
    assert!(breaker.is_open(now));
    let wait = breaker.admit(&settings, now).unwrap_err();
    assert!((5.0..=6.3).contains(&wait.as_secs_f64()), "{wait:?}");
    assert_eq!(breaker.state(), "open");
}

#[test]
fn reset_it_has_forgotten_all() {
    let (breaker, settings, now) = (Arc::new(Breaker::default()), settings(), Instant::now());
    runs(4, &breaker, &settings, false, now);
    breaker.reset();
    assert!(!run(&breaker, &settings, false, now), "four failures were forgotten");
}

#[test]
fn a_share_of_failures_opens_it_but_not_of_a_few() {
    let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
    let settings = Arc::new(Settings { consecutive: None, ..Settings::clone(&settings()) });
    for _ in 0..9 {
        run(&breaker, &settings, true, now);
        assert!(!run(&breaker, &settings, false, now));
    }
    run(&breaker, &settings, true, now);
    assert!(run(&breaker, &settings, false, now), "10 of 20");
}

#[test]
fn half_open_it_lets_a_few_through_and_closes_after_enough() {
    let (breaker, settings, start) = (Arc::new(Breaker::default()), settings(), Instant::now());
    runs(5, &breaker, &settings, false, start);
    let later = at(start, 7);
    let (one, two) = (breaker.admit(&settings, later).unwrap(), breaker.admit(&settings, later).unwrap());
    assert_eq!(breaker.admit(&settings, later).unwrap_err(), HALF_OPEN_RETRY);
    assert_eq!(breaker.state(), "half-open");
    assert!(!one.report(Some(true), later));
    drop(two);
    // Its place is free again, and says nothing.
    for left in [2, 1] {
        assert_eq!(breaker.state(), "half-open", "{left} more");
        run(&breaker, &settings, true, later);
    }
    assert_eq!(breaker.state(), "closed");
    assert!(!run(&breaker, &settings, false, later), "the count begins anew");
}

#[test]
fn a_probe_that_fails_opens_it_for_longer_and_time_forgives() {
    let (breaker, settings, start) = (Arc::new(Breaker::default()), settings(), Instant::now());
    runs(5, &breaker, &settings, false, start);
    let mut now = start;
    for expected in [10.0, 20.0, 40.0, 60.0, 60.0] {
        now = at(now, 100);
        assert!(run(&breaker, &settings, false, now), "opened again");
        let wait = breaker.admit(&settings, now).unwrap_err().as_secs_f64();
        assert!((expected..expected * 1.26).contains(&wait), "{wait}");
    }
    now = at(now, 100);
    runs(3, &breaker, &settings, true, now);
    let soon = at(now, 1);
    runs(5, &breaker, &settings, false, soon);
    assert!(breaker.admit(&settings, soon).unwrap_err() >= Duration::from_secs(60), "not yet forgiven");
    now = at(now, 100);
    runs(3, &breaker, &settings, true, now);
    now = at(now, 61);
    runs(5, &breaker, &settings, false, now);
    assert!(breaker.admit(&settings, now).unwrap_err() < Duration::from_secs(7), "forgiven");
}

#[test]
fn probes_that_never_end_do_not_keep_it_half_open_for_ever() {
    let (mut circuit, settings, start) = (Circuit::default(), settings(), Instant::now());
    circuit.trip(&settings, start, 0.0);
    let later = at(start, 5);
    assert_eq!(circuit.admit(&settings, later), Ok(Role::Probe { opened: 1 }));
    assert_eq!(circuit.admit(&settings, later), Ok(Role::Probe { opened: 1 }));
    assert!(circuit.admit(&settings, at(start, 14)).is_err());
    assert_eq!(circuit.admit(&settings, at(start, 15)), Ok(Role::Probe { opened: 1 }));
}

#[test]
fn what_was_under_way_before_it_opened_decides_nothing() {
    let (breaker, settings, now) = (Arc::new(Breaker::default()), settings(), Instant::now());
    let early = breaker.admit(&settings, now).unwrap();
    runs(5, &breaker, &settings, false, now);
    assert!(!early.report(Some(true), now));
    assert!(breaker.is_open(now));
}

#[test]
fn a_probe_of_the_last_time_decides_nothing() {
    let (breaker, settings, now) = (Arc::new(Breaker::default()), settings(), Instant::now());
    runs(5, &breaker, &settings, false, now);
    let half_open = at(now, 7);
    let stale: Vec<_> = (0..2).map(|_| breaker.admit(&settings, half_open).unwrap()).collect();
    let mut stale = stale.into_iter();
    assert!(stale.next().unwrap().report(Some(false), half_open));
    let again = at(now, 30);
    let probe = breaker.admit(&settings, again).unwrap();
    assert!(!stale.next().unwrap().report(Some(false), again), "it was sent before the circuit opened again");
    assert_eq!(breaker.state(), "half-open");
    assert!(!probe.report(Some(true), again));
    runs(2, &breaker, &settings, true, again);
    assert_eq!(breaker.state(), "closed");
}

proptest! {
    /// Whatever happens: no more probes at a time than allowed (but for patience), and it never stays open for longer than
    /// its longest time.
    #[test]
    fn it_always_comes_back_and_never_probes_more_than_it_may(
        steps in prop::collection::vec((0_u64..20_000, 0_u8..4), 1..200),
    ) {
        let (mut circuit, settings, mut now) = (Circuit::default(), settings(), Instant::now());
        let mut probes = Vec::new();
        for (wait, what) in steps {
            now += Duration::from_millis(wait);
            match what {
                0 => {
                    circuit.trip(&settings, now, 0.5);
                }
                1 => {
                    if let Ok(Role::Probe { opened }) = circuit.admit(&settings, now) {
                        probes.push(opened);
                    }
                }
                _ => {
                    if let Some(opened) = probes.pop() {
                        circuit.probed(opened, Some(what == 2), &settings, now, 0.5);
                    }
                }
            }
            if let State::HalfOpen { probes, .. } = circuit.state {
                prop_assert!(probes <= settings.probes);
            }
            let longest = settings.open_max.mul_f64(1.0 + JITTER);
            let mut copy = Circuit { state: circuit.state, openings: circuit.openings, opened: circuit.opened };
            prop_assert!(copy.admit(&settings, now + longest).is_ok());
        }
    }
}
