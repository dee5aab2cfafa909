//! Thrift's compact protocol, as far as it takes to look at Parquet's metadata before anything else does.
//!
//! Nothing here allocates by a length that the input names, and nesting is bounded.

use parquet::errors::ParquetError;

/// Deepest nesting of structs and lists. Parquet's own metadata has ten levels; what newer versions add is passed over.
const DEPTH_MAX: u32 = 32;

/// Why metadata is refused.
pub(super) type Refusal = &'static str;

pub(super) fn refused(refusal: Refusal) -> ParquetError {
    ParquetError::General(refusal.to_owned())
}

/// There would have to be more bytes.
pub(super) const CUT_OFF: Refusal = "its metadata is cut off";
const TOO_DEEP: Refusal = "its metadata is nested too deep";

/// What a field or an item of a list is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    I8,
    I16,
    I32,
    I64,
    Double,
    Binary,
    List,
    Struct,
    Uuid,
}

/// Reads from the front of some bytes.
#[derive(Clone, Copy)]
pub(super) struct Thrift<'a> {
    bytes: &'a [u8],
    depth: u32,
}

impl<'a> Thrift<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, depth: 0 }
    }

    /// Bytes that have not been read.
    pub(super) fn left(&self) -> usize {
        self.bytes.len()
    }

    /// What has not been read.
    pub(super) fn rest(self) -> &'a [u8] {
        self.bytes
    }

    /// To look at what comes without reading it.
    pub(super) fn ahead(&self) -> Self {
        *self
    }

    /// Enters a struct or a list. Whoever does must [`leave`](Self::leave) it.
    pub(super) fn enter(&mut self) -> Result<(), Refusal> {
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(TOO_DEEP) } else { Ok(()) }
    }

    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }

    fn byte(&mut self) -> Result<u8, Refusal> {
        let (first, rest) = self.bytes.split_first().ok_or(CUT_OFF)?;
        self.bytes = rest;
        Ok(*first)
    }

    pub(super) fn take(&mut self, bytes: u64) -> Result<&'a [u8], Refusal> {
        let bytes = usize::try_from(bytes).map_err(|_| CUT_OFF)?;
        let (taken, rest) = self.bytes.split_at_checked(bytes).ok_or(CUT_OFF)?;
        self.bytes = rest;
        Ok(taken)
    }

    /// An unsigned integer. Readers disagree on those that do not fit 64 bits, so there are none.
    pub(super) fn varint(&mut self) -> Result<u64, Refusal> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number in its metadata is too long")
    }

    pub(super) fn integer(&mut self) -> Result<i64, Refusal> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    pub(super) fn i32(&mut self) -> Result<i32, Refusal> {
        self.integer()?.try_into().map_err(|_| "a number in its metadata is too large")
    }

    pub(super) fn binary(&mut self) -> Result<&'a [u8], Refusal> {
        let bytes = self.varint()?;
        self.take(bytes)
    }

    /// The next field of a struct: its number and what it is; `None` at the struct's end. A boolean's value is in its kind.
    fn field(&mut self, last: &mut i16) -> Result<Option<(i16, Kind, bool)>, Refusal> {
        let header = self.byte()?;
        let kind = match header & 0xf {
            0 => return Ok(None),
            1 | 2 => Kind::Bool,
            kind => kind_of(kind)?,
        };
        let id = match i16::from(header >> 4) {
            0 => self.integer()?.try_into().map_err(|_| "a field of its metadata has a number that none has")?,
            step => last.checked_add(step).ok_or("a field of its metadata has a number that none has")?,
        };
        *last = id;
        Ok(Some((id, kind, header & 0xf == 1)))
    }

    /// Reads a struct. `at` is told of each field before its value (its number, what it is, and a boolean's value), and says whether it
    /// has read that; what it has not is passed over.
    pub(super) fn fields(
        &mut self,
        mut at: impl FnMut(&mut Self, i16, Kind, bool) -> Result<bool, Refusal>,
    ) -> Result<(), Refusal> {
        self.enter()?;
        let mut last = 0;
        while let Some((id, kind, yes)) = self.field(&mut last)? {
            if !at(self, id, kind, yes)? {
                self.skip(kind)?;
            }
        }
        self.leave();
        Ok(())
    }

    /// The head of a list: what its items are, and how many. There are never more than bytes that are left.
    pub(super) fn list(&mut self) -> Result<(Kind, usize), Refusal> {
        let header = self.byte()?;
        if header == 0 {
            return Ok((Kind::I8, 0));
        }
        // Readers disagree on the length of booleans in a list; Parquet's metadata has none.
        let kind = kind_of(header & 0xf)?;
        let items = match header >> 4 {
            15 => usize::try_from(self.varint()?).map_err(|_| CUT_OFF)?,
            items => items.into(),
        };
        if items > self.left() { Err(CUT_OFF) } else { Ok((kind, items)) }
    }

    /// Passes over a value. A boolean's is in its field's head, and there are none in lists.
    pub(super) fn skip(&mut self, kind: Kind) -> Result<(), Refusal> {
        match kind {
            Kind::Bool => Ok(()),
            Kind::I8 => self.byte().map(drop),
            Kind::I16 | Kind::I32 | Kind::I64 => self.varint().map(drop),
            Kind::Double => self.take(8).map(drop),
            Kind::Uuid => self.take(16).map(drop),
            Kind::Binary => self.binary().map(drop),
            Kind::List => {
                self.enter()?;
                let (kind, items) = self.list()?;
                for _ in 0..items {
                    self.skip(kind)?;
                }
                self.leave();
                Ok(())
            }
            Kind::Struct => self.fields(|_, _, _, _| Ok(false)),
        }
    }
}

fn kind_of(number: u8) -> Result<Kind, Refusal> {
    Ok(match number {
        3 => Kind::I8,
        4 => Kind::I16,
        5 => Kind::I32,
        6 => Kind::I64,
        7 => Kind::Double,
        8 => Kind::Binary,
        // A set is written as a list is.
        9 | 10 => Kind::List,
        12 => Kind::Struct,
        13 => Kind::Uuid,
        // Parquet has no map anywhere.
        _ => return Err("its metadata has a type that Parquet does not have"),
    })
}
