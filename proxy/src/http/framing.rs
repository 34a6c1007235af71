//! Where a client's HTTP/1 requests begin and end, followed beside hyper, which shows a head only after it has settled
//! its framing: of Content-Length and Transfer-Encoding in one head it keeps the latter and drops the former, and nobody
//! behind it can tell. Every head is looked at here, also one that follows another in the same packet.
//!
//! Bodies are stepped over, not read: a length at once, a chunk by its size. What hyper refuses by itself (a malformed
//! length, another coding than chunked, folded lines) need not be understood: nothing is served after it.

/// Bytes of a line that are kept, without blanks: enough for `content-length:` and any 64-bit number.
const LINE: usize = 40;
const CONTENT_LENGTH: &[u8] = b"content-length:";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding:";

/// See the module.
#[derive(Debug)]
pub(super) struct Framing {
    part: Part,
    line: Line,
    head: Head,
    /// Complete heads so far.
    heads: u64,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Head,
    /// So many bytes of a body.
    Length(u64),
    ChunkSize,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The line end after a chunk.
    ChunkEnd,
    Trailers,
    /// A head was ambiguous, or a body cannot be followed: what comes next is not served.
    Over,
}

/// The beginning of the present line, lower case and without blanks.
#[derive(Debug)]
struct Line {
    kept: [u8; LINE],
    len: usize,
    last: u8,
}

/// What the present head has shown.
#[derive(Debug, Default)]
struct Head {
    /// Its request line.
    begun: bool,
    length: Option<u64>,
    coding: bool,
    ambiguous: bool,
}

impl Default for Framing {
    fn default() -> Self {
        let line = Line { kept: [0; LINE], len: 0, last: 0 };
        Self { part: Part::Head, line, head: Head::default(), heads: 0 }
    }
}

impl Framing {
    /// Reads on. The number, counted from 0, of the first head whose framing is ambiguous: it states its body's length in two
    /// ways (RFC 9112 6.1), or a line of it ends without CR, which recipients read differently (RFC 9112 2.2).
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Option<u64> {
        while !bytes.is_empty() {
            match self.part {
                Part::Over => break,
                Part::Length(left) => self.part = step_over(&mut bytes, left, Part::Length, Part::Head),
                Part::Chunk(left) => self.part = step_over(&mut bytes, left, Part::Chunk, Part::ChunkEnd),
                Part::Head | Part::ChunkSize | Part::ChunkEnd | Part::Trailers => {
                    let end = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1);
                    let (part, rest) = bytes.split_at(end);
                    bytes = rest;
                    if let Some(bare_lf) = self.line.push(part) {
                        self.part = self.end_line(bare_lf);
                        self.line.len = 0;
                    }
                }
            }
        }
        (self.part == Part::Over || self.head.ambiguous).then_some(self.heads)
    }

    /// Whether some bytes of a head have come, and not all.
    pub(super) fn in_head(&self) -> bool {
        self.part == Part::Head
            && (self.head.begun || self.line.start().first().is_some_and(|byte| !matches!(byte, b'\r' | b'\n')))
    }

    /// A line is complete: what comes after it.
    fn end_line(&mut self, bare_lf: bool) -> Part {
        let line = self.line.start();
        let empty = line == b"\r\n" || line == b"\n";
        match self.part {
            Part::Head => {
                self.head.ambiguous |= bare_lf;
                if !empty {
                    self.head.line(line);
                    return Part::Head;
                }
                // Empty lines before the request line are skipped (RFC 9112 2.2).
                if self.head.begun { self.end_head() } else { Part::Head }
            }
            Part::ChunkSize => {
                let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
                let size = line.get(..digits).and_then(|digits| std::str::from_utf8(digits).ok());
                match size.and_then(|size| u64::from_str_radix(size, 16).ok()) {
                    Some(0) => Part::Trailers,
                    // As many digits as are kept: there may be more.
                    Some(size) if digits < LINE => Part::Chunk(size),
                    _ => Part::Over,
                }
            }
            Part::ChunkEnd => Part::ChunkSize,
            Part::Trailers if empty => Part::Head,
            part => part,
        }
    }

    /// A head is complete: its body comes, or the next head.
    fn end_head(&mut self) -> Part {
        let head = std::mem::take(&mut self.head);
        if head.ambiguous || (head.coding && head.length.is_some()) {
            return Part::Over;
        }
        self.heads += 1;
        match head.length {
            _ if head.coding => Part::ChunkSize,
            None | Some(0) => Part::Head,
            Some(length) => Part::Length(length),
        }
    }
}

/// Drops bytes that belong to a body of which `left` are to come: what the next byte belongs to.
fn step_over(bytes: &mut &[u8], left: u64, more: impl Fn(u64) -> Part, then: Part) -> Part {
    let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    *bytes = bytes.get(count..).unwrap_or_default();
    match left - count as u64 {
        0 => then,
        left => more(left),
    }
}

