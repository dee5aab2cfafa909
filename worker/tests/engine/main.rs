//! The engine against golden vectors, against itself, and against model folders it must refuse.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop where it is")]

mod golden;
mod loading;
mod support;
mod tokenizer;
