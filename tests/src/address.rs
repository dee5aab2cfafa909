//! Addresses for the programs that a test starts, and for who connects to them.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::Mutex,
};

use tokio::net::{TcpSocket, TcpStream};

/// Below Linux's range for outgoing connections (32768 up): none of those takes the port before the program listens, or
/// while it is killed and started again. And below what `infra/services` picks from.
const PORTS: Range<u16> = 10_000..12_000;

/// An address that is free, and stays so for this test: no other that asks here gets it.
pub fn free_address() -> String {
    /// A name that one process at a time can have, and that is free again when it ends.
    static CLAIMS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    loop {
        let port = PORTS.start + (RandomState::new().hash_one(0) % PORTS.len() as u64) as u16;
        let name = SocketAddr::from_abstract_name(format!("vecmill-test-port-{port}")).expect("a short name");
        let Ok(claim) = UnixListener::bind_addr(&name) else { continue };
        // Something else may listen there.
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            CLAIMS.lock().expect("nothing panics with it").push(claim);
            return format!("127.0.0.1:{port}");
        }
    }
}

/// A connection from an address of this machine's own.
///
/// # Errors
/// When there is none to be had.
pub async fn connect_from(source: Ipv4Addr, to: std::net::SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    socket.connect(to).await
}
