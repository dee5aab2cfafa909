//! The form of an upload, by hand: it is what is tested, and not some client's own.

/// The content type of a [`form`].
pub const FORM_TYPE: &str = "multipart/form-data; boundary=a-boundary";

/// A form with one file.
pub fn form(name: &str, bytes: &[u8]) -> Vec<u8> {
    [form_head(name).as_bytes(), bytes, b"\r\n--a-boundary--\r\n"].concat()
}

/// The same, up to the file's first byte.
pub fn form_head(name: &str) -> String {
    format!(
        "--a-boundary\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--a-boundary\r\n\
         Content-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n"
    )
}
