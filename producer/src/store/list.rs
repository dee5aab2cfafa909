//! Listings: what lies under a prefix, page by page.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;

use super::{Store, StoreError};

/// Objects in a page of a listing, at most.
const PAGE_MAX: i32 = 1000;

/// An object in a listing.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was last written, as Unix seconds.
    pub modified_s: f64,
}

impl Object {
    fn of(object: &aws_sdk_s3::types::Object) -> Self {
        Self {
            key: object.key().unwrap_or_default().to_owned(),
            bytes: object.size().unwrap_or_default() as u64,
            modified_s: object.last_modified().map(|time| time.as_secs_f64()).unwrap_or_default(),
        }
    }
}

impl Store {
    /// All objects under `prefix` in the keys' order, those after `start_after` where given.
    pub async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<Object>, StoreError> {
        let mut objects = Vec::new();
        self.each_page(prefix, start_after, None, None, |page| {
            objects.extend(page.contents().iter().map(Object::of));
            true
        })
        .await?;
        Ok(objects)
    }

    /// The first `count` of [`Self::list`], in little more requests than they take.
    pub async fn list_some(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        count: usize,
    ) -> Result<Vec<Object>, StoreError> {
        let mut objects = Vec::new();
        let page_max = i32::try_from(count).ok();
        self.each_page(prefix, start_after, None, page_max, |page| {
            objects.extend(page.contents().iter().map(Object::of));
            objects.len() < count
        })
        .await?;
        objects.truncate(count);
        Ok(objects)
    }

    /// Shows `take` every page of objects under `prefix`, in flat memory, whatever their number.
    pub async fn each(&self, prefix: &str, mut take: impl FnMut(&[Object])) -> Result<(), StoreError> {
        self.each_page(prefix, None, None, None, |page| {
            take(&page.contents().iter().map(Object::of).collect::<Vec<_>>());
            true
        })
        .await
    }

    /// The "folders" directly under `prefix`, each with its trailing slash.
    pub async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut folders = Vec::new();
        self.each_page(prefix, None, Some("/"), None, |page| {
            folders.extend(page.common_prefixes().iter().filter_map(|folder| folder.prefix().map(str::to_owned)));
            true
        })
        .await?;
        Ok(folders)
    }

    /// Calls `take` with each page, until it wants no more.
    async fn each_page(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        delimiter: Option<&str>,
        page_max: Option<i32>,
        mut take: impl FnMut(&ListObjectsV2Output) -> bool,
    ) -> Result<(), StoreError> {
        let mut token: Option<String> = None;
        loop {
            let page = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(prefix)
                .set_start_after(start_after.map(str::to_owned))
                .set_delimiter(delimiter.map(str::to_owned))
                .set_continuation_token(token.take())
                .set_max_keys(page_max.map(|max| max.min(PAGE_MAX)))
                .send()
                .await
                .map_err(|error| StoreError::new("list", prefix, error))?;
            let more = take(&page);
            match page.next_continuation_token() {
                Some(next) if more && page.is_truncated() == Some(true) => token = Some(next.to_owned()),
                _ => return Ok(()),
            }
        }
    }
}