impl Line {
    fn start(&self) -> &[u8] {
        self.kept.get(..self.len).unwrap_or_default()
    }

    /// Whether more of the line is of interest than what it begins with: a body's length, or a chunk's.
    fn is_number(&self) -> bool {
        let start = self.start();
        start.starts_with(CONTENT_LENGTH) || start.first().is_some_and(u8::is_ascii_digit)
    }

    /// Takes a part of the line in. At its end: whether that was an LF without CR.
    fn push(&mut self, part: &[u8]) -> Option<bool> {
        for byte in part {
            if self.len == TRANSFER_ENCODING.len() && !self.is_number() {
                break;
            }
            if matches!(byte, b' ' | b'\t') {
                continue;
            }
            let Some(slot) = self.kept.get_mut(self.len) else { break };
            *slot = byte.to_ascii_lowercase();
            self.len += 1;
        }
        let ended = match part {
            [before @ .., b'\n'] => Some(before.last().unwrap_or(&self.last) != &b'\r'),
            _ => None,
        };
        self.last = part.last().copied().unwrap_or_default();
        ended
    }
}

impl Head {
    /// A line that is not empty, from its start.
    fn line(&mut self, line: &[u8]) {
        if !self.begun {
            self.begun = true;
        } else if let Some(value) = line.strip_prefix(CONTENT_LENGTH) {
            let digits = value.strip_suffix(b"\r\n").or_else(|| value.strip_suffix(b"\n"));
            let length = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
            // hyper refuses what is no number; leading zeros without end it would take.
            self.ambiguous |= length.is_none() || self.length.is_some_and(|held| length != Some(held));
            self.length = length.or(self.length);
        } else if line.starts_with(TRANSFER_ENCODING) {
            self.coding = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-LENGTH: 5\r\nX: y\r\ntransfer-Encoding: chunked\r\n\r\n";

    /// The verdict however the bytes are cut in two.
    fn read(bytes: &[u8]) -> Option<u64> {
        let whole = Framing::default().read(bytes);
        for cut in 0..bytes.len() {
            let mut framing = Framing::default();
            let (first, second) = bytes.split_at(cut);
            assert_eq!(framing.read(first).or_else(|| framing.read(second)), whole, "cut at {cut}");
        }
        whole
    }

    #[test]
    fn both_framing_fields_are_noticed() {
        assert_eq!(read(BOTH.as_bytes()), Some(0));
        assert_eq!(read(b"\r\nPOST / HTTP/1.1\nContent-Length:5\n\n"), Some(0));
        for fine in [
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nTransfer-Encoding: chunked\r\n",
            "\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
            "GET /?content-length: HTTP/1.1\r\nX-Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length:5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length:\t 18446744073709551615  \r\n\r\n",
        ] {
            assert_eq!(read(fine.as_bytes()), None, "{fine:?}");
        }
    }

    #[test]
    fn a_head_behind_another_request_is_looked_at() {
        for first in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nContent-Length:              0000000000000005\r\n\r\nhello\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0A \r\n\r\n\r\n\r\n12345\r\n\
             0\r\nSum: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000000005\r\nhello\r\n000\r\n\r\n",
        ] {
            assert_eq!(read(first.as_bytes()), None, "{first:?}");
            assert_eq!(read(format!("{first}{first}{BOTH}").as_bytes()), Some(2), "{first:?}");
        }
        // In a body it is no head.
        let length = BOTH.len();
        assert_eq!(read(format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{BOTH}").as_bytes()), None);
        let chunk = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{BOTH}\r\n0\r\n\r\n");
        assert_eq!(read(chunk.as_bytes()), None);
    }

    #[test]
    fn a_head_is_told_from_what_is_between_heads() {
        let mut framing = Framing::default();
        for (bytes, in_head) in [
            ("\r\n", false),
            ("G", true),
            ("ET / HTTP/1.1\r\n", true),
            ("Content-Length: 2\r\n\r\n", false),
            ("h", false),
            ("iP", true),
            ("UT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", true),
            ("\r\n", false),
            ("0\r\nSum: 1\r\n", false),
            ("\r\n", false),
        ] {
            framing.read(bytes.as_bytes());
            assert_eq!(framing.in_head(), in_head, "after {bytes:?}");
        }
    }

    proptest! {
        /// Whatever comes, and however it is cut, the verdict is the same.
        #[test]
        fn cuts_change_nothing(bytes in "[GET /:0-9a-fA-F\r\n]{0,80}", cuts in proptest::collection::vec(0_usize..80, 0..4)) {
            let bytes = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{bytes}");
            let whole = Framing::default().read(bytes.as_bytes());
            let mut framing = Framing::default();
            let mut verdict = None;
            let mut from = 0;
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([bytes.len()]).collect();
            cuts.sort_unstable();
            for cut in cuts {
                verdict = verdict.or_else(|| framing.read(&bytes.as_bytes()[from..cut]));
                from = cut;
            }
            prop_assert_eq!(verdict, whole);
        }
    }
}
