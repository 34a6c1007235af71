use proptest::prelude::*;

use super::*;

/// First and longest ejection, and failures that lead to it.
const BASE_EJECTION: Duration = Duration::from_secs(5);
const MAX_EJECTION: Duration = Duration::from_secs(300);
const CONSECUTIVE_FAILURES: u32 = 5;

fn settings() -> OutlierDetection {
    OutlierDetection::default()
}

/// By the defaults, without jitter.
fn record(outlier: &mut Outlier, success: bool, role: Role, now: Instant, may_eject: bool) -> bool {
    outlier.record(success, role, false, At { now, settings: &settings(), jitter: 0.0 }, || may_eject)
}

fn admit(outlier: &mut Outlier, now: Instant) -> bool {
    outlier.admit_probe(now, &settings())
}

fn probe_at(outlier: &Outlier) -> Option<Instant> {
    match outlier.probe_at() {
        Some(ProbeAt::Then(at)) => Some(at),
        Some(ProbeAt::Now) => panic!("now"),
        None => None,
    }
}

fn fail(outlier: &mut Outlier, times: u32, now: Instant) -> bool {
    (0..times).any(|_| record(outlier, false, Role::Ordinary, now, true))
}

fn eject(outlier: &mut Outlier, now: Instant) -> Instant {
    assert!(fail(outlier, CONSECUTIVE_FAILURES, now));
    probe_at(outlier).unwrap()
}

#[test]
fn only_failures_in_a_row_eject() {
    let now = Instant::now();
    let mut outlier = Outlier::default();
    assert!(!fail(&mut outlier, CONSECUTIVE_FAILURES - 1, now));
    record(&mut outlier, true, Role::Ordinary, now, true);
    assert!(!fail(&mut outlier, CONSECUTIVE_FAILURES - 1, now));
    assert!(fail(&mut outlier, 1, now));
}

#[test]
fn one_probe_at_a_time_decides() {
    let now = Instant::now();
    let mut outlier = Outlier::default();
    let due = eject(&mut outlier, now);
    assert_eq!(due, now + BASE_EJECTION);
    assert!(!admit(&mut outlier, due - Duration::from_millis(1)));
    assert!(admit(&mut outlier, due));
    assert!(!admit(&mut outlier, due), "one is under way");
    assert!(admit(&mut outlier, due + PROBE_PATIENCE), "it was lost");
    assert!(!record(&mut outlier, true, Role::Probe, due + PROBE_PATIENCE, true));
    assert_eq!(probe_at(&outlier), None);
}

#[test]
fn a_failed_probe_ejects_for_longer() {
    let now = Instant::now();
    let mut outlier = Outlier::default();
    let mut due = eject(&mut outlier, now);
    for times in 2..100 {
        assert!(admit(&mut outlier, due));
        assert!(record(&mut outlier, false, Role::Probe, due, false), "a failed probe ejects whatever the others do");
        let next = probe_at(&outlier).unwrap();
        assert_eq!(next - due, (BASE_EJECTION * times).min(MAX_EJECTION));
        due = next;
    }
}

#[test]
fn results_from_before_the_ejection_do_not_count() {
    let now = Instant::now();
    let mut outlier = Outlier::default();
    let due = eject(&mut outlier, now);
    assert!(!record(&mut outlier, true, Role::Ordinary, now, true));
    assert!(!record(&mut outlier, false, Role::Ordinary, now, true));
    assert_eq!(probe_at(&outlier), Some(due));
}

#[test]
fn requests_sent_there_for_want_of_others_bring_it_back_but_do_not_eject_again() {
    let now = Instant::now();
    let mut outlier = Outlier::default();
    let due = eject(&mut outlier, now);
    for _ in 0..100 {
        assert!(!record(&mut outlier, false, Role::LastResort, now, true));
    }
    assert_eq!(probe_at(&outlier), Some(due), "no longer than it was");
    assert!(admit(&mut outlier, due));
    assert!(!record(&mut outlier, false, Role::LastResort, due, true), "the probe decides");
    assert!(record(&mut outlier, false, Role::Probe, due, true));
    assert_eq!(probe_at(&outlier), Some(due + BASE_EJECTION * 2), "the second, not the hundredth");
    assert!(!record(&mut outlier, true, Role::LastResort, due, true));
    assert_eq!(probe_at(&outlier), None);
}

#[test]
fn a_probe_that_was_given_up_does_not_eject_again() {
    let mut outlier = Outlier::default();
    let due = eject(&mut outlier, Instant::now());
    assert!(admit(&mut outlier, due));
    let late = due + PROBE_PATIENCE;
    assert!(admit(&mut outlier, late));
    assert!(record(&mut outlier, false, Role::Probe, late, true));
    let next = probe_at(&outlier);
    assert!(!record(&mut outlier, false, Role::Probe, late, true), "the first one's result, late");
    assert_eq!(probe_at(&outlier), next);
}

