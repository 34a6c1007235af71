//! Draws by weight in constant time: uniform where all weights are the same, else Walker's alias method, with the tables
//! made as Vose does (1991).

/// Draws indices of a set by weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampler {
    count: usize,
    /// None: all weigh the same.
    alias: Option<Box<[Column]>>,
}

/// A column of the alias table: its own index up to `threshold`, the other's above.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Column {
    threshold: u32,
    other: u32,
}

/// Draws of a second one before its neighbour is taken instead.
const SECOND_DRAWS: usize = 4;

impl Sampler {
    pub fn new(weights: impl ExactSizeIterator<Item = u32> + Clone) -> Self {
        let count = weights.len();
        let mut all = weights.clone();
        let alike = all.next().is_none_or(|first| all.all(|weight| weight == first));
        Self { count, alias: (!alike).then(|| columns(weights)) }
    }

    /// Of so many that weigh the same.
    pub fn new_uniform(count: usize) -> Self {
        Self { count, alias: None }
    }

    pub fn is_uniform(&self) -> bool {
        self.alias.is_none()
    }

    /// An index by weight. (0 if there is none.)
    pub fn draw(&self, random: u64) -> usize {
        let index = scale(random as u32, self.count);
        match self.alias.as_ref().and_then(|columns| columns.get(index)) {
            Some(column) if (random >> 32) as u32 >= column.threshold => column.other as usize,
            _ => index,
        }
    }

    /// Two distinct indices, of at least two: the first by weight, the second by weight among the others (nearly).
    pub fn pair(&self, random: &impl Fn() -> u64) -> (usize, usize) {
        if self.is_uniform() {
            return two_of(self.count, random());
        }
        let a = self.draw(random());
        for _ in 0..SECOND_DRAWS {
            let b = self.draw(random());
            if a != b {
                return (a, b);
            }
        }
        let (b, c) = two_of(self.count, random());
        (a, if a == b { c } else { b })
    }
}

fn columns(weights: impl ExactSizeIterator<Item = u32> + Clone) -> Box<[Column]> {
    let count = weights.len() as f64;
    let total: f64 = weights.clone().map(f64::from).sum();
    let mut shares: Vec<f64> = weights.map(|weight| f64::from(weight) * count / total).collect();
    let mut columns: Vec<Column> =
        (0..shares.len()).map(|index| Column { threshold: u32::MAX, other: index as u32 }).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..shares.len()).partition(|index| shares.get(*index).is_some_and(|share| *share < 1.0));
    while let (Some(less), Some(more)) = (small.pop(), large.last().copied()) {
        let share = shares.get(less).copied().unwrap_or(1.0);
        if let Some(column) = columns.get_mut(less) {
            *column = Column { threshold: (share * f64::from(u32::MAX)) as u32, other: more as u32 };
        }
        let Some(rest) = shares.get_mut(more) else { break };
        *rest -= 1.0 - share;
        if *rest < 1.0 {
            large.pop();
            small.push(more);
        }
    }
    columns.into()
}

/// Two distinct indices below `count` (at least 2), in random order.
pub(super) fn two_of(count: usize, random: u64) -> (usize, usize) {
    let a = scale(random as u32, count);
    let b = scale((random >> 32) as u32, count - 1);
    (a, if b >= a { b + 1 } else { b })
}

/// A uniform 32-bit number, mapped to 0..count without division (Lemire 2019).
pub(super) fn scale(random: u32, count: usize) -> usize {
    ((u64::from(random) * count as u64) >> 32) as usize
}

/// 0.0..1.0
pub(super) fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::worker::Random;

    proptest! {
        #[test]
        fn pairs_are_distinct_and_in_range(
            weights in proptest::collection::vec(1_u32..1000, 2..60), seed: u64,
        ) {
            let (sampler, random) = (Sampler::new(weights.iter().copied()), Random::seeded(seed));
            for _ in 0..50 {
                let (a, b) = sampler.pair(&|| random.next());
                prop_assert!(a < weights.len() && b < weights.len() && a != b);
            }
        }

        #[test]
        fn draws_of_two_are_distinct_and_in_range(count in 2_usize..2000, random: u64) {
            let (a, b) = two_of(count, random);
            prop_assert!(a < count && b < count && a != b);
        }

        /// The table holds each weight's share exactly, but for rounding.
        #[test]
        fn shares_are_those_of_the_weights(weights in proptest::collection::vec(1_u32..1000, 1..60)) {
            let sampler = Sampler::new(weights.iter().copied());
            let count = weights.len() as f64;
            let mut shares = vec![0.0; weights.len()];
            match &sampler.alias {
                None => shares.fill(1.0 / count),
                Some(columns) => for (index, column) in columns.iter().enumerate() {
                    let own = f64::from(column.threshold) / f64::from(u32::MAX);
                    shares[index] += own / count;
                    shares[column.other as usize] += (1.0 - own) / count;
                },
            }
            let total = f64::from(weights.iter().sum::<u32>());
            for (share, weight) in shares.iter().zip(&weights) {
                prop_assert!((share - f64::from(*weight) / total).abs() < 1e-6, "{shares:?} of {weights:?}");
            }
        }
    }

    #[test]
    fn one_or_none_is_no_problem() {
        assert_eq!(Sampler::new([7].into_iter()).draw(u64::MAX), 0);
        assert_eq!(Sampler::new([].into_iter()).draw(u64::MAX), 0);
    }
}
