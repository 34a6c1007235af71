//! W3C trace context (traceparent, tracestate): kept if present and well-formed, made if not.
//!
//! Made, and the hop's own span written into it, only where spans are exported: a proxy that reports nothing must not
//! put itself between two spans, nor decide for the application what is sampled.

use super::head::{Fields, Name, names};
use crate::worker::Random;

/// `00-<32 hex>-<16 hex>-<2 hex>`
const LEN: usize = 55;

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

impl TraceContext {
    /// The trace that the fields belong to, or a new one, sampled with probability `sample`; the fields then
    /// name this hop's span as the parent.
    pub fn join(fields: &mut Fields, random: &Random, sample: f64) -> Self {
        let context = Self::read(fields, random).unwrap_or_else(|| {
            // A tracestate without its traceparent means nothing (Trace Context 3.3).
            fields.remove(names([Name::Tracestate]));
            Self {
                trace_id: made([random.next(), random.next()]),
                parent: None,
                span: random.next().max(1).to_be_bytes(),
                sampled: ((random.next() >> 11) as f64) < sample * (1u64 << 53) as f64,
            }
        });
        fields.set(Name::Traceparent, &context.traceparent());
        context
    }

    /// The trace that the fields belong to; they stay as they are.
    pub fn read(fields: &Fields, random: &Random) -> Option<Self> {
        let (trace_id, parent, flags) = parse(fields.only(Name::Traceparent)?)?;
        Some(Self { trace_id, parent: Some(parent), span: random.next().max(1).to_be_bytes(), sampled: flags & 1 == 1 })
    }

    /// The field value that names this hop's span.
    pub fn traceparent(&self) -> [u8; LEN] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let (_, rest) = text.split_at_mut(3);
        write_hex(rest, &self.trace_id);
        let (_, rest) = text.split_at_mut(36);
        write_hex(rest, &self.span);
        text[LEN - 1] = if self.sampled { b'1' } else { b'0' };
        text
    }
}

fn made(halves: [u64; 2]) -> [u8; 16] {
    let value = (u128::from(halves[0]) << 64) | u128::from(halves[1]);
    value.max(1).to_be_bytes()
}

/// Trace id, parent span and flags (Trace Context 3.2.2). Later versions may be longer.
fn parse(text: &[u8]) -> Option<([u8; 16], [u8; 8], u8)> {
    let [version] = read_hex::<1>(text.get(..2)?)?;
    let dashes = [2, 35, 52].iter().all(|&at| text.get(at) == Some(&b'-'));
    let length = if version == 0 { text.len() == LEN } else { matches!(text.get(LEN), None | Some(b'-')) };
    if version == 0xff || !dashes || !length {
        return None;
    }
    let trace_id = read_hex::<16>(text.get(3..35)?)?;
    let parent = read_hex::<8>(text.get(36..52)?)?;
    let [flags] = read_hex::<1>(text.get(53..55)?)?;
    (trace_id != [0; 16] && parent != [0; 8]).then_some((trace_id, parent, flags))
}

fn read_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair.try_into().ok()?;
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}

fn write_hex(text: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn fields(traceparent: &str) -> Fields {
        Fields::from_iter([("traceparent", traceparent), ("tracestate", "vendor=1")])
    }

    #[test]
    fn a_well_formed_trace_is_kept_and_this_hop_is_the_next_parent() {
        let random = Random::seeded(1);
        let mut fields = fields(GIVEN);
        let context = TraceContext::join(&mut fields, &random, 0.0);
        assert_eq!(context.parent, Some([0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]));
        assert!(context.sampled);
        let sent = fields.text(Name::Traceparent).unwrap().to_owned();
        assert!(sent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && sent.ends_with("-01"), "{sent}");
        assert_ne!(sent, GIVEN);
        assert_eq!(fields.text(Name::Tracestate), Some("vendor=1"));
        let next = TraceContext::read(&fields, &random).unwrap();
        assert_eq!((next.trace_id, next.parent), (context.trace_id, Some(context.span)));
    }

    #[test]
    fn reading_changes_nothing() {
        let fields = fields(GIVEN);
        assert!(TraceContext::read(&fields, &Random::seeded(1)).is_some());
        assert_eq!(fields.text(Name::Traceparent), Some(GIVEN));
    }

    #[test]
    fn what_is_malformed_begins_a_new_trace() {
        for malformed in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473600f067aa0ba902b7-01--",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::read(&fields(malformed), &Random::seeded(1)), None, "{malformed}");
            let mut fields = fields(malformed);
            let context = TraceContext::join(&mut fields, &Random::seeded(1), 1.0);
            assert!(context.parent.is_none() && context.sampled);
            assert!(!fields.has(Name::Tracestate), "{malformed}");
            assert!(TraceContext::read(&fields, &Random::seeded(2)).is_some());
        }
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
        assert!(TraceContext::read(&fields(later), &Random::seeded(1)).is_some());
    }

    #[test]
    fn new_traces_are_sampled_by_share() {
        let random = Random::seeded(7);
        let sampled =
            |share| (0..1000).filter(|_| TraceContext::join(&mut Fields::new(), &random, share).sampled).count();
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 1000));
        assert!((50..200).contains(&sampled(0.1)));
    }
}
