//! Turns by weight, in constant time where all weigh the same, else by virtual time: whoever's turn has begun, and is due
//! first, is next (EEVDF: Stoica and Abdel-Wahab 1995). While the endpoints that are ready stay the same, none is ever a
//! whole turn ahead of its share, or behind it.

use super::{Candidates, Choice, Standing, best_standing, graded};

/// One worker's turns among the endpoints of a set.
#[derive(Debug, Clone, Default)]
pub struct RoundRobin {
    /// Where turns begin, so that proxies that start together do not begin with the same endpoint.
    offset: usize,
    /// All weigh the same: the next.
    next: usize,
    virtual_time: f64,
    /// When each one's next turn begins, in virtual time.
    begins: Vec<f64>,
}

/// Virtual time after which it is counted from 0 again, to keep its precision.
const REBASE: f64 = 1e6;
/// What rounding may make of times that are the same.
const SAME: f64 = 1e-9;

impl RoundRobin {
    pub fn new(count: usize, random: u64) -> Self {
        let offset = super::sampler::scale(random as u32, count);
        Self { offset, next: offset, virtual_time: 0.0, begins: vec![0.0; count] }
    }

    /// `alike`: all weigh the same, and none is in its slow start.
    pub fn choose(&mut self, view: &impl Candidates, alike: bool) -> Option<Choice> {
        if alike { self.by_order(view) } else { self.by_weight(view) }
    }

    fn by_order(&mut self, view: &impl Candidates) -> Option<Choice> {
        let count = view.count();
        let first = self.next;
        let from_next = || (first..count).chain(0..first.min(count));
        let mut chosen = None;
        for index in from_next() {
            match view.standing(index) {
                Standing::Ready => chosen = Some(Choice::of(index)),
                Standing::ProbeDue if view.admit(index) => chosen = Some(Choice::probe(index)),
                _ => continue,
            }
            break;
        }
        let chosen = chosen.or_else(|| {
            let best = best_standing(view)?;
            from_next().find(|index| graded(view.standing(*index)) == best).map(Choice::of)
        })?;
        self.next = (chosen.index + 1) % count.max(1);
        Some(chosen)
    }

    fn by_weight(&mut self, view: &impl Candidates) -> Option<Choice> {
        let count = view.count();
        if let Some(index) = (0..count).find(|index| view.standing(*index) == Standing::ProbeDue && view.admit(*index))
        {
            return Some(Choice::probe(index));
        }
        let best = best_standing(view)?;
        self.begins.resize(count, self.virtual_time);
        let mut total = 0.0;
        // The one that is due first: when, and its turn's length.
        let mut first: Option<(f64, usize, f64)> = None;
        let mut waiting: Option<(f64, usize, f64)> = None;
        for step in 0..count {
            let index = (self.offset + step) % count;
            let Some(begins) = self.begins.get_mut(index) else { continue };
            if graded(view.standing(index)) != best {
                // Its turns are not saved up.
                *begins = begins.max(self.virtual_time);
                continue;
            }
            let share = view.weight(index) * view.warmth(index);
            let length = 1.0 / share;
            total += share;
            // Back from elsewhere, it begins now.
            *begins = begins.max(self.virtual_time - length);
            let due = *begins + length;
            let place = if *begins <= self.virtual_time + SAME { &mut first } else { &mut waiting };
            if place.is_none_or(|(earliest, ..)| due < earliest - SAME) {
                *place = Some((due, index, length));
            }
        }
        let (_, index, length) = first.or(waiting)?;
        if let Some(begins) = self.begins.get_mut(index) {
            *begins += length;
        }
        self.virtual_time += 1.0 / total;
        if self.virtual_time > REBASE {
            for begins in &mut self.begins {
                *begins -= self.virtual_time;
            }
            self.virtual_time = 0.0;
        }
        Some(Choice::of(index))
    }
}
