//! The signer: who may do what.
//!
//! One crate holds both ends of trust. [`mint`] signs tokens and [`verify`] checks them; [`server`] is the HTTP service
//! that gives tokens to holders of API keys; [`client`] asks it for them; the policy database knows tenants, keys and
//! limits. Workers and gateways link this crate only for [`claims`] and [`verify`]: they never hold a private key.

mod api_key;
pub mod claims;
pub mod client;
mod header;
mod http;
mod ids;
pub mod keys;
pub mod mint;
mod refusal;
mod remote_keys;
mod time;
pub mod verify;
pub mod wire;
