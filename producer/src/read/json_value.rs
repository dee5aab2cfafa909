//! A JSON value of which only the named fields are kept, borrowed from the line.
//!
//! Any JSON is taken, so that a wrong type is reported by the field it is in. What is not asked for is walked
//! through and dropped. Nesting stops at the 128 levels of serde_json: recursion costs stack.

use std::{borrow::Cow, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Most fields that are kept of one object.
pub(super) const FIELDS_MAX: usize = 7;

/// The kept fields of an object, in the order of their names in [`Keep`].
pub(super) type Fields<'de> = [Option<Value<'de>>; FIELDS_MAX];

/// A JSON value.
#[derive(Debug)]
pub(super) enum Value<'de> {
    Null,
    Bool,
    Unsigned(u64),
    Signed(i64),
    /// A fraction, or an integer beyond 64 bits.
    Float,
    Text(Cow<'de, str>),
    Array {
        len: usize,
        first: Option<Box<Value<'de>>>,
        /// All items, where each is an integer of 32 bits without a sign.
        tokens: Option<Vec<u32>>,
    },
    Object(Box<Fields<'de>>),
}

impl Value<'_> {
    /// What it is, for a message.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Unsigned(_) | Self::Signed(_) => "an integer",
            Self::Float => "a number",
            Self::Text(_) => "a string",
            Self::Array { .. } => "an array",
            Self::Object(_) => "an object",
        }
    }
}

/// Which fields to keep: of the value itself, and of the object in one of them.
#[derive(Clone, Copy, Default)]
pub(super) struct Keep<'a> {
    /// At most [`FIELDS_MAX`] names.
    pub(super) names: &'a [&'a str],
    /// The place in `names` of the field that has fields to keep, and their names.
    pub(super) inner: Option<(usize, &'a [&'a str])>,
}

impl<'a> Keep<'a> {
    /// What to keep inside the field at `place`.
    fn inside(self, place: usize) -> Self {
        match self.inner {
            Some((outer, names)) if outer == place => Self { names, inner: None },
            _ => Self::default(),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Keep<'_> {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keep<'_> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value<'de>, E> {
        Ok(Value::Unsigned(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value<'de>, E> {
        Ok(Value::Signed(number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value<'de>, E> {
        Ok(Value::Float)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    /// A string with escapes.
    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value<'de>, A::Error> {
        let first = items.next_element_seed(Keep::default())?.map(Box::new);
        let mut len = usize::from(first.is_some());
        let token = |item| u32::try_from(item?).ok();
        let mut tokens = match first.as_deref() {
            None => Some(Vec::new()),
            Some(Value::Unsigned(item)) => token(Some(*item)).map(|token| vec![token]),
            Some(_) => None,
        };
        // At most what a line holds, which is bounded.
        while let Some(item) = items.next_element_seed(Discard)? {
            len += 1;
            match (&mut tokens, token(item)) {
                (Some(tokens), Some(token)) => tokens.push(token),
                _ => tokens = None,
            }
        }
        Ok(Value::Array { len, first, tokens })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value<'de>, A::Error> {
        let mut fields = Box::new(Fields::default());
        while let Some(place) = entries.next_key_seed(Place(self.names))? {
            let Some(place) = place else {
                entries.next_value_seed(Discard)?;
                continue;
            };
            let value = entries.next_value_seed(self.inside(place))?;
            if fields[place].replace(value).is_some() {
                return Err(A::Error::custom("a field is given twice"));
            }
        }
        Ok(Value::Object(fields))
    }
}

/// A key's place among the names.
struct Place<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Place<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|name| *name == key))
    }
}

/// Any JSON, not kept; of an integer without a sign, its value. Unlike serde's `IgnoredAny` it counts levels of nesting.
struct Discard;

impl<'de> DeserializeSeed<'de> for Discard {
    type Value = Option<u64>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<u64>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Discard {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Option<u64>, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Option<u64>, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Option<u64>, E> {
        Ok(Some(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Option<u64>, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Option<u64>, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Option<u64>, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Option<u64>, A::Error> {
        while items.next_element_seed(Discard)?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Option<u64>, A::Error> {
        while entries.next_key_seed(Discard)?.is_some() {
            entries.next_value_seed(Discard)?;
        }
        Ok(None)
    }
}
