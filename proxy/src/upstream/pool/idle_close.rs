//! After how long a server closes connections that are idle, learnt from those that it closed: so that ours are retired before
//! a request can meet the close on its way. Pure.

use std::time::{Duration, Instant};

/// Observations nearer to each other than this are one: a server that stops closes all at once.
const APART: Duration = Duration::from_millis(900);
/// What was learnt is forgotten after so long, and learnt anew.
const FORGET: Duration = Duration::from_secs(600);
/// Connections are retired so much earlier, in percent.
const MARGIN_PERCENT: u32 = 10;
/// No server's connections are kept for less.
const LEAST: Duration = Duration::from_millis(100);

/// What is known of one server.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct IdleClose(Option<Seen>);

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Connections lived so long at least, and were closed by then.
    lived: Duration,
    closed: Duration,
    at: Instant,
    /// Seen twice: it is a habit.
    twice: bool,
}

impl IdleClose {
    /// The server closed an idle connection: it was seen open when it was idle for `lived`, and closed at `closed`.
    pub(super) fn closed(&mut self, lived: Duration, closed: Duration, now: Instant) {
        // It was not seen idle at all: a restart, or a server that has had enough, closes whatever there is.
        if lived < LEAST {
            return;
        }
        let before = self.0.filter(|seen| now.saturating_duration_since(seen.at) < FORGET);
        self.0 = Some(match before {
            Some(seen) if now.saturating_duration_since(seen.at) < APART => return,
            Some(seen) if lived.max(seen.lived) < closed.min(seen.closed) => {
                Seen { lived: lived.max(seen.lived), closed: closed.min(seen.closed), at: now, twice: true }
            }
            _ => Seen { lived, closed, at: now, twice: false },
        });
    }

    /// How long a connection may be idle; `most` if nothing is known.
    pub(super) fn patience(&self, most: Duration, now: Instant) -> Duration {
        match self.0 {
            Some(seen) if seen.twice && now.saturating_duration_since(seen.at) < FORGET => {
                (seen.lived * (100 - MARGIN_PERCENT) / 100).clamp(LEAST.min(most), most)
            }
            _ => most,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(4);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_habit_is_learnt_and_forgotten() {
        let (mut server, start) = (IdleClose::default(), Instant::now());
        assert_eq!(server.patience(MOST, start), MOST);
        server.closed(millis(1300), millis(2300), start);
        assert_eq!(server.patience(MOST, start), MOST, "once is no habit");
        let again = start + millis(5000);
        server.closed(millis(1700), millis(2700), again);
        assert_eq!(server.patience(MOST, again), millis(1530), "open at 1.7 s, less a tenth");
        assert_eq!(server.patience(millis(1000), again), millis(1000));
        assert_eq!(server.patience(MOST, again + FORGET), MOST);
    }

    #[test]
    fn a_server_that_stops_teaches_nothing() {
        let (mut server, start) = (IdleClose::default(), Instant::now());
        for lived in [0, 500, 100, 2500] {
            server.closed(millis(lived), millis(lived + 1000), start);
        }
        assert_eq!(server.patience(MOST, start), MOST);
        server.closed(millis(3100), millis(3900), start + millis(60_000));
        assert_eq!(server.patience(MOST, start + millis(60_000)), MOST, "at another age");
    }

    #[test]
    fn a_server_that_closes_at_once_is_still_used() {
        let (mut server, start) = (IdleClose::default(), Instant::now());
        server.closed(Duration::ZERO, millis(10), start);
        server.closed(Duration::ZERO, millis(10), start + millis(2000));
        assert_eq!(server.patience(MOST, start + millis(2000)), MOST);
    }
}
