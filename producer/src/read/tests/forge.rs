//! Parquet files by hand, to say of themselves what no writer says.

/// Thrift's compact protocol, written.
#[derive(Clone, Default)]
pub(super) struct Out(pub(super) Vec<u8>);

/// A file of one column of texts, whose pages follow the magic.
pub(super) struct Forged {
    pub(super) schema: Vec<Out>,
    pub(super) pages: Vec<u8>,
    pub(super) codec: i32,
    pub(super) rows: i64,
    /// How often the same row group stands in the footer.
    pub(super) groups: u64,
    /// Whether the first page is a dictionary.
    pub(super) dictionary: bool,
    /// Fields at the end of the metadata.
    pub(super) more: Vec<u8>,
}

impl Default for Forged {
    /// One row, "hello".
    fn default() -> Self {
        let text = b"\x05\0\0\0hello";
        Self {
            schema: vec![Out::group("root", 1), Out::leaf("text")],
            pages: page(0, 9, text, &[(1, 1), (2, 0), (3, 3), (4, 3)]),
            codec: 0,
            rows: 1,
            groups: 1,
            dictionary: false,
            more: Vec::new(),
        }
    }
}

/// A page: its kind, what it says it decompresses to, its bytes, and the numbers in its own part of the header.
pub(super) fn page(kind: i32, uncompressed: i32, body: &[u8], numbers: &[(i16, i32)]) -> Vec<u8> {
    let mut out = Out::default();
    out.number(1, 5, kind.into());
    out.number(2, 5, uncompressed.into());
    out.number(3, 5, body.len() as i64);
    out.head(
        match kind {
            0 => 5,
            2 => 7,
            _ => 8,
        },
        12,
    );
    for (id, number) in numbers {
        out.number(*id, 5, (*number).into());
    }
    out.0.extend([0, 0]);
    out.0.extend(body);
    out.0
}

impl Forged {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut footer = Out::default();
        footer.number(1, 5, 1);
        footer.list(2, 12, self.schema.len() as u64);
        self.schema.iter().for_each(|element| footer.0.extend(&element.0));
        footer.number(3, 6, self.rows);
        footer.list(4, 12, self.groups);
        for _ in 0..self.groups {
            footer.list(1, 12, 1);
            self.column(&mut footer);
            footer.number(2, 6, 0);
            footer.number(3, 6, self.rows);
            footer.0.push(0);
        }
        footer.0.extend(&self.more);
        footer.0.push(0);
        let length = footer.0.len() as u32;
        [b"PAR1", &self.pages[..], &footer.0, &length.to_le_bytes(), b"PAR1"].concat()
    }

    fn column(&self, out: &mut Out) {
        out.number(2, 6, 0);
        out.head(3, 12);
        out.number(1, 5, 6);
        out.list(2, 5, 0);
        out.list(3, 8, 0);
        out.number(4, 5, self.codec.into());
        out.number(5, 6, self.rows);
        out.number(6, 6, 0);
        out.number(7, 6, self.pages.len() as i64);
        out.number(9, 6, 4);
        if self.dictionary {
            out.number(11, 6, 4);
        }
        out.0.extend([0, 0]);
    }
}

impl Out {
    /// A group of columns.
    pub(super) fn group(name: &str, children: i32) -> Self {
        let mut out = Self::default();
        out.number(3, 5, 0);
        out.text(4, name);
        out.number(5, 5, children.into());
        out.0.push(0);
        out
    }

    /// A column of strings.
    pub(super) fn leaf(name: &str) -> Self {
        Self::column(name, 0)
    }

    /// A column of strings or nulls.
    pub(super) fn optional(name: &str) -> Self {
        Self::column(name, 1)
    }

    fn column(name: &str, repetition: i64) -> Self {
        let mut out = Self::default();
        out.number(1, 5, 6);
        out.number(3, 5, repetition);
        out.text(4, name);
        out.number(6, 5, 0);
        out.0.push(0);
        out
    }

    /// A field's head, with its number in full.
    pub(super) fn head(&mut self, id: i16, kind: u8) {
        self.0.push(kind);
        self.zigzag(id.into());
    }

    pub(super) fn number(&mut self, id: i16, kind: u8, number: i64) {
        self.head(id, kind);
        self.zigzag(number);
    }

    pub(super) fn text(&mut self, id: i16, text: &str) {
        self.head(id, 8);
        self.varint(text.len() as u64);
        self.0.extend(text.as_bytes());
    }

    /// The head of a list; its items follow.
    pub(super) fn list(&mut self, id: i16, kind: u8, items: u64) {
        self.head(id, 9);
        self.0.push(0xf0 | kind);
        self.varint(items);
    }

    fn zigzag(&mut self, number: i64) {
        self.varint(((number << 1) ^ (number >> 63)).cast_unsigned());
    }

    pub(super) fn varint(&mut self, mut number: u64) {
        while number > 0x7f {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}
