//! W3C trace context (traceparent, tracestate): kept if present and well-formed, made if not.

/// The trace a request belongs to, and this hop's place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    /// The span this hop is a child of; None: this hop begins the trace.
    pub parent: Option<[u8; 8]>,
    /// This hop's own span, sent on as the parent of the next.
    pub span: [u8; 8],
    pub sampled: bool,
}
