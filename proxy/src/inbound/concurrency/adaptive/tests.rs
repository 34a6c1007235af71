use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

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
