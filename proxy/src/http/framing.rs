//! Where a client's HTTP/1 request ends, followed beside hyper, which is given one at a time, and shows a head only after it has
//! settled its framing: of Content-Length and Transfer-Encoding in one head it keeps the latter and drops the former, and nobody
//! behind it can tell.
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
    /// The request has ended.
    End,
    /// The head was ambiguous, or a body cannot be followed: nothing else is served.
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
        Self { part: Part::Head, line, head: Head::default() }
    }
}

impl Framing {
    /// Reads on; how many bytes are the request's.
    pub(super) fn read(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.part {
                Part::End => break,
                Part::Over => return bytes.len(),
                Part::Length(left) => self.part = step_over(&mut rest, left, Part::Length, Part::End),
                Part::Chunk(left) => self.part = step_over(&mut rest, left, Part::Chunk, Part::ChunkEnd),
                Part::Head | Part::ChunkSize | Part::ChunkEnd | Part::Trailers => {
                    let end = rest.iter().position(|&byte| byte == b'\n').map_or(rest.len(), |at| at + 1);
                    let (part, behind) = rest.split_at(end);
                    rest = behind;
                    if let Some(bare_lf) = self.line.push(part) {
                        self.part = self.end_line(bare_lf);
                        self.line.len = 0;
                    }
                }
            }
        }
        bytes.len() - rest.len()
    }

    /// Whether the head at the beginning of `bytes` is ambiguous: it states its body's length in two ways (RFC 9112 6.1), or a line
    /// of it ends without CR, which recipients read differently (RFC 9112 2.2).
    pub(super) fn is_ambiguous(bytes: &[u8]) -> bool {
        let mut framing = Self::default();
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        while framing.part == Part::Head
            && let Some(line) = lines.next()
        {
            framing.read(line);
        }
        framing.part == Part::Over
    }

    /// The request has ended.
    pub(super) fn is_end(&self) -> bool {
        self.part == Part::End
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
            Part::Trailers if empty => Part::End,
            part => part,
        }
    }

    /// The head is complete: its body comes, or nothing.
    fn end_head(&mut self) -> Part {
        let head = std::mem::take(&mut self.head);
        if head.ambiguous || (head.coding && head.length.is_some()) {
            return Part::Over;
        }
        match head.length {
            _ if head.coding => Part::ChunkSize,
            None | Some(0) => Part::End,
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
    const NEXT: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    /// How much of it is the request's and whether that is all, however the bytes are cut in two.
    fn read(bytes: &[u8]) -> (usize, bool) {
        let mut whole = Framing::default();
        let count = whole.read(bytes);
        for cut in 0..bytes.len() {
            let mut framing = Framing::default();
            let (first, second) = bytes.split_at(cut);
            assert_eq!(framing.read(first) + framing.read(second), count, "cut at {cut}");
            assert_eq!(framing.part, whole.part, "cut at {cut}");
        }
        (count, whole.is_end())
    }

    #[test]
    fn both_framing_fields_are_noticed() {
        assert!(Framing::is_ambiguous(BOTH.as_bytes()));
        assert!(Framing::is_ambiguous(b"\r\nPOST / HTTP/1.1\nContent-Length:5\n\n"));
        for fine in [
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nTransfer-Encoding: chunked\r\n",
            "\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
            "GET /?content-length: HTTP/1.1\r\nX-Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length:5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length:\t 18446744073709551615  \r\n\r\n",
        ] {
            assert!(!Framing::is_ambiguous(fine.as_bytes()), "{fine:?}");
            // It is its head alone that counts.
            assert!(!Framing::is_ambiguous(format!("{fine}{BOTH}").as_bytes()), "{fine:?}");
        }
    }

    #[test]
    fn what_is_behind_a_request_is_not_its_own() {
        for request in [
            NEXT,
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nContent-Length:              0000000000000005\r\n\r\nhello",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0A \r\n\r\n\r\n\r\n12345\r\n\
             0\r\nSum: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000000005\r\nhello\r\n000\r\n\r\n",
        ] {
            let length = request.len();
            assert_eq!(read(request.as_bytes()), (length, true), "{request:?}");
            assert_eq!(read(format!("{request}{NEXT}").as_bytes()), (length, true), "{request:?}");
            assert_eq!(read(&request.as_bytes()[..length - 1]), (length - 1, false), "{request:?}");
        }
        // In a body it is no head.
        let length = NEXT.len();
        let request = format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{NEXT}");
        assert_eq!(read(request.as_bytes()), (request.len(), true));
        // What cannot be followed never ends.
        let request = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n{NEXT}");
        assert_eq!(read(request.as_bytes()), (request.len(), false));
        assert_eq!(read(format!("{BOTH}{NEXT}").as_bytes()), (BOTH.len() + length, false));
    }

    proptest! {
        /// Whatever comes, and however it is cut, the request ends at the same place.
        #[test]
        fn cuts_change_nothing(bytes in "[GET /:0-9a-fA-F\r\n]{0,80}", cuts in proptest::collection::vec(0_usize..80, 0..4)) {
            let bytes = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{bytes}");
            let mut whole = Framing::default();
            let count = whole.read(bytes.as_bytes());
            let (mut framing, mut counted, mut from) = (Framing::default(), 0, 0);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([bytes.len()]).collect();
            cuts.sort_unstable();
            for cut in cuts {
                counted += framing.read(&bytes.as_bytes()[from..cut]);
                from = cut;
            }
            prop_assert_eq!((counted, framing.part), (count, whole.part));
        }
    }
}
