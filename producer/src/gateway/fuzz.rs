//! What comes to the gateway before a handler has it. See [`crate::fuzz`].

pub(crate) use super::files::fuzz::multipart;
