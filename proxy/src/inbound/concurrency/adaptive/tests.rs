use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

impl Adaptive {
    fn sample(&mut self, started: Instant, sample: Sample, in_flight: u32, now: Instant) {
        self.ended((started, now.saturating_duration_since(started)), sample, in_flight, now);
    }
}

#[test]
fn a_stall_that_ends_is_no_overload() {
    let start = Instant::now();
    let mut adaptive = Adaptive::new(10, 1000, start);
    let mut now = start;
    for _ in 0..100 {
        now += MS;
        adaptive.sample(now - 10 * MS, Sample::Answered, 500, now);
    }
    assert!(adaptive.baseline().unwrap() < 0.011);
    for _ in 0..EVIDENCE - 1 {
        now += MS;
        adaptive.sample(now - 100 * MS, Sample::Answered, 500, now);
    }
    adaptive.sample(now - 10 * MS, Sample::Answered, 500, now);
    assert_eq!(adaptive.limit(), 1000);
}

#[test]
fn fast_failures_tell_nothing() {
    let start = Instant::now();
    let mut adaptive = Adaptive::new(10, 1000, start);
    for n in 0..100 {
        adaptive.sample(start + n * MS, Sample::Failed, 500, start + n * MS);
    }
    assert_eq!(adaptive.baseline(), None);
}

const UNLIMITED: Measured = Measured { limit: 500.0, rate: 100.0, mean: 5.0 };

#[test]
fn a_smaller_limit_is_judged_by_throughput_and_latency() {
    let verdict = |limit, rate, mean| Measured { limit, rate, mean }.compared(UNLIMITED);
    // An overload: as many answers, sooner.
    assert_eq!(verdict(100.0, 95.0, 1.05), Verdict::Accepted);
    // A slow dependency: fewer answers, no sooner.
    assert_eq!(verdict(100.0, 20.0, 5.0), Verdict::Harmful);
    assert_eq!(verdict(100.0, 50.0, 4.0), Verdict::Doubtful);
    // Fewer answers than were measured, but sooner.
    assert_eq!(verdict(100.0, 50.0, 2.0), Verdict::Accepted);
    // The application itself does less now: what it did tells nothing any more.
    assert_eq!(verdict(100.0, 10.0, 10.0), Verdict::Accepted);
    assert_eq!(verdict(450.0, 10.0, 45.0), Verdict::Accepted);
    assert_eq!(verdict(100.0, 20.0, 10.0), Verdict::Accepted);
    // Not so much smaller that it is plain.
    assert_eq!(verdict(250.0, 50.0, 5.0), Verdict::Doubtful);
    // Hardly smaller.
    assert_eq!(verdict(450.0, 88.0, 5.1), Verdict::Open);
}

/// Under a limit of 100 of the [`UNLIMITED`].
fn limited(now: Instant) -> Adaptive {
    let mut adaptive = Adaptive::new(10, 10_000, now);
    adaptive.baseline = Some(0.050);
    adaptive.limited = Some(Limited {
        limit: 100.0,
        cut: None,
        drained: None,
        before: UNLIMITED,
        doubted: false,
        refused_in_window: false,
        last_refused: now,
        patience: now + Duration::from_secs(600),
    });
    adaptive
}

/// A window of so many answers per second, that took `mean`, and of refusals.
fn window(adaptive: &mut Adaptive, now: &mut Instant, rate: f64, mean: f64) {
    adaptive.window = Window::new(*now);
    let answers = ((MEANS_UNDER_LIMIT + 0.1) * mean * rate).max(f64::from(SAMPLES)) as u32 + 1;
    for _ in 0..answers {
        *now += Duration::from_secs_f64(1.0 / rate);
        adaptive.refused(*now);
        adaptive.sample(*now - Duration::from_secs_f64(mean), Sample::Answered, 100, *now);
    }
}

#[test]
fn doubt_ends_with_a_window_that_does_not_confirm_it() {
    let start = Instant::now();
    for (rate, mean, is_lifted) in [(50.0, 4.0, true), (95.0, 1.05, false)] {
        let (mut adaptive, mut now) = (limited(start), start + Duration::from_secs(60));
        window(&mut adaptive, &mut now, 50.0, 4.0);
        assert!(adaptive.limited.is_some_and(|limited| limited.doubted));
        window(&mut adaptive, &mut now, rate, mean);
        assert_eq!(adaptive.limited.is_none(), is_lifted, "{:?}", adaptive.limited);
        assert!(adaptive.limited.is_none_or(|limited| !limited.doubted));
    }
}

#[test]
fn cheap_answers_do_not_end_a_drain() {
    let start = Instant::now();
    let (mut adaptive, cut) = (limited(start), start + Duration::from_secs(60));
    adaptive.limited = adaptive.limited.map(|limited| Limited { cut: Some(cut), ..limited });
    let now = cut + 10 * MS;
    adaptive.sample(now - MS, Sample::Answered, 300, now);
    assert!(adaptive.limited.is_some_and(|limited| limited.cut.is_some()));
    let now = cut + 60 * MS;
    adaptive.sample(now - 50 * MS, Sample::Answered, 300, now);
    assert!(adaptive.limited.is_some_and(|limited| limited.cut.is_none()));
}

proptest! {
    /// The promise to applications that behave: answers within twice the usual time, any number in flight.
    #[test]
    fn nothing_is_refused_within_twice_the_usual_time(
        usual in 1_u32..1000,
        steps in prop::collection::vec((0_u32..1000, 0_u32..50, 0_u32..10_000, 0_u8..3), 1..500),
    ) {
        let start = Instant::now();
        let mut adaptive = Adaptive::new(10, 10_000, start);
        let mut now = start + Duration::from_secs(10);
        for (share, wait, in_flight, kind) in steps {
            now += wait * MS;
            let took = (usual * MS).mul_f64(1.0 + f64::from(share) / 1001.0);
            let sample = [Sample::Answered, Sample::Failed, Sample::Unanswered][usize::from(kind)];
            adaptive.sample(now - took, sample, in_flight, now);
            prop_assert_eq!(adaptive.limit(), 10_000);
        }
    }

    /// Whatever happens, the limit is within its bounds, and one that nothing comes through is lifted.
    #[test]
    fn limits_stay_within_bounds(
        steps in prop::collection::vec((0_u32..5000, 0_u32..200, 0_u32..1000, 0_u8..4), 1..500),
    ) {
        let mut adaptive = Adaptive::new(5, 50, Instant::now());
        let mut now = Instant::now() + Duration::from_secs(10);
        for (took, wait, in_flight, kind) in steps {
            now += wait * MS;
            match kind {
                0 => adaptive.refused(now),
                _ => {
                    let sample = [Sample::Answered, Sample::Failed, Sample::Unanswered][usize::from(kind) - 1];
                    adaptive.sample(now - took * MS, sample, in_flight, now);
                }
            }
            prop_assert!((5..=50).contains(&adaptive.limit()));
        }
        adaptive.refused(now + Duration::from_secs(70));
        prop_assert_eq!(adaptive.limit(), 50);
    }
}
