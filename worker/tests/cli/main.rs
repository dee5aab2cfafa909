//! `vecmill-worker` as a user runs it: its commands that need no server.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should stop where it is")]

mod bench;
mod embed;
mod support;
