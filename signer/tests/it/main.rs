//! The signer as others meet it: tokens, the HTTP service, the program.

mod attacks;
mod bootstrap;
mod oauth;
mod remote_keys;
mod service;
mod support;
mod tls;
mod verification;
