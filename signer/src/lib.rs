//! The signer: who may do what.
//!
//! One crate holds both ends of trust. [`mint`] signs tokens and [`verify`] checks them; [`server`] is the HTTP service
//! that gives tokens to holders of API keys; [`client`] asks it for them; [`edge`] is how all programs listen and connect with
//! TLS; the policy database knows tenants, keys and
//! limits. Workers and gateways link this crate only for [`claims`] and [`verify`]: they never hold a private key.

mod api_key;
pub mod cidr;
pub mod claims;
pub mod cli;
pub mod client;
pub mod config;
pub mod edge;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod genuine;
mod header;
mod http;
mod ids;
pub mod keys;
pub mod mint;
mod policy;
mod refusal;
mod remote_keys;
mod revocations;
pub mod secret;
pub mod server;
pub mod store;
mod time;
pub mod vault;
pub mod verify;
pub mod wire;
