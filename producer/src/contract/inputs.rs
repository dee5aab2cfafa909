//! What is to be embedded at once, read within bounds: no tree of JSON is built, and what is over a limit is counted and not
//! kept. A body of so many bytes takes at most twice as many in memory, whatever stands in it.

use std::{fmt, marker::PhantomData};

use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{EMBED_INPUTS_MAX, EMBED_TOKENS_MAX, RowInput};

/// Bytes of a text that stand for a token until it is counted: as English has.
const BYTES_PER_TOKEN: u64 = 4;
/// What an input costs beside its tokens, and a request beside its inputs, in tokens: a word costs more than its letters.
const TOKENS_BESIDE: u64 = 16;
/// A text, a list of texts, the ids of one text, or a list of those.
const SHAPE: &str = "input must be a text, a list of texts, a list of token ids, or a list of lists of token ids";
const EMPTY: &str = "an input must not be empty";
const IDS: &str = "token ids are whole numbers from 0 on";

/// One input.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum EmbedInput {
    /// A text.
    Text(String),
    /// A text as ids of the model's own tokens.
    Tokens(Vec<u32>),
}

impl From<EmbedInput> for RowInput {
    fn from(input: EmbedInput) -> Self {
        match input {
            EmbedInput::Text(text) => Self::Text(text),
            EmbedInput::Tokens(tokens) => Self::Tokens(tokens),
        }
    }
}

/// Without the text, which must not reach a log.
impl fmt::Debug for EmbedInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{} bytes", text.len()),
            Self::Tokens(ids) => write!(f, "{} token ids", ids.len()),
        }
    }
}

/// About how many tokens a request comes to, from its bytes: what it is let in by, before anybody has counted. A worker stops where a
/// request has too many, so none costs more than the most it may have.
pub fn embed_cost(inputs: &[EmbedInput], instruction: Option<&str>) -> u64 {
    let each = TOKENS_BESIDE + instruction.map_or(0, |text| text.len() as u64 / BYTES_PER_TOKEN);
    let of = |input: &EmbedInput| match input {
        EmbedInput::Text(text) => text.len() as u64 / BYTES_PER_TOKEN,
        EmbedInput::Tokens(ids) => ids.len() as u64,
    };
    let tokens = inputs.iter().map(|input| each + of(input)).sum::<u64>() + TOKENS_BESIDE;
    tokens.min(EMBED_TOKENS_MAX)
}

/// What is wrong with the inputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputFault {
    /// Neither of the four shapes.
    #[error("{SHAPE}")]
    Shape,
    /// None, or too many.
    #[error("input must have 1 to {EMBED_INPUTS_MAX} entries, not {0}")]
    Count(usize),
    /// One of them.
    #[error("{1}")]
    Entry(usize, &'static str),
    /// More token ids than a request may have tokens.
    #[error("the inputs have {0} tokens, {EMBED_TOKENS_MAX} may be asked for at once")]
    Tokens(u64),
}

/// Inputs as they were read. What is wrong with them is known only at their end: it may be their number.
#[derive(Debug, Default)]
pub struct EmbedInputs {
    kept: Vec<EmbedInput>,
    /// Entries, kept or not.
    entries: usize,
    /// Token ids, kept or not.
    ids: u64,
    /// Of another shape altogether.
    shapeless: bool,
    /// The first entry that is wrong, and why.
    fault: Option<(usize, &'static str)>,
}

impl EmbedInputs {
    /// The inputs, if they are what they must be.
    ///
    /// # Errors
    /// What is wrong, and with which entry.
    pub fn checked(self) -> Result<Vec<EmbedInput>, InputFault> {
        if self.shapeless {
            return Err(InputFault::Shape);
        }
        if !(1..=EMBED_INPUTS_MAX).contains(&self.entries) {
            return Err(InputFault::Count(self.entries));
        }
        if let Some((index, message)) = self.fault {
            return Err(InputFault::Entry(index, message));
        }
        if self.ids > EMBED_TOKENS_MAX {
            return Err(InputFault::Tokens(self.ids));
        }
        Ok(self.kept)
    }

    /// Whether entries are kept: not after one is wrong, nor beyond the most there may be.
    fn keeps(&self) -> bool {
        self.fault.is_none() && self.entries < EMBED_INPUTS_MAX
    }

