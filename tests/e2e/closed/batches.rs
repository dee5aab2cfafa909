//! The tenants' door for batches, files, jobs and webhooks.
