//! Objects whose bytes come piece by piece, in flat memory: S3's multipart upload, or one request for what is small.

use aws_sdk_s3::{
    Client,
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use bytes::{Bytes, BytesMut};
use vecmill_signer::claims::Digest;

use super::StoreError;
use crate::digest::Hasher;

/// Bytes of a part. S3 wants 5 MiB at least and takes 10,000 parts: with 8 MiB an object has up to 78 GiB.
const PART_BYTES: usize = 8 << 20;

/// An object on its way. Dropped without [`Upload::finish`] or [`Upload::abort`], its parts stay on S3, unseen: a lifecycle
/// rule for incomplete uploads removes them.
pub struct Upload {
    client: Client,
    bucket: String,
    key: String,
    pending: BytesMut,
    begun: Option<String>,
    parts: Vec<CompletedPart>,
    hasher: Hasher,
}

impl Upload {
    pub(super) fn new(client: Client, bucket: String, key: String) -> Self {
        let (pending, hasher) = (BytesMut::new(), Hasher::default());
        Self { client, bucket, key, pending, begun: None, parts: Vec::new(), hasher }
    }

    /// Appends a piece; sends it once a part is full.
    pub async fn push(&mut self, piece: &[u8]) -> Result<(), StoreError> {
        self.hasher.update(piece);
        self.pending.extend_from_slice(piece);
        while self.pending.len() >= PART_BYTES {
            let part = self.pending.split_to(PART_BYTES).freeze();
            self.send(part).await?;
        }
        Ok(())
    }

    /// Makes the object visible, whole; gives its length and SHA-256.
    pub async fn finish(mut self) -> Result<(u64, Digest), StoreError> {
        let rest = std::mem::take(&mut self.pending).freeze();
        if let Some(upload) = self.begun.clone() {
            if !rest.is_empty() {
                self.send(rest).await?;
            }
            let parts = CompletedMultipartUpload::builder().set_parts(Some(self.parts)).build();
            let completing =
                self.client.complete_multipart_upload().bucket(&self.bucket).key(&self.key).upload_id(upload);
            let completed = completing.multipart_upload(parts).send().await;
            completed.map_err(|error| StoreError::new("write", &self.key, error))?;
        } else {
            let put = self.client.put_object().bucket(&self.bucket).key(&self.key).body(ByteStream::from(rest));
            put.send().await.map_err(|error| StoreError::new("write", &self.key, error))?;
        }
        Ok(self.hasher.finish())
    }

    /// Removes what has been sent.
    pub async fn abort(self) -> Result<(), StoreError> {
        let Some(upload) = self.begun else { return Ok(()) };
        let aborting = self.client.abort_multipart_upload().bucket(&self.bucket).key(&self.key).upload_id(upload);
        aborting.send().await.map(drop).map_err(|error| StoreError::new("give up", &self.key, error))
    }

    async fn send(&mut self, part: Bytes) -> Result<(), StoreError> {
        let upload = match &self.begun {
            Some(upload) => upload.clone(),
            None => {
                let creating = self.client.create_multipart_upload().bucket(&self.bucket).key(&self.key);
                let created = creating.send().await.map_err(|error| StoreError::new("write", &self.key, error))?;
                let upload = created.upload_id().unwrap_or_default().to_owned();
                self.begun.insert(upload).clone()
            }
        };
        let number = self.parts.len() as i32 + 1;
        let sending = self.client.upload_part().bucket(&self.bucket).key(&self.key).upload_id(upload);
        let sent = sending.part_number(number).body(ByteStream::from(part)).send().await;
        let sent = sent.map_err(|error| StoreError::new("write", &self.key, error))?;
        let part = CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag().map(str::to_owned)).build();
        self.parts.push(part);
        Ok(())
    }
}
