//! The engine against golden vectors, against itself, and against model folders it must refuse; and where folders come
//! from.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop where it is")]

mod built_in;
mod card;
mod golden;
mod hub;
mod loading;
mod support;
mod tokenizer;