    fn take(&mut self, entry: Entry) {
        let taken = match entry {
            Entry::Text(text) if text.is_empty() => Err(EMPTY),
            Entry::Text(text) => Ok(EmbedInput::Text(text)),
            Entry::Ids(ids) => {
                self.ids += ids.count;
                match ids {
                    Ids { whole: false, .. } => Err(IDS),
                    Ids { count: 0, .. } => Err(EMPTY),
                    Ids { kept, .. } => Ok(EmbedInput::Tokens(kept)),
                }
            }
            Entry::Number(_) | Entry::Other => Err(SHAPE),
        };
        match taken {
            Ok(input) => self.kept.push(input),
            Err(message) => self.fault = self.fault.or(Some((self.entries, message))),
        }
        self.entries += 1;
    }
}

/// The token ids of one text.
#[derive(Default)]
struct Ids {
    kept: Vec<u32>,
    count: u64,
    /// Whether all of them are whole numbers.
    whole: bool,
}

impl Ids {
    fn new() -> Self {
        Self { whole: true, ..Self::default() }
    }

    fn take(&mut self, id: Option<u32>) {
        self.count += 1;
        match id {
            None => self.whole = false,
            Some(id) if self.whole && self.count <= EMBED_TOKENS_MAX => self.kept.push(id),
            Some(_) => {}
        }
    }

    /// The rest of a list. What else is in it than numbers is skipped, however deep.
    fn read<'de, A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self, A::Error> {
        while let Some(Id(id)) = list.next_element()? {
            self.take(id);
        }
        Ok(self)
    }
}

/// An entry of the list, or of a list in it.
enum Entry {
    Text(String),
    Ids(Ids),
    /// A number; the id where it is one.
    Number(Option<u32>),
    Other,
}

/// What is made of a JSON value, whatever that is: nothing is kept of what is not asked for.
trait OfAny: Sized {
    /// Of `true`, `null`, an object, and all that is not told apart below.
    fn other() -> Self;

    fn text(_: &str) -> Self {
        Self::other()
    }

    /// Of a number; the id where it is one.
    fn number(_: Option<u32>) -> Self {
        Self::other()
    }

    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error>;
}

/// Reads a JSON value of any type.
struct AnyVisitor<T>(PhantomData<T>);

fn any<'de, T: OfAny, D: Deserializer<'de>>(value: D) -> Result<T, D::Error> {
    value.deserialize_any(AnyVisitor(PhantomData))
}

impl<'de, T: OfAny> Visitor<'de> for AnyVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<T, E> {
        Ok(T::text(text))
    }

    fn visit_u64<E>(self, id: u64) -> Result<T, E> {
        Ok(T::number(u32::try_from(id).ok()))
    }

    fn visit_i64<E>(self, _: i64) -> Result<T, E> {
        Ok(T::number(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<T, E> {
        Ok(T::number(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<T, E> {
        Ok(T::other())
    }

    fn visit_unit<E>(self) -> Result<T, E> {
        Ok(T::other())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(T::other())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::list(list)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        any(value)
    }
}

impl OfAny for Entry {
    fn other() -> Self {
        Self::Other
    }

    fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    fn number(id: Option<u32>) -> Self {
        Self::Number(id)
    }

    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Self, A::Error> {
        Ids::new().read(list).map(Self::Ids)
    }
}

/// A token id, or something else, which is skipped.
struct Id(Option<u32>);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        any(value)
    }
}

impl OfAny for Id {
    fn other() -> Self {
        Self(None)
    }

    fn number(id: Option<u32>) -> Self {
        Self(id)
    }

    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self(None))
    }
}

impl<'de> Deserialize<'de> for EmbedInputs {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        any(value)
    }
}

impl OfAny for EmbedInputs {
    fn other() -> Self {
        Self { shapeless: true, ..Self::default() }
    }

    fn text(text: &str) -> Self {
        let mut read = Self::default();
        read.take(Entry::text(text));
        read
    }

    fn list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut read = Self::default();
        let Some(first) = list.next_element::<Entry>()? else { return Ok(read) };
        if let Entry::Number(id) = first {
            let mut ids = Ids::new();
            ids.take(id);
            read.take(Entry::Ids(ids.read(list)?));
            return Ok(read);
        }
        read.take(first);
        while read.keeps() {
            let Some(entry) = list.next_element::<Entry>()? else { return Ok(read) };
            // Beyond what may be asked for, ids are counted and not kept.
            match entry {
                Entry::Ids(ids) if read.ids + ids.count > EMBED_TOKENS_MAX && ids.whole => {
                    read.take(Entry::Ids(Ids { kept: Vec::new(), ..ids }));
                }
                entry => read.take(entry),
            }
        }
        while list.next_element::<IgnoredAny>()?.is_some() {
            read.entries += 1;
        }
        Ok(read)
    }
}

