//! What the end-to-end tests share: real servers, real programs, generated corpora.