#[test]
fn time_in_service_forgives() {
    let mut now = Instant::now();
    let mut outlier = Outlier::default();
    for _ in 0..3 {
        now = eject(&mut outlier, now);
        assert!(admit(&mut outlier, now));
        record(&mut outlier, true, Role::Probe, now, true);
    }
    let again = eject(&mut outlier, now);
    assert_eq!(again - now, BASE_EJECTION * 4);
    assert!(admit(&mut outlier, again));
    record(&mut outlier, true, Role::Probe, again, true);
    let much_later = again + FORGIVE_AFTER * 10;
    assert_eq!(eject(&mut outlier, much_later) - much_later, BASE_EJECTION);
}

#[test]
fn an_abandoned_probe_makes_room_for_another() {
    let mut outlier = Outlier::default();
    let due = eject(&mut outlier, Instant::now());
    assert!(admit(&mut outlier, due));
    outlier.abandon_probe(due);
    assert!(admit(&mut outlier, due));
}

#[test]
fn ejection_may_be_forbidden() {
    let mut outlier = Outlier::default();
    let now = Instant::now();
    for _ in 0..50 {
        assert!(!record(&mut outlier, false, Role::Ordinary, now, false));
    }
    assert_eq!(probe_at(&outlier), None);
    assert!(record(&mut outlier, false, Role::Ordinary, now, true), "the count is kept");
}

#[test]
fn the_gate_says_what_the_state_says() {
    let gate = Gate::default();
    let now = Instant::now() + Duration::from_secs(1);
    for _ in 0..CONSECUTIVE_FAILURES {
        assert_eq!(gate.health(now), Health::InService);
        gate.record(false, Role::Ordinary, now, &settings(), || true);
    }
    assert_eq!(gate.health(now), Health::Ejected);
    assert!(!gate.admit_probe(now, &settings()));
    let due = now + BASE_EJECTION * 2;
    assert_eq!(gate.health(due), Health::ProbeDue);
    assert!(gate.admit_probe(due, &settings()));
    assert_eq!(gate.health(due), Health::Ejected, "while the probe is under way");
    gate.record(true, Role::Probe, due, &settings(), || true);
    assert_eq!(gate.health(due), Health::InService);
}

#[test]
fn several_probes_and_successes_may_be_wanted() {
    let settings = OutlierDetection { probes: 2, successes: 3, ..settings() };
    let mut outlier = Outlier::default();
    let due = eject(&mut outlier, Instant::now());
    let succeed = |outlier: &mut Outlier| {
        outlier.record(true, Role::Probe, false, At { now: due, settings: &settings, jitter: 0.0 }, || true)
    };
    assert!(outlier.admit_probe(due, &settings));
    assert_eq!(outlier.probe_at(), Some(ProbeAt::Now), "there is room for a second");
    assert!(outlier.admit_probe(due, &settings));
    assert!(!outlier.admit_probe(due, &settings), "two are under way");
    succeed(&mut outlier);
    assert!(outlier.admit_probe(due, &settings));
    assert!(!outlier.admit_probe(due, &settings));
    succeed(&mut outlier);
    outlier.abandon_probe(due);
    assert!(outlier.admit_probe(due, &settings), "its place is free");
    succeed(&mut outlier);
    assert_eq!(outlier.probe_at(), None, "the third brings it back");
}

#[test]
fn a_share_of_failures_ejects_whatever_is_between() {
    let share = settings::FailureShare { percent: 50, window: Duration::from_secs(10), least_requests: 10 };
    let settings = OutlierDetection { consecutive_failures: 0, failure_share: Some(share), ..settings() };
    let (gate, now) = (Gate::default(), Instant::now() + Duration::from_secs(1));
    for step in 0..9 {
        assert!(!gate.record(step % 2 == 1, Role::Ordinary, now, &settings, || true));
    }
    assert!(!gate.record(true, Role::Ordinary, now, &settings, || true), "a success ejects nobody");
    assert!(gate.record(false, Role::Ordinary, now, &settings, || true), "6 of 11");
    let due = now + BASE_EJECTION * 2;
    assert!(gate.admit_probe(due, &settings));
    gate.record(true, Role::Probe, due, &settings, || true);
    assert!(!gate.record(false, Role::Ordinary, due, &settings, || true), "it begins anew");
}

proptest! {
    /// Whatever happens: an ejection ends, and is never longer than the maximum and its jitter.
    #[test]
    fn an_ejection_is_bounded(
        events in proptest::collection::vec((any::<bool>(), any::<bool>(), 0_u64..20_000, 0.0..1.0_f64), 0..300),
    ) {
        let mut now = Instant::now();
        let mut outlier = Outlier::default();
        for (success, probe, wait, jitter) in events {
            now += Duration::from_millis(wait);
            let role = match probe_at(&outlier) {
                Some(_) if probe && admit(&mut outlier, now) => Role::Probe,
                Some(_) => Role::LastResort,
                None => Role::Ordinary,
            };
            outlier.record(success, role, false, At { now, settings: &settings(), jitter }, || true);
            if let Some(at) = probe_at(&outlier) {
                prop_assert!(at.saturating_duration_since(now) <= MAX_EJECTION.mul_f64(1.25));
            }
        }
        if let Some(at) = probe_at(&outlier) {
            prop_assert!(admit(&mut outlier, at.max(now)));
        }
    }
}
