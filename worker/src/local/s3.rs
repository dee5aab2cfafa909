//! An S3 server in the process, over a folder, on a loopback port of its own with credentials of its own.

use std::path::Path;

use anyhow::Context;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use vecmill_producer::store::{Store, StoreCredentials, StoreSettings};
use vecmill_signer::keys::SigningKey;

/// The bucket: a folder of this name.
pub(super) const BUCKET: &str = "vecmill";

/// Starts a server over `root` and gives a store on it.
pub(super) async fn start(root: &Path) -> anyhow::Result<Store> {
    std::fs::create_dir_all(root.join(BUCKET)).with_context(|| format!("{} can't be written", root.display()))?;
    let files =
        FileSystem::new(root).map_err(|error| anyhow::anyhow!("{} can't be served: {error:?}", root.display()))?;
    // Random and never shown: nobody else on the machine can talk to the server.
    let secret = SigningKey::generate()?.kid().to_owned();
    let mut service = S3ServiceBuilder::new(files);
    service.set_auth(SimpleAuth::from_single("local", secret.as_str()));
    let service = service.build();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                // A connection that breaks is the client's to report.
                let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    let settings = StoreSettings {
        endpoint: Some(endpoint),
        ca_file: None,
        bucket: BUCKET.to_owned(),
        region: "us-east-1".to_owned(),
    };
    let store = Store::connect_with(&settings, StoreCredentials { id: "local".to_owned(), secret }).await;
    // Nobody else can ask this server, and it looks before it writes.
    Ok(store.in_turns())
}
