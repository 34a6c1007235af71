//! A hash that is the same in every proxy, version and architecture, because proxies must agree by it: FNV-1a, with the
//! last mixing of MurmurHash3. Not against attackers, who could send the same key all the time anyway.

/// The hash of some bytes.
pub fn of(bytes: &[u8]) -> u64 {
    let folded = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    mix(folded, 0)
}

/// Another hash of what has that hash, for each `turn`.
pub fn mix(hash: u64, turn: u64) -> u64 {
    let mut z = hash.wrapping_add(turn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    z = (z ^ (z >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    z ^ (z >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proxies of different versions must agree.
    #[test]
    fn hashes_never_change() {
        assert_eq!([of(b""), of(b"a"), of(b"10.0.0.1:80")], EXPECTED);
    }

    const EXPECTED: [u64; 3] = [0xefd0_1f60_ba99_2926, 0x82a2_a958_a9be_ce5b, 0x5ed8_f827_5e47_a14a];
}
