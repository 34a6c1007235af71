//! Shares of what happens: a percentage of requests, one in a thousand.

use std::fmt;

/// A share of what happens: the first of the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    of: u32,
    all: u32,
}

impl Share {
    /// None: more than all, or all is nothing.
    pub fn new(of: u32, all: u32) -> Option<Self> {
        (all > 0 && of <= all).then_some(Self { of, all })
    }

    pub fn is_none(self) -> bool {
        self.of == 0
    }

    /// "12.5 %"
    pub fn percent(self) -> String {
        percent(self.of.into(), self.all.into())
    }

    /// Whether it takes what happens at `point`, a uniformly random number.
    pub fn takes(self, point: u64) -> bool {
        point % u64::from(self.all) < u64::from(self.of)
    }
}

/// `of` of `all`, for people: "12.5 %".
pub(crate) fn percent(of: u64, all: u64) -> String {
    let percent = format!("{:.4}", of as f64 * 100.0 / all.max(1) as f64);
    format!("{} %", percent.trim_end_matches('0').trim_end_matches('.'))
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.of, self.all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_are_exact(all in 1_u32..1000, part in 0.0..=1.0_f64, from in any::<u32>()) {
            let of = (f64::from(all) * part) as u32;
            let share = Share::new(of, all).unwrap();
            // Any run of as many points as there are.
            let start = u64::from(from);
            let taken = (start..start + u64::from(all)).filter(|point| share.takes(*point)).count();
            prop_assert_eq!(taken, of as usize);
        }
    }

    #[test]
    fn people_are_told_per_cent() {
        for (of, all, told) in [(1, 1, "100 %"), (0, 100, "0 %"), (1, 3, "33.3333 %"), (1, 1_000_000, "0.0001 %")] {
            assert_eq!(Share::new(of, all).unwrap().percent(), told);
        }
        assert_eq!((percent(90, 100), percent(1, 8), percent(1, 0)), ("90 %".into(), "12.5 %".into(), "100 %".into()));
    }

    #[test]
    fn nothing_and_everything() {
        assert_eq!((Share::new(1, 0), Share::new(3, 2)), (None, None));
        assert!((0..1000).all(|point| Share::new(1, 1).unwrap().takes(point)));
        assert!(!(0..1000).any(|point| Share::new(0, 1).unwrap().takes(point)));
        let tiny = Share::new(1, 1_000_000).unwrap();
        assert_eq!((0..3_000_000).filter(|point| tiny.takes(*point)).count(), 3, "0.0001 %");
    }
}
