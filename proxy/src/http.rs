//! HTTP as the proxy sees it: a request head and body in, a response head and body out. Connections are read and written by
//! codecs of our own ([`h1`], [`h2`]) and, for what is not plain, by hyper ([`adapt`]); everything between is written
//! against [`head`] and [`Body`].

pub(crate) mod adapt;
pub(crate) mod affinity;
mod attempt;
pub mod body;
mod client_stream;
pub mod cors;
pub mod exchange;
pub mod filter;
pub(crate) mod forward;
mod framing;
mod guarded;
pub mod h1;
pub mod h2;
pub mod head;
pub mod headers;
mod hedge;
pub mod hops;
pub(crate) mod informational;
pub mod mirror;
pub(crate) mod notes;
pub(crate) mod outflow;
pub mod persistence;
pub(crate) mod request_body;
pub mod respond;
pub mod retry;
pub mod serve;
pub(crate) mod stream_task;
mod told;
pub mod trace_context;
pub mod upgrade;
mod verdict;
mod watch;

pub use body::Body;

use head::ResponseHead;

/// An answer on its way to the client.
pub(crate) struct Response {
    pub(crate) head: ResponseHead,
    pub(crate) body: Body,
}
