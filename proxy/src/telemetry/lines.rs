//! Lines on their way to standard output or standard error: a bounded buffer that a thread of its own writes
//! out. Whoever logs never waits for a slow reader; what does not fit is dropped and counted.

use std::{
    io::{self, Write},
    mem,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use metrics::Counter;
use parking_lot::{Condvar, Mutex};

/// Bytes that wait to be written at most.
const CAPACITY: usize = 1 << 20;
/// A buffer that grew beyond this is given back once it was written.
const KEEP: usize = 64 * 1024;
/// Time in which lines are gathered before they are written.
const GATHER: Duration = Duration::from_millis(20);

/// The buffer of one output; cheap to clone.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The writer waits here for lines.
    filled: Condvar,
    /// Flushes wait here for the writer.
    drained: Condvar,
    capacity: usize,
    dropped: Counter,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The writer holds lines that it took from `waiting`.
    writing: bool,
    /// Somebody waits: write without gathering.
    urgent: bool,
}

impl Lines {
    /// Starts the thread that writes to `output`. `dropped` counts lines that did not fit.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn spawn(name: &str, output: impl Write + Send + 'static, dropped: Counter) -> io::Result<Self> {
        Self::with_capacity(name, output, dropped, CAPACITY)
    }

    fn with_capacity(
        name: &str,
        output: impl Write + Send + 'static,
        dropped: Counter,
        capacity: usize,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
            capacity,
            dropped,
        });
        let writer = shared.clone();
        // A stack as small as this thread needs; for as long as the process lives.
        thread::Builder::new().name(name.to_owned()).stack_size(64 * 1024).spawn(move || writer.run(output))?;
        Ok(Self(shared))
    }

    /// Appends one line, which `line` ends with a line feed.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.0.state.lock();
        if state.waiting.len() + line.len() > self.0.capacity {
            drop(state);
            self.0.dropped.increment(1);
            return;
        }
        let was_empty = state.waiting.is_empty();
        state.waiting.extend_from_slice(line);
        drop(state);
        if was_empty {
            self.0.filled.notify_one();
        }
    }

    /// Waits until everything pushed before was written, `timeout` at most.
    pub fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.state.lock();
        while state.writing || !state.waiting.is_empty() {
            state.urgent = true;
            self.0.filled.notify_one();
            if self.0.drained.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

impl Shared {
    fn run(&self, mut output: impl Write) {
        let mut taken = Vec::new();
        loop {
            let mut state = self.state.lock();
            while state.waiting.is_empty() {
                self.filled.wait(&mut state);
            }
            if !state.urgent {
                // Woken early by a flush, or not: either way it is time.
                self.filled.wait_for(&mut state, GATHER);
            }
            mem::swap(&mut state.waiting, &mut taken);
            state.writing = true;
            drop(state);
            // Nobody is left to tell that the log cannot be written.
            let _ = output.write_all(&taken).and_then(|()| output.flush());
            taken.clear();
            taken.shrink_to(KEEP);
            let mut state = self.state.lock();
            state.writing = false;
            state.urgent = false;
            self.drained.notify_all();
        }
    }
}

/// One event of the proxy's own log is one write, and so one line.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Hands on what is written, one receipt at a time.
    struct Slow(mpsc::SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_arrive_in_order() {
        let (sender, receiver) = mpsc::sync_channel(100);
        let lines = Lines::spawn("test", Slow(sender), Counter::noop()).unwrap();
        let all: Vec<_> = (0..100).map(|n| format!("line {n}\n")).collect();
        all.iter().for_each(|line| lines.push(line.as_bytes()));
        lines.flush(Duration::from_secs(10));
        assert_eq!(receiver.try_iter().flatten().collect::<Vec<_>>(), all.concat().into_bytes());
    }

    #[test]
    fn a_stuck_output_costs_bounded_memory_and_no_waiting() {
        let (sender, receiver) = mpsc::sync_channel(0);
        let dropped = Arc::new(crate::telemetry::recorder::Total::default());
        let lines = Lines::with_capacity("test", Slow(sender), Counter::from_arc(dropped.clone()), 1000).unwrap();
        for _ in 0..1000 {
            lines.push(&[b'x'; 100]);
        }
        let kept = 1000 - dropped.0.load(std::sync::atomic::Ordering::Relaxed) as usize;
        assert!((10..=20).contains(&kept), "{kept}");
        let mut arrived = 0;
        while arrived < kept * 100 {
            arrived += receiver.recv().unwrap().len();
        }
        lines.flush(Duration::from_secs(10));
        assert!(receiver.try_recv().is_err());
    }
}
