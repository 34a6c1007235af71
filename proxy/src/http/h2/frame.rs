//! Frames (RFC 9113, 4 and 6): their headers, and bytes cut into frames.

use super::error::{Code, Fault};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
/// An extension of ours (RFC 9113, 5.5), sent only to whom announces [`REPORTS_LOAD`]: asks a server how much it has to do; with
/// [`ACK`], says so.
pub(super) const LOAD: u8 = 0xf4;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const WITH_PRIORITY: u8 = 0x20;

pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_FRAME_SIZE: u16 = 5;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;
pub(super) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
/// A setting of ours: 1 announces that [`LOAD`] is answered.
pub(super) const REPORTS_LOAD: u16 = 0xf4f4;

/// What a client sends first.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frames that may be sent before SETTINGS say otherwise, and the windows at the beginning.
pub(super) const DEFAULT_FRAME_BYTES: u32 = 16 * 1024;
pub(super) const DEFAULT_WINDOW: u32 = 65_535;
pub(super) const LARGEST_WINDOW: i64 = 0x7fff_ffff;
pub(super) const HEADER_BYTES: usize = 9;

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Header {
    fn parse([a, b, c, kind, flags, s0, s1, s2, s3]: [u8; HEADER_BYTES]) -> Self {
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
        Self { length: u32::from_be_bytes([0, a, b, c]), kind, flags, stream }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends a frame's header.
pub(super) fn header(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&header_bytes(length, kind, flags, stream));
}

/// A frame's header.
pub(super) fn header_bytes(length: usize, kind: u8, flags: u8, stream: u32) -> [u8; HEADER_BYTES] {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    [a, b, c, kind, flags, s0, s1, s2, s3]
}

/// Appends a whole frame.
pub(super) fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    header(out, payload.len(), kind, flags, stream);
    out.extend_from_slice(payload);
}

