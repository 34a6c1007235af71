use proptest::prelude::*;

use super::*;

fn fail(outlier: &mut Outlier, times: u32, now: Instant) -> bool {
    (0..times).any(|_| outlier.record(false, Role::Ordinary, now, 0.0, || true))
}

fn eject(outlier: &mut Outlier, now: Instant) -> Instant {
    assert!(fail(outlier, CONSECUTIVE_FAILURES, now));
    outlier.probe_at().unwrap()
}

#[test]
fn only_failures_in_a_row_eject() {
    let now = Instant::now();
    let mut outlier = Outlier::default();
    assert!(!fail(&mut outlier, CONSECUTIVE_FAILURES - 1, now));
    outlier.record(true, Role::Ordinary, now, 0.0, || true);
    assert!(!fail(&mut outlier, CONSECUTIVE_FAILURES - 1, now));
    assert!(fail(&mut outlier, 1, now));
}

#[test]
fn one_probe_at_a_time_decides() {
    let now = Instant::now();
    let mut outlier = Outlier::default();
    let due = eject(&mut outlier, now);
    assert_eq!(due, now + BASE_EJECTION);
    assert!(!outlier.admit_probe(due - Duration::from_millis(1)));
    assert!(outlier.admit_probe(due));
    assert!(!outlier.admit_probe(due), "one is under way");
    assert!(outlier.admit_probe(due + PROBE_PATIENCE), "it was lost");
    assert!(!outlier.record(true, Role::Probe, due + PROBE_PATIENCE, 0.0, || true));
    assert_eq!(outlier.probe_at(), None);
}

#[test]
fn a_failed_probe_ejects_for_longer() {
    let now = Instant::now();
    let mut outlier = Outlier::default();
    let mut due = eject(&mut outlier, now);
    for times in 2..100 {
        assert!(outlier.admit_probe(due));
        assert!(outlier.record(false, Role::Probe, due, 0.0, || false), "a failed probe ejects whatever the others do");
        let next = outlier.probe_at().unwrap();
        assert_eq!(next - due, (BASE_EJECTION * times).min(MAX_EJECTION));
        due = next;
    }
}

#[test]
fn results_from_before_the_ejection_do_not_count() {
    let now = Instant::now();
    let mut outlier = Outlier::default();
    let due = eject(&mut outlier, now);
    assert!(!outlier.record(true, Role::Ordinary, now, 0.0, || true));
    assert!(!outlier.record(false, Role::Ordinary, now, 0.0, || true));
    assert_eq!(outlier.probe_at(), Some(due));
}

#[test]
fn requests_sent_there_for_want_of_others_bring_it_back_but_do_not_eject_again() {
    let now = Instant::now();
    let mut outlier = Outlier::default();
    let due = eject(&mut outlier, now);
    for _ in 0..100 {
        assert!(!outlier.record(false, Role::LastResort, now, 0.0, || true));
    }
    assert_eq!(outlier.probe_at(), Some(due), "no longer than it was");
    assert!(outlier.admit_probe(due));
    assert!(!outlier.record(false, Role::LastResort, due, 0.0, || true), "the probe decides");
    assert!(outlier.record(false, Role::Probe, due, 0.0, || true));
    assert_eq!(outlier.probe_at(), Some(due + BASE_EJECTION * 2), "the second, not the hundredth");
    assert!(!outlier.record(true, Role::LastResort, due, 0.0, || true));
    assert_eq!(outlier.probe_at(), None);
}

#[test]
fn a_probe_that_was_given_up_does_not_eject_again() {
    let mut outlier = Outlier::default();
    let due = eject(&mut outlier, Instant::now());
    assert!(outlier.admit_probe(due));
    let late = due + PROBE_PATIENCE;
    assert!(outlier.admit_probe(late));
    assert!(outlier.record(false, Role::Probe, late, 0.0, || true));
    let next = outlier.probe_at();
    assert!(!outlier.record(false, Role::Probe, late, 0.0, || true), "the first one's result, late");
    assert_eq!(outlier.probe_at(), next);
}

#[test]
fn time_in_service_forgives() {
    let mut now = Instant::now();
    let mut outlier = Outlier::default();
    for _ in 0..3 {
        now = eject(&mut outlier, now);
        assert!(outlier.admit_probe(now));
        outlier.record(true, Role::Probe, now, 0.0, || true);
    }
    let again = eject(&mut outlier, now);
    assert_eq!(again - now, BASE_EJECTION * 4);
    assert!(outlier.admit_probe(again));
    outlier.record(true, Role::Probe, again, 0.0, || true);
    let much_later = again + FORGIVE_AFTER * 10;
    assert_eq!(eject(&mut outlier, much_later) - much_later, BASE_EJECTION);
}

#[test]
fn an_abandoned_probe_makes_room_for_another() {
    let mut outlier = Outlier::default();
    let due = eject(&mut outlier, Instant::now());
    assert!(outlier.admit_probe(due));
    outlier.abandon_probe(due);
    assert!(outlier.admit_probe(due));
}

#[test]
fn ejection_may_be_forbidden() {
    let mut outlier = Outlier::default();
    let now = Instant::now();
    for _ in 0..50 {
        assert!(!outlier.record(false, Role::Ordinary, now, 0.0, || false));
    }
    assert_eq!(outlier.probe_at(), None);
    assert!(outlier.record(false, Role::Ordinary, now, 0.0, || true), "the count is kept");
}

#[test]
fn the_gate_says_what_the_state_says() {
    let gate = Gate::default();
    let now = Instant::now() + Duration::from_secs(1);
    for _ in 0..CONSECUTIVE_FAILURES {
        assert_eq!(gate.health(now), Health::InService);
        gate.record(false, Role::Ordinary, now, || true);
    }
    assert_eq!(gate.health(now), Health::Ejected);
    assert!(!gate.admit_probe(now));
    let due = now + BASE_EJECTION * 2;
    assert_eq!(gate.health(due), Health::ProbeDue);
    assert!(gate.admit_probe(due));
    assert_eq!(gate.health(due), Health::Ejected, "while the probe is under way");
    gate.record(true, Role::Probe, due, || true);
    assert_eq!(gate.health(due), Health::InService);
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
            let role = match outlier.probe_at() {
                Some(_) if probe && outlier.admit_probe(now) => Role::Probe,
                Some(_) => Role::LastResort,
                None => Role::Ordinary,
            };
            outlier.record(success, role, now, jitter, || true);
            if let Some(at) = outlier.probe_at() {
                prop_assert!(at.saturating_duration_since(now) <= MAX_EJECTION.mul_f64(1.0 + JITTER));
            }
        }
        if let Some(at) = outlier.probe_at() {
            prop_assert!(outlier.admit_probe(at.max(now)));
        }
    }
}
