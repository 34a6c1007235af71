//! HTTP as the proxy sees it: a request head and body in, a response head and body out. hyper reads and writes
//! the wire; everything between is written against [`Body`] and `http`'s heads.

pub mod body;
mod client_stream;
pub mod exchange;
pub mod filter;
pub(crate) mod forward;
mod framing;
pub mod head;
pub mod headers;
mod request_body;
pub mod respond;
pub mod retry;
pub mod serve;
pub mod trace_context;
pub mod upgrade;
mod watch;

pub use body::Body;
