//! Reads header blocks (RFC 7541, 3).

use super::{Malformed, huffman, table::Table};

/// One side's decoder; it must see every block of its connection, in order.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// What the table may be made at most: SETTINGS_HEADER_TABLE_SIZE as we announced it.
    most: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// `most`: bytes of the dynamic table, as announced.
    pub fn new(most: usize) -> Self {
        Self { table: Table::new(most), most, name: Vec::new(), value: Vec::new() }
    }

    /// Calls `field` with each name and value of a whole block, and whether it is never to be indexed.
    ///
    /// # Errors
    /// The block breaks the rules. No further one can be read.
    pub fn decode(&mut self, block: &[u8], mut field: impl FnMut(&[u8], &[u8], bool)) -> Result<(), Malformed> {
        let mut input = block;
        let mut begun = false;
        while let Some(&first) = input.first() {
            match first {
                0x80.. => {
                    let (name, value) = self.table.get(integer(&mut input, 7)?).ok_or(Malformed)?;
                    field(name, value, false);
                }
                0x40.. => self.literal(&mut input, 6, true, &mut |name, value| field(name, value, false))?,
                0x20.. => {
                    let limit = integer(&mut input, 5)?;
                    if begun || limit > self.most {
                        return Err(Malformed);
                    }
                    self.table.set_limit(limit);
                    continue;
                }
                _ => self.literal(&mut input, 4, false, &mut |name, value| field(name, value, first & 0x10 != 0))?,
            }
            begun = true;
        }
        // Large strings are rare: their room is not kept.
        for scratch in [&mut self.name, &mut self.value] {
            if scratch.capacity() > 512 {
                *scratch = Vec::new();
            }
        }
        Ok(())
    }

    fn literal(
        &mut self,
        input: &mut &[u8],
        prefix: u32,
        index: bool,
        field: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), Malformed> {
        let Self { table, name: name_room, value: value_room, .. } = self;
        let number = integer(input, prefix)?;
        let mut known: &[u8] = &[];
        if number != 0 {
            (known, _) = table.get(number).ok_or(Malformed)?;
        }
        if !index {
            let name = if number == 0 { string(input, name_room)? } else { known };
            field(name, string(input, value_room)?);
            return Ok(());
        }
        let name = if number == 0 {
            string(input, name_room)?
        } else {
            // Adding to the table may drop the entry that the name is from.
            name_room.clear();
            name_room.extend_from_slice(known);
            name_room
        };
        let value = string(input, value_room)?;
        field(name, value);
        table.add(name, value);
        Ok(())
    }

    /// Lets go of what is not needed between blocks.
    pub fn release(&mut self) {
        self.name = Vec::new();
        self.value = Vec::new();
        self.table.compact();
    }
}

/// An integer with a prefix of so many bits (RFC 7541, 5.1), up to 2^28: nothing here is longer.
fn integer(input: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let (first, mut rest) = input.split_first().ok_or(Malformed)?;
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(*first) & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let (byte, after) = rest.split_first().ok_or(Malformed)?;
            rest = after;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 21 {
                return Err(Malformed);
            }
        }
    }
    *input = rest;
    Ok(value)
}

/// A string (RFC 7541, 5.2): as it is in `input`, or decoded into `room`.
fn string<'r, 'i: 'r>(input: &mut &'i [u8], room: &'r mut Vec<u8>) -> Result<&'r [u8], Malformed> {
    let coded = input.first().ok_or(Malformed)? & 0x80 != 0;
    let length = integer(input, 7)?;
    let (string, rest) = input.split_at_checked(length).ok_or(Malformed)?;
    *input = rest;
    if !coded {
        return Ok(string);
    }
    room.clear();
    huffman::decode(string, room)?;
    Ok(room)
}
