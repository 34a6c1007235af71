//! Huffman codes of HPACK (RFC 7541, 5.2 and appendix B). The code is canonical: the lengths alone define it.

use super::Malformed;

/// Bits of each symbol's code; the last is EOS.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];

/// Bits looked up at once. The codes of all that is common are no longer.
const FAST_BITS: u32 = 9;
const LONGEST: usize = 30;
const EOS: u16 = 256;

struct Codes {
    /// By the next [`FAST_BITS`]: the symbol and its length; 0: the code is longer.
    fast: [(u8, u8); 1 << FAST_BITS],
    /// Symbols by length, then value.
    sorted: [u16; 257],
    /// By length: the first code, where its symbol is in `sorted`, how many there are.
    first: [u32; LONGEST + 1],
    offset: [u16; LONGEST + 1],
    count: [u16; LONGEST + 1],
}

static CODES: Codes = build();

const fn build() -> Codes {
    let mut codes = Codes {
        fast: [(0, 0); 1 << FAST_BITS],
        sorted: [0; 257],
        first: [0; LONGEST + 1],
        offset: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
    };
    let mut code: u32 = 0;
    let mut place = 0;
    let mut length = 1;
    while length <= LONGEST {
        code <<= 1;
        codes.first[length] = code;
        codes.offset[length] = place as u16;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                codes.sorted[place] = symbol as u16;
                if length <= FAST_BITS as usize {
                    let shift = FAST_BITS as usize - length;
                    let mut low = 0;
                    while low < 1 << shift {
                        codes.fast[((code as usize) << shift) | low] = (symbol as u8, length as u8);
                        low += 1;
                    }
                }
                place += 1;
                code += 1;
                codes.count[length] += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    codes
}

/// Appends what `coded` stands for.
pub(super) fn decode(coded: &[u8], into: &mut Vec<u8>) -> Result<(), Malformed> {
    into.reserve(coded.len() * 8 / 5);
    let mut input = coded.iter();
    // The next bits, leftmost first, and how many there are.
    let (mut bits, mut have) = (0_u64, 0_u32);
    loop {
        while have <= 56 {
            let Some(&byte) = input.next() else { break };
            bits |= u64::from(byte) << (56 - have);
            have += 8;
        }
        let (mut symbol, mut length) = match CODES.fast.get((bits >> (64 - FAST_BITS)) as usize) {
            Some(&(symbol, length)) => (u16::from(symbol), u32::from(length)),
            None => (0, 0),
        };
        if length == 0 {
            (symbol, length) = long(bits).ok_or(Malformed)?;
        }
        if length > have {
            // What is left is padding: the beginning of EOS, shorter than a byte.
            return if have < 8 && bits >> (56) == !(0xff_u64 >> have) & 0xff { Ok(()) } else { Err(Malformed) };
        }
        if symbol == EOS {
            return Err(Malformed);
        }
        into.push(symbol as u8);
        bits <<= length;
        have -= length;
    }
}

/// The symbol whose code of more than [`FAST_BITS`] bits `bits` begins with.
fn long(bits: u64) -> Option<(u16, u32)> {
    let lengths = CODES.first.iter().zip(&CODES.offset).zip(&CODES.count).enumerate();
    for (length, ((first, offset), count)) in lengths.skip(FAST_BITS as usize + 1) {
        let at = ((bits >> (64 - length)) as u32).wrapping_sub(*first);
        if at < u32::from(*count) {
            let symbol = CODES.sorted.get(usize::from(*offset) + at as usize)?;
            return Some((*symbol, length as u32));
        }
    }
    None
}

/// For tests: we send no Huffman codes.
#[cfg(test)]
pub(super) fn encode(plain: &[u8], into: &mut Vec<u8>) {
    let (mut bits, mut have) = (0_u64, 0_u32);
    for &byte in plain {
        let length = usize::from(LENGTHS[usize::from(byte)]);
        let start = usize::from(CODES.offset[length]);
        let at = CODES.sorted[start..].iter().position(|&symbol| symbol == u16::from(byte)).unwrap();
        bits = bits << length | u64::from(CODES.first[length] + at as u32);
        have += length as u32;
        while have >= 8 {
            have -= 8;
            into.push((bits >> have) as u8);
        }
    }
    if have > 0 {
        into.push((bits << (8 - have) | 0xff >> have) as u8);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut plain = Vec::new();
        decode(coded, &mut plain).map(|()| plain)
    }

    #[test]
    fn the_rfcs_examples() {
        let www = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&www).unwrap(), b"www.example.com");
        assert_eq!(decoded(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).unwrap(), b"no-cache");
        assert_eq!(decoded(&[0x64, 0x02]).unwrap(), b"302");
    }

    #[test]
    fn padding_is_short_and_of_ones() {
        assert_eq!(decoded(&[0x1f]).unwrap(), b"a", "five bits, and three ones");
        assert!(decoded(&[0x18]).is_err(), "zeros");
        assert!(decoded(&[0x1f, 0xff]).is_err(), "a whole byte");
        assert!(decoded(&[0xff, 0xff, 0xff, 0xff]).is_err(), "EOS");
        assert!(decoded(&[0xff]).is_err());
    }

    proptest! {
        #[test]
        fn all_bytes_come_back(plain in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut coded = Vec::new();
            encode(&plain, &mut coded);
            prop_assert_eq!(decoded(&coded).unwrap(), plain);
        }

        #[test]
        fn nothing_breaks_it(coded in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(plain) = decoded(&coded) {
                let mut again = Vec::new();
                encode(&plain, &mut again);
                prop_assert_eq!(again, coded, "one string has one code");
            }
        }
    }
}