/// The inputs of a message, which were checked before they were sent: whatever is wrong with them is an error.
pub(super) fn checked<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<EmbedInput>, D::Error> {
    EmbedInputs::deserialize(value)?.checked().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(input: &Value) -> Result<Vec<EmbedInput>, InputFault> {
        serde_json::from_str::<EmbedInputs>(&input.to_string()).expect("JSON").checked()
    }

    #[test]
    fn inputs_come_in_four_shapes() {
        let text = |text: &str| EmbedInput::Text(text.to_owned());
        assert_eq!(read(&json!("a")), Ok(vec![text("a")]));
        assert_eq!(read(&json!("\u{e9}\n\"")), Ok(vec![text("\u{e9}\n\"")]));
        assert_eq!(read(&json!(["a", "b"])), Ok(vec![text("a"), text("b")]));
        assert_eq!(read(&json!([1, 2])), Ok(vec![EmbedInput::Tokens(vec![1, 2])]));
        assert_eq!(read(&json!([[1], [2, 3]])), Ok(vec![EmbedInput::Tokens(vec![1]), EmbedInput::Tokens(vec![2, 3])]));
        assert_eq!(read(&json!(["a", [1]])), Ok(vec![text("a"), EmbedInput::Tokens(vec![1])]));
        let ids = EMBED_TOKENS_MAX as usize;
        for (wrong, fault) in [
            (json!(""), InputFault::Entry(0, EMPTY)),
            (json!([]), InputFault::Count(0)),
            (json!(7), InputFault::Shape),
            (json!(-7), InputFault::Shape),
            (json!(0.5), InputFault::Shape),
            (json!(true), InputFault::Shape),
            (json!(null), InputFault::Shape),
            (json!({}), InputFault::Shape),
            (json!({"a": [{}]}), InputFault::Shape),
            (json!(["a", ""]), InputFault::Entry(1, EMPTY)),
            (json!([[]]), InputFault::Entry(0, EMPTY)),
            (json!([1, -1]), InputFault::Entry(0, IDS)),
            (json!([1, 1.5]), InputFault::Entry(0, IDS)),
            (json!([1, "a", {}]), InputFault::Entry(0, IDS)),
            (json!([[1, [[{"a": 1}]]], "a"]), InputFault::Entry(0, IDS)),
            (json!([1, 4_294_967_296_u64]), InputFault::Entry(0, IDS)),
            (json!(["a", null]), InputFault::Entry(1, SHAPE)),
            (json!(["a", 7, ""]), InputFault::Entry(1, SHAPE)),
            (json!([{"": 0}, {"": 0}]), InputFault::Entry(0, SHAPE)),
            (json!(vec!["a"; EMBED_INPUTS_MAX + 1]), InputFault::Count(EMBED_INPUTS_MAX + 1)),
            (json!(vec![json!(null); EMBED_INPUTS_MAX + 1]), InputFault::Count(EMBED_INPUTS_MAX + 1)),
            (json!(vec![7; ids + 1]), InputFault::Tokens(EMBED_TOKENS_MAX + 1)),
            (json!([vec![7; ids], [1, 2]]), InputFault::Tokens(EMBED_TOKENS_MAX + 2)),
        ] {
            assert_eq!(read(&wrong), Err(fault), "{}", &wrong.to_string()[..wrong.to_string().len().min(80)]);
        }
        assert!(read(&json!(vec!["a"; EMBED_INPUTS_MAX])).is_ok());
        assert!(read(&json!(vec![7; ids])).is_ok());
    }

    #[test]
    fn what_is_over_a_limit_is_not_kept() {
        let kept = |text: &str| {
            let read: EmbedInputs = serde_json::from_str(text).expect("JSON");
            (read.kept.len(), read.kept.capacity(), read.entries)
        };
        let objects = format!("[{}{{}}]", "{\"\":0},".repeat(500_000));
        assert_eq!(kept(&objects), (0, 0, 500_001));
        let (len, capacity, entries) = kept(&format!("[{}\"\"]", "\"a\",".repeat(500_000)));
        assert!(len == EMBED_INPUTS_MAX && capacity <= 2 * EMBED_INPUTS_MAX && entries == 500_001);
        let read: EmbedInputs = serde_json::from_str(&format!("[{}7]", "7,".repeat(2_000_000))).expect("JSON");
        let EmbedInput::Tokens(ids) = &read.kept[0] else { panic!("token ids") };
        assert!(ids.len() as u64 == EMBED_TOKENS_MAX && read.ids == 2_000_001);
        // Deeper than any stack would bear, were it walked by calls.
        let deep = format!("[\"a\",{}{}]", "[".repeat(100_000), "]".repeat(100_000));
        assert!(serde_json::from_str::<EmbedInputs>(&deep).is_err() || kept(&deep).0 == 1);
    }

    #[test]
    fn a_cost_is_about_the_tokens() {
        let word = [EmbedInput::Text("tide".to_owned())];
        assert_eq!(embed_cost(&word, None), 33);
        assert_eq!(embed_cost(&[EmbedInput::Tokens(vec![1; 100])], Some(&"x".repeat(400))), 232);
        assert_eq!(embed_cost(&[EmbedInput::Text("x".repeat(7 << 20))], None), EMBED_TOKENS_MAX);
    }
}
