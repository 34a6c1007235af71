//! What proxies can do beyond version 1 of the protocol, as they name it when they open a stream (`Open.capabilities`). Who does
//! not name what a resource needs is not sent it, since it would pass over what it does not know.

/// Limits on the size of requests: `InboundPolicy.max_head_bytes` and `max_body_bytes`.
pub const REQUEST_SIZE: &str = "request-size";

/// All that there are.
pub const ALL: [&str; 1] = [REQUEST_SIZE];
