//! Why connections and streams end.

use std::{fmt, io};

/// An error code (RFC 9113, 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    pub const NO_ERROR: Self = Self(0);
    pub const PROTOCOL_ERROR: Self = Self(1);
    pub const INTERNAL_ERROR: Self = Self(2);
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    pub const SETTINGS_TIMEOUT: Self = Self(4);
    pub const STREAM_CLOSED: Self = Self(5);
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    pub const REFUSED_STREAM: Self = Self(7);
    pub const CANCEL: Self = Self(8);
    pub const COMPRESSION_ERROR: Self = Self(9);
    pub const CONNECT_ERROR: Self = Self(10);
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
    pub const INADEQUATE_SECURITY: Self = Self(12);
    pub const HTTP_1_1_REQUIRED: Self = Self(13);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::NO_ERROR => "NO_ERROR",
            Self::PROTOCOL_ERROR => "PROTOCOL_ERROR",
            Self::INTERNAL_ERROR => "INTERNAL_ERROR",
            Self::FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
            Self::SETTINGS_TIMEOUT => "SETTINGS_TIMEOUT",
            Self::STREAM_CLOSED => "STREAM_CLOSED",
            Self::FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
            Self::REFUSED_STREAM => "REFUSED_STREAM",
            Self::CANCEL => "CANCEL",
            Self::COMPRESSION_ERROR => "COMPRESSION_ERROR",
            Self::CONNECT_ERROR => "CONNECT_ERROR",
            Self::ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
            Self::INADEQUATE_SECURITY => "INADEQUATE_SECURITY",
            Self::HTTP_1_1_REQUIRED => "HTTP_1_1_REQUIRED",
            Self(other) => return write!(f, "error code {other}"),
        };
        f.write_str(name)
    }
}

/// The peer broke the rules, or went beyond a limit: what the connection is ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: Code,
    pub(super) what: &'static str,
}

impl Fault {
    pub(super) const fn new(code: Code, what: &'static str) -> Self {
        Self { code, what }
    }

    pub(super) const fn protocol(what: &'static str) -> Self {
        Self::new(Code::PROTOCOL_ERROR, what)
    }

    pub(super) const fn flood(what: &'static str) -> Self {
        Self::new(Code::ENHANCE_YOUR_CALM, what)
    }
}

/// Why a connection ended other than cleanly.
#[derive(Debug, thiserror::Error)]
pub enum H2Error {
    #[error("HTTP/2 connection: {0}")]
    Io(#[from] io::Error),
    /// The peer left with streams open.
    #[error("HTTP/2 connection closed by the peer with streams open")]
    Closed,
    /// The peer ended it with a GOAWAY that says so.
    #[error("HTTP/2 connection ended by the peer: {0}")]
    Peer(Code),
    /// We found fault with what the peer sent.
    #[error("HTTP/2 connection ended with {code}: {what}")]
    Fault { code: Code, what: &'static str },
    /// A ping was not answered in time.
    #[error("HTTP/2 peer does not answer pings")]
    PingTimeout,
}

/// Why a stream ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct StreamError {
    pub kind: Kind,
    pub code: Code,
    cause: Cause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The peer reset the stream.
    Reset,
    /// The peer has certainly not processed it: it refused the stream, or left before it, or its head was never written.
    Unprocessed,
    /// Its connection ended.
    Connection,
    /// What the peer sent on it was malformed, or beyond a limit.
    Malformed,
    /// We reset it.
    Cancelled,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Cause {
    Static(&'static str),
    Code(Code),
    Text(Box<str>),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static(text) => f.write_str(text),
            Self::Code(code) => write!(f, "stream reset by the peer: {code}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl StreamError {
    pub(super) fn new(kind: Kind, code: Code, cause: &'static str) -> Self {
        Self { kind, code, cause: Cause::Static(cause) }
    }

    /// Of no use any more, for a reason that is not the stream's.
    pub(crate) fn cancelled() -> Self {
        Self::new(Kind::Cancelled, Code::CANCEL, "given up")
    }

    pub(super) fn reset(code: Code) -> Self {
        let kind = if code == Code::REFUSED_STREAM { Kind::Unprocessed } else { Kind::Reset };
        Self { kind, code, cause: Cause::Code(code) }
    }

    /// The connection ended; `written`: whether any of the request may have been sent.
    pub(super) fn connection(code: Code, why: &str, written: bool) -> Self {
        let kind = if written { Kind::Connection } else { Kind::Unprocessed };
        Self { kind, code, cause: Cause::Text(why.into()) }
    }

    /// Whether the peer has certainly not processed the request: it may be sent elsewhere, whatever it is.
    pub fn is_unprocessed(&self) -> bool {
        self.kind == Kind::Unprocessed
    }
}

/// No stream can be opened on the connection (any more, or at present).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the HTTP/2 connection is closing or closed")]
    Closed,
    #[error("the HTTP/2 peer allows no more streams at present")]
    Full,
    /// The peer does not announce extended CONNECT (RFC 8441).
    #[error("the HTTP/2 peer takes no extended CONNECT")]
    NoConnectProtocol,
}
