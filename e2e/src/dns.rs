//! A small authoritative DNS server over UDP, whose answers can be changed while it runs.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Context as _, Result};
use hickory_resolver::proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};
use tokio::net::UdpSocket;

/// Largest query read, bytes (more than EDNS's usual 1232).
const MAX_QUERY: usize = 4096;

#[derive(Debug, Default)]
struct Zone {
    /// Lower-case name without the last dot → (addresses, TTL in seconds).
    names: Mutex<HashMap<String, (Vec<IpAddr>, u32)>>,
    queries: AtomicU64,
}

/// A running server; stops when dropped.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    zone: Arc<Zone>,
    serving: tokio::task::JoinHandle<()>,
}

impl Dns {
    pub async fn start() -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.context("listen for DNS queries")?;
        let address = socket.local_addr()?;
        let zone = Arc::new(Zone::default());
        let serving = tokio::spawn(serve(socket, zone.clone()));
        Ok(Self { address, zone, serving })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `name` has these addresses, for `ttl` seconds.
    pub fn set(&self, name: &str, addresses: &[IpAddr], ttl: u32) {
        let mut names = self.zone.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(name.to_ascii_lowercase(), (addresses.to_vec(), ttl));
    }

    /// Queries answered so far.
    pub fn queries(&self) -> u64 {
        self.zone.queries.load(Relaxed)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(socket: UdpSocket, zone: Arc<Zone>) {
    let mut buffer = vec![0; MAX_QUERY];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
        let query = buffer.get(..length).and_then(|bytes| Message::from_vec(bytes).ok());
        let Some(answer) = query.and_then(|query| zone.answer(&query).to_vec().ok()) else { continue };
        zone.queries.fetch_add(1, Relaxed);
        // A client that left needs no answer.
        let _ = socket.send_to(&answer, peer).await;
    }
}

impl Zone {
    fn answer(&self, query: &Message) -> Message {
        let mut answer = Message::new(query.id, MessageType::Response, query.op_code);
        answer.metadata.recursion_desired = query.recursion_desired;
        answer.metadata.authoritative = true;
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        for question in &query.queries {
            answer.add_query(question.clone());
            let name = question.name().to_ascii().to_ascii_lowercase();
            let Some((addresses, ttl)) = names.get(name.trim_end_matches('.')) else {
                answer.metadata.response_code = ResponseCode::NXDomain;
                continue;
            };
            for address in addresses {
                let data = match (question.query_type(), address) {
                    (RecordType::A, IpAddr::V4(ip)) => RData::A(A(*ip)),
                    (RecordType::AAAA, IpAddr::V6(ip)) => RData::AAAA(AAAA(*ip)),
                    _ => continue,
                };
                answer.add_answer(Record::from_rdata(question.name().clone(), *ttl, data));
            }
        }
        answer
    }
}
