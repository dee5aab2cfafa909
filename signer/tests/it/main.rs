//! The signer as others meet it: tokens, the HTTP service, the program.

mod admin;
mod attacks;
mod backup;
mod bootstrap;
mod bounds;
mod commands;
mod embed;
mod floods;
mod kills;
mod matrix;
mod mounted_key;
mod oauth;
mod policy;
mod postgres;
#[allow(unreachable_pub, reason = "`vecmill-tests` compiles the file too, where it is reachable")]
mod program;
mod races;
mod remote_keys;
mod revocation;
mod service;
mod submission;
mod support;
mod tls;

mod verification;
