//! The synchronous path, places and quota.
