//! Content hashes: the same content gives the same text on every machine and after every restart.

use std::fmt;

use serde_json::Value;

/// FNV-1a with 128 bits (draft-eastlake-fnv): tells contents apart, is no defence against somebody who makes collisions on purpose,
/// and need not be: who writes the configuration can change it anyway.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ContentHash(u128);

impl ContentHash {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

    pub(crate) fn new() -> Self {
        Self(Self::OFFSET)
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let mut hash = Self::new();
        hash.bytes(bytes);
        hash
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(Self::PRIME);
        }
    }

    /// Text with its length, so that neighbours cannot run into each other.
    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(&(text.len() as u64).to_le_bytes());
        self.bytes(text.as_bytes());
    }

    /// JSON by content: key order and formatting do not count.
    pub(crate) fn json(&mut self, value: &Value) {
        match value {
            Value::Null => self.bytes(b"n"),
            Value::Bool(false) => self.bytes(b"f"),
            Value::Bool(true) => self.bytes(b"t"),
            Value::Number(number) => {
                self.bytes(b"#");
                self.text(&number.to_string());
            }
            Value::String(text) => {
                self.bytes(b"s");
                self.text(text);
            }
            Value::Array(items) => {
                self.bytes(b"[");
                for item in items {
                    self.json(item);
                }
                self.bytes(b"]");
            }
            Value::Object(fields) => {
                self.bytes(b"{");
                let mut sorted: Vec<_> = fields.iter().collect();
                sorted.sort_unstable_by_key(|(name, _)| *name);
                for (name, value) in sorted {
                    self.text(name);
                    self.json(value);
                }
                self.bytes(b"}");
            }
        }
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: &Value) -> String {
        let mut hash = ContentHash::new();
        hash.json(value);
        hash.to_string()
    }

    #[test]
    fn known_vectors_of_fnv_1a_128() {
        assert_eq!(ContentHash::of_bytes(b"").to_string(), "6c62272e07bb014262b821756295c58d");
        assert_eq!(ContentHash::of_bytes(b"a").to_string(), "d228cb696f1a8caf78912b704e4a8964");
    }

    #[test]
    fn structure_counts_and_order_of_keys_does_not() {
        assert_eq!(of(&json!({"a": 1, "b": [true, "x"]})), of(&json!({"b": [true, "x"], "a": 1})));
        assert_ne!(of(&json!(["ab", "c"])), of(&json!(["a", "bc"])));
        assert_ne!(of(&json!([["a"], "b"])), of(&json!([["a", "b"]])));
        assert_ne!(of(&json!("1")), of(&json!(1)));
    }
}
