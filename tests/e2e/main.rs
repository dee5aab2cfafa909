//! x
mod placeholder {}
