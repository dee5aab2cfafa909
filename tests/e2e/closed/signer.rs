//! Credentials and revocations across programs.
