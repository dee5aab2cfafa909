//! End-to-end tests: real servers, real programs, nothing mocked. Run by `infra/test`, which starts the servers.

mod crashes;
mod outages;
mod quota;
mod two_tenants;
