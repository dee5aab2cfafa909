//! How programs meet the network: listeners with limits and TLS, and clients that know whom they trust.
//!
//! One TLS implementation (rustls) on one crypto provider (aws-lc-rs), named here and not left to cargo's features.

mod client_tls;
mod failed_logins;
mod pace;
mod patience;
mod places;
mod serve;
mod server_tls;
mod trouble;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use client_tls::{ClientTls, ClientTlsArgs, ClientTlsError};
pub use failed_logins::FailedLogins;
pub use pace::Pace;
pub use serve::{Bounds, serve};
pub use server_tls::{ServerTls, ServerTlsError};
pub use trouble::explain;

/// The one provider. Libraries that build their own configurations take the process's default, so it becomes that too.
pub fn provider() -> Arc<CryptoProvider> {
    // An error means that one is installed already: this one, for the build has no other.
    let _ = aws_lc_rs::default_provider().install_default();
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()))
}

/// Why a listener at `address` would show itself to other machines without TLS, which has to be asked for. `flag` is the
/// one that asks for it, `tls` are those that make it unnecessary.
pub fn exposed(address: SocketAddr, has_tls: bool, insecure: bool, flag: &str, tls: &str) -> Option<String> {
    (!address.ip().is_loopback() && !has_tls && !insecure).then(|| {
        format!(
            "--listen is an address that other machines can reach, over plain HTTP: give {tls} for TLS, or {flag} if \
             something in front of it or a private network protects it"
        )
    })
}

/// The address as one that somebody can have only one of: of IPv6, the /64 that a subscriber gets.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Whether `host`, as it stands in a URL, is this machine.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
