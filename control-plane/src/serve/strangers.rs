//! Connections whose other end has not proved who it is: so many at once, and when one more comes, the oldest leaves.
//!
//! Whoever means it needs milliseconds: a handshake, or that and one request for a certificate. So who says nothing, or stops in the
//! middle, is the one to go, and a crowd of them keeps nobody out. The network that has most connections gives
//! one up first: one host cannot push out another's.

use std::{
    collections::BTreeMap,
    future::Future,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

/// How long one that must leave may take, before another is asked.
const LEAVING: Duration = Duration::from_millis(50);

/// See the module.
pub(super) struct Strangers {
    room: Arc<Semaphore>,
    present: Mutex<Present>,
}

#[derive(Default)]
struct Present {
    /// How many ever came: the order of their coming.
    came: u64,
    all: BTreeMap<u64, Stranger>,
}

struct Stranger {
    network: IpAddr,
    /// Dropped: it must leave.
    _stay: oneshot::Sender<()>,
}

/// A stranger's place, until this is dropped.
pub(super) struct Place {
    number: u64,
    strangers: Arc<Strangers>,
    /// None: over.
    stay: Option<oneshot::Receiver<()>>,
    _room: OwnedSemaphorePermit,
}

impl Strangers {
    /// At most so many at once.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { room: Arc::new(Semaphore::new(most)), present: Mutex::default() })
    }

    /// A place for one more, for which another may have to leave.
    pub(super) async fn admit(self: &Arc<Self>, address: IpAddr) -> Place {
        let room = loop {
            if let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
                break room;
            }
            self.present.lock().dismiss_one();
            if let Ok(Ok(room)) = timeout(LEAVING, Arc::clone(&self.room).acquire_owned()).await {
                break room;
            }
        };
        let (sender, stay) = oneshot::channel();
        let number = self.present.lock().add(Stranger { network: network(address), _stay: sender });
        Place { number, strangers: Arc::clone(self), stay: Some(stay), _room: room }
    }
}

impl Present {
    fn add(&mut self, stranger: Stranger) -> u64 {
        self.came += 1;
        self.all.insert(self.came, stranger);
        self.came
    }

    /// The oldest of the network that has most.
    fn dismiss_one(&mut self) {
        let mut networks: BTreeMap<IpAddr, (usize, u64)> = BTreeMap::new();
        for (number, stranger) in self.all.iter().rev() {
            let (count, oldest) = networks.entry(stranger.network).or_default();
            *count += 1;
            *oldest = *number;
        }
        let most = networks.values().max_by_key(|(count, oldest)| (*count, std::cmp::Reverse(*oldest)));
        if let Some((_, oldest)) = most {
            self.all.remove(oldest);
        }
    }
}

/// What one host may have many addresses of: of IPv6, the first 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

impl Place {
    /// Ready when it must be left.
    pub(super) fn poll_dismissed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let over = self.stay.as_mut().is_none_or(|stay| Pin::new(stay).poll(cx).is_ready());
        if !over {
            return Poll::Pending;
        }
        self.stay = None;
        Poll::Ready(())
    }

    /// Returns when it must be left.
    pub(super) async fn dismissed(&mut self) {
        std::future::poll_fn(|cx| self.poll_dismissed(cx)).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.strangers.present.lock().all.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u8) -> IpAddr {
        [192, 0, 2, number].into()
    }

    /// Leaves when told to, as connections do.
    fn stay(mut place: Place) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move { place.dismissed().await })
    }

    #[tokio::test]
    async fn the_oldest_leaves_for_one_more() {
        let strangers = Strangers::new(2);
        let first = stay(strangers.admit(host(1)).await);
        let second = stay(strangers.admit(host(1)).await);
        let third = strangers.admit(host(1)).await;
        first.await.unwrap();
        assert!(!second.is_finished());
        // Who has gone has made room.
        drop(third);
        let _fourth = strangers.admit(host(1)).await;
        assert!(!second.is_finished());
        assert_eq!(strangers.present.lock().all.len(), 2);
    }

    #[tokio::test]
    async fn a_crowd_pushes_out_its_own() {
        let strangers = Strangers::new(3);
        let lone = stay(strangers.admit(host(1)).await);
        for _ in 0..10 {
            drop(stay(strangers.admit(host(2)).await));
        }
        assert!(!lone.is_finished());
        assert_eq!(strangers.present.lock().all.len(), 3);
    }

    #[tokio::test]
    async fn one_that_does_not_leave_is_not_waited_for() {
        let strangers = Strangers::new(2);
        let _stuck = strangers.admit(host(1)).await;
        let second = stay(strangers.admit(host(1)).await);
        let _third = strangers.admit(host(1)).await;
        second.await.unwrap();
    }

    #[test]
    fn networks() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