/// What the next bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// Any frame but DATA.
    Frame(Header, &'a [u8]),
    /// Bytes of a DATA frame, as they come: the first of it, the last of it, or both.
    Data { header: Header, bytes: &'a [u8], begins: bool, ends: bool },
}

/// Cuts bytes into frames. A frame in pieces is kept until it is complete, but for DATA, which is passed on as it comes.
#[derive(Debug)]
pub(super) struct Reader {
    /// Payloads taken at most: SETTINGS_MAX_FRAME_SIZE as we announced it.
    most: u32,
    kept: Vec<u8>,
    /// `kept` was handed out.
    spent: bool,
    data: Option<Data>,
}

/// A DATA frame in progress.
#[derive(Debug, Clone, Copy)]
struct Data {
    header: Header,
    begun: bool,
    /// The pad length comes next.
    padded: bool,
    /// Bytes of data, and of padding, still to come.
    left: u32,
    padding: u32,
}

impl Reader {
    pub(super) fn new(most: u32) -> Self {
        Self { most, kept: Vec::new(), spent: false, data: None }
    }

    /// Whether a frame (other than DATA) is there in part.
    pub(super) fn is_amid(&self) -> bool {
        !self.kept.is_empty() && !self.spent
    }

    /// The next part of `input`, which moves on; None: all is read, or kept.
    pub(super) fn next<'r, 'i: 'r>(&'r mut self, input: &mut &'i [u8]) -> Result<Option<Part<'r>>, Fault> {
        if self.spent {
            self.spent = false;
            self.kept = Vec::new();
        }
        if let Some(part) = self.next_of_data(input)? {
            return Ok(Some(part));
        }
        if self.data.is_some() || input.is_empty() {
            return Ok(None);
        }
        if self.kept.is_empty() {
            if let Some((bytes, rest)) = input.split_first_chunk() {
                let header = self.begin(*bytes)?;
                if self.data.is_some() {
                    *input = rest;
                    return self.next_of_data(input);
                }
                if let Some((payload, rest)) = rest.split_at_checked(header.length as usize) {
                    *input = rest;
                    return Ok(Some(Part::Frame(header, payload)));
                }
            }
            self.kept.extend_from_slice(input);
            *input = &[];
            return Ok(None);
        }
        self.top_up(input, HEADER_BYTES);
        let Some(bytes) = self.kept.first_chunk() else { return Ok(None) };
        let header = self.begin(*bytes)?;
        if self.data.is_some() {
            self.kept = Vec::new();
            return self.next_of_data(input);
        }
        let whole = HEADER_BYTES + header.length as usize;
        self.top_up(input, whole);
        if self.kept.len() < whole {
            return Ok(None);
        }
        self.spent = true;
        Ok(Some(Part::Frame(header, self.kept.get(HEADER_BYTES..).unwrap_or_default())))
    }

    /// Keeps more of `input`, until so many bytes are kept.
    fn top_up(&mut self, input: &mut &[u8], whole: usize) {
        let missing = whole.saturating_sub(self.kept.len()).min(input.len());
        let (more, rest) = input.split_at_checked(missing).unwrap_or_default();
        self.kept.extend_from_slice(more);
        *input = rest;
    }

    fn begin(&mut self, bytes: [u8; HEADER_BYTES]) -> Result<Header, Fault> {
        let header = Header::parse(bytes);
        if header.length > self.most {
            return Err(Fault::new(Code::FRAME_SIZE_ERROR, "frame larger than announced"));
        }
        if header.kind == DATA {
            if header.stream == 0 {
                return Err(Fault::protocol("DATA on stream 0"));
            }
            let padded = header.has(PADDED);
            if padded && header.length == 0 {
                return Err(Fault::new(Code::FRAME_SIZE_ERROR, "padded DATA without pad length"));
            }
            let left = header.length - u32::from(padded);
            self.data = Some(Data { header, begun: false, padded, left, padding: 0 });
        }
        Ok(header)
    }

    fn next_of_data<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Part<'a>>, Fault> {
        let Some(data) = &mut self.data else { return Ok(None) };
        if data.padded {
            let Some((&length, rest)) = input.split_first() else { return Ok(None) };
            *input = rest;
            data.padded = false;
            data.padding = u32::from(length);
            data.left = data.left.checked_sub(data.padding).ok_or(Fault::protocol("more padding than payload"))?;
        }
        let (bytes, rest) = input.split_at(input.len().min(data.left as usize));
        data.left -= bytes.len() as u32;
        let (padding, rest) = rest.split_at(rest.len().min(data.padding as usize));
        if data.left == 0 {
            data.padding -= padding.len() as u32;
            *input = rest;
        } else {
            *input = &[];
        }
        let ends = data.left == 0 && data.padding == 0;
        if bytes.is_empty() && !ends {
            return Ok(None);
        }
        let begins = !std::mem::replace(&mut data.begun, true);
        let header = data.header;
        if ends {
            self.data = None;
        }
        Ok(Some(Part::Data { header, bytes, begins, ends }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        frame(&mut out, SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
        frame(&mut out, DATA, 0, 1, b"hello");
        frame(&mut out, DATA, PADDED, 1, b"\x02worldPP");
        frame(&mut out, DATA, 0, 3, b"");
        frame(&mut out, DATA, PADDED | END_STREAM, 3, b"\x03PPP");
        frame(&mut out, PING, ACK, 0, b"12345678");
        out
    }

    /// Frames, DATA joined to (stream, bytes).
    fn read(pieces: &[&[u8]]) -> (Vec<(u8, u32, Vec<u8>)>, bool) {
        let mut reader = Reader::new(100);
        let mut all: Vec<(u8, u32, Vec<u8>)> = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            while let Some(part) = reader.next(&mut input).unwrap() {
                match part {
                    Part::Frame(header, payload) => all.push((header.kind, header.stream, payload.to_vec())),
                    Part::Data { header, bytes, begins, .. } => {
                        if begins {
                            all.push((DATA, header.stream, Vec::new()));
                        }
                        all.last_mut().unwrap().2.extend_from_slice(bytes);
                    }
                }
            }
            assert!(input.is_empty());
        }
        (all, reader.is_amid())
    }

    #[test]
    fn frames_are_cut() {
        let (frames, amid) = read(&[&sample()]);
        let expected: [(u8, u32, &[u8]); 6] = [
            (SETTINGS, 0, &[0, 3, 0, 0, 0, 100]),
            (DATA, 1, b"hello"),
            (DATA, 1, b"world"),
            (DATA, 3, b""),
            (DATA, 3, b""),
            (PING, 0, b"12345678"),
        ];
        assert_eq!(frames, expected.map(|(kind, stream, bytes)| (kind, stream, bytes.to_vec())));
        assert!(!amid);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |kind, flags, stream, payload: &[u8]| {
            let mut out = Vec::new();
            frame(&mut out, kind, flags, stream, payload);
            Reader::new(100).next(&mut &out[..]).unwrap_err().code
        };
        assert_eq!(refused(HEADERS, 0, 1, &[0; 101]), Code::FRAME_SIZE_ERROR);
        assert_eq!(refused(DATA, 0, 0, b"x"), Code::PROTOCOL_ERROR);
        assert_eq!(refused(DATA, PADDED, 1, b""), Code::FRAME_SIZE_ERROR);
        assert_eq!(refused(DATA, PADDED, 1, b"\x02x"), Code::PROTOCOL_ERROR);
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(cuts in proptest::collection::vec(0_usize..sample().len(), 0..20)) {
            let all = sample();
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&all[from..cut]);
                from = cut;
            }
            pieces.push(&all[from..]);
            prop_assert_eq!(read(&pieces), read(&[&all]));
        }
    }
}
