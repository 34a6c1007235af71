//! The tables of HPACK (RFC 7541, 2.3 and appendix A).

use std::collections::VecDeque;

/// What RFC 7541 4.1 adds to the size of each entry.
pub(super) const OVERHEAD: usize = 32;

/// Entries with a number, from 1.
pub(super) const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// A dynamic table: its entries' bytes in a row, the oldest first.
#[derive(Debug)]
pub(super) struct Table {
    bytes: Vec<u8>,
    /// The position of the first of `bytes`, counted since the beginning.
    base: u64,
    entries: VecDeque<Entry>,
    /// As RFC 7541 4.1 counts it.
    size: usize,
    limit: usize,
    /// Entries ever added.
    added: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    at: u64,
    name: u32,
    value: u32,
}

impl Entry {
    fn len(self) -> usize {
        self.name as usize + self.value as usize
    }
}

impl Table {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), base: 0, entries: VecDeque::new(), size: 0, limit, added: 0 }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.shrink_to(limit);
    }

    /// The entry with that number, from either table.
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let place = index.checked_sub(1)?;
        match STATIC.get(place) {
            Some((name, value)) => Some((name.as_bytes(), value.as_bytes())),
            None => self.dynamic(place - STATIC.len()),
        }
    }

    /// The `age`th youngest, from 0.
    fn dynamic(&self, age: usize) -> Option<(&[u8], &[u8])> {
        let entry = self.entries.get(self.entries.len().checked_sub(age + 1)?)?;
        let start = (entry.at - self.base) as usize;
        self.bytes.get(start..start + entry.len())?.split_at_checked(entry.name as usize)
    }

    /// Entries ever added; the next one's name for [`Self::index_of`].
    pub(super) fn added(&self) -> u64 {
        self.added
    }

    /// The number that the `nth` entry ever added has now, if it is still there.
    pub(super) fn index_of(&self, nth: u64) -> Option<usize> {
        let age = self.added.checked_sub(nth + 1)? as usize;
        (age < self.entries.len()).then_some(STATIC.len() + 1 + age)
    }

    /// One that is larger than the table empties it (RFC 7541, 4.4). Whether it is there now.
    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) -> bool {
        let length = name.len() + value.len();
        let Some(rest) = self.limit.checked_sub(length + OVERHEAD) else {
            self.shrink_to(0);
            return false;
        };
        self.shrink_to(rest);
        let oldest = self.entries.front().map(|entry| (entry.at - self.base) as usize);
        match oldest {
            None => {
                self.base += self.bytes.len() as u64;
                self.bytes.clear();
            }
            // What was dropped is as long as what may be kept: made room of.
            Some(start) if start >= self.limit => {
                self.bytes.drain(..start);
                self.base += start as u64;
            }
            Some(_) => {}
        }
        let at = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.entries.push_back(Entry { at, name: name.len() as u32, value: value.len() as u32 });
        self.size += length + OVERHEAD;
        self.added += 1;
        true
    }

    /// Takes no more room than its entries need.
    pub(super) fn compact(&mut self) {
        let start = self.entries.front().map_or(self.bytes.len(), |entry| (entry.at - self.base) as usize);
        self.bytes.drain(..start.min(self.bytes.len()));
        self.base += start as u64;
        self.bytes.shrink_to_fit();
        self.entries.shrink_to_fit();
    }

    fn shrink_to(&mut self, size: usize) {
        while self.size > size {
            let Some(entry) = self.entries.pop_front() else { break };
            self.size -= entry.len() + OVERHEAD;
        }
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_youngest_comes_first_and_the_oldest_goes() {
        let mut table = Table::new(100);
        assert!(table.add(b"a", b"1") && table.add(b"b", b"2"));
        assert_eq!((table.get(62), table.get(63)), (Some((&b"b"[..], &b"2"[..])), Some((&b"a"[..], &b"1"[..]))));
        assert_eq!((table.index_of(0), table.index_of(1), table.index_of(2)), (Some(63), Some(62), None));
        assert!(table.add(b"c", b"3"));
        assert_eq!((table.get(63), table.get(64)), (Some((&b"b"[..], &b"2"[..])), None));
        assert_eq!((table.index_of(0), table.size()), (None, 68));
        assert!(!table.add(&[b'x'; 69], b""), "larger than the table");
        assert_eq!((table.size(), table.get(62)), (0, None));
        assert_eq!((table.get(0), table.get(61)), (None, Some((&b"www-authenticate"[..], &b""[..]))));
    }

    #[test]
    fn what_is_gone_takes_no_room() {
        let mut table = Table::new(4096);
        for n in 0..100_000_u32 {
            let value = n.to_string();
            table.add(b"name", value.as_bytes());
            assert_eq!(table.get(62), Some((&b"name"[..], value.as_bytes())));
            assert!(table.bytes.len() <= 2 * 4096 && table.size <= 4096);
            if n % 1000 == 0 {
                table.compact();
                assert_eq!(table.get(62), Some((&b"name"[..], value.as_bytes())));
            }
        }
    }
}
