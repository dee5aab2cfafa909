//! The one table of routes. Each says who may use it, and the check is put before the handler here: a route can't be
//! without one, and tests go through the table.

use std::sync::Arc;

use axum::Router;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, patch, post};

use super::{App, admin, auth, embed_tokens, grants, oauth, open, submissions, token};
use crate::claims::Scope;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone.
    Open,
    /// Whoever shows an API key, as OAuth's clients do; the handler checks it.
    Client,
    /// Whoever has an access token with this scope.
    Scope(Scope),
    /// Whoever has an access token with `jobs:submit`, or a submission token.
    Submission,
    /// An admin of the tenant that the path names, or one of the operator's tenant.
    TenantAdmin,
    /// An admin of the operator's tenant.
    Operator,
}

type Route = (Method, &'static str, Access, MethodRouter<Arc<App>>);

#[rustfmt::skip]
fn routes() -> Vec<Route> {
    use Access::{Client, Open, Operator, TenantAdmin};
    let on = |method: Method, path, access, handler| (method, path, access, handler);
    vec![
        on(Method::GET, "/.well-known/jwks.json", Open, get(open::jwks)),
        on(Method::GET, "/.well-known/oauth-authorization-server", Open, get(open::metadata)),
        on(Method::GET, "/v1/revocations/2", Open, get(open::revocations)),
        on(Method::GET, "/v1/revocations", Open, get(open::old_revocations)),
        on(Method::GET, "/healthz", Open, get(open::healthz)),
        on(Method::GET, "/readyz", Open, get(open::readyz)),
        on(Method::POST, "/oauth/token", Client, post(token::token)),
        on(Method::POST, "/oauth/introspect", Client, post(oauth::introspect)),
        on(Method::POST, "/oauth/revoke", Client, post(oauth::revoke)),
        on(Method::POST, "/v1/submissions", Access::Scope(Scope::JobsSubmit), post(submissions::submission)),
        on(Method::POST, "/v1/embed-tokens", Access::Scope(Scope::Embed), post(embed_tokens::embed_token)),
        on(Method::POST, "/v1/grants", Access::Submission, post(grants::grant)),
        on(Method::GET, "/v1/admin/tenants", Operator, get(admin::tenants)),
        on(Method::POST, "/v1/admin/tenants", Operator, post(admin::create_tenant)),
        on(Method::GET, "/v1/admin/tenants/{tenant}", TenantAdmin, get(admin::tenant)),
        on(Method::PATCH, "/v1/admin/tenants/{tenant}/limits", Operator, patch(admin::set_limits)),
        on(Method::POST, "/v1/admin/tenants/{tenant}/suspend", Operator, post(admin::suspend)),
        on(Method::POST, "/v1/admin/tenants/{tenant}/resume", Operator, post(admin::resume)),
        on(Method::POST, "/v1/admin/tenants/{tenant}/void-tokens", TenantAdmin, post(admin::void_tokens)),
        on(Method::GET, "/v1/admin/tenants/{tenant}/keys", TenantAdmin, get(admin::keys)),
        on(Method::POST, "/v1/admin/tenants/{tenant}/keys", TenantAdmin, post(admin::create_key)),
        on(Method::POST, "/v1/admin/tenants/{tenant}/keys/{key}/rotate", TenantAdmin, post(admin::rotate_key)),
        on(Method::POST, "/v1/admin/tenants/{tenant}/keys/{key}/revoke", TenantAdmin, post(admin::revoke_key)),
        on(Method::POST, "/v1/admin/tenants/{tenant}/jobs/{job}/revoke", TenantAdmin, post(admin::revoke_job)),
        on(Method::GET, "/v1/admin/tenants/{tenant}/audit", TenantAdmin, get(admin::tenant_audit)),
        on(Method::GET, "/v1/admin/audit", Operator, get(admin::audit)),
        on(Method::GET, "/v1/admin/roles", TenantAdmin, get(admin::roles)),
        on(Method::POST, "/v1/admin/roles", Operator, post(admin::create_role)),
        on(Method::PATCH, "/v1/admin/roles/{role}", Operator, patch(admin::set_role)),
        on(Method::DELETE, "/v1/admin/roles/{role}", Operator, delete(admin::delete_role)),
        on(Method::GET, "/v1/admin/signing-keys", Operator, get(admin::signing_keys)),
        on(Method::POST, "/v1/admin/signing-keys/rotate", Operator, post(admin::rotate_signing_key)),
        on(Method::POST, "/v1/admin/signing-keys/{kid}/retire", Operator, post(admin::retire_signing_key)),
        on(Method::POST, "/v1/admin/signing-keys/{kid}/withdraw", Operator, post(admin::withdraw_signing_key)),
    ]
}

/// Every route: method, path, and who may use it.
pub fn route_table() -> Vec<(Method, &'static str, Access)> {
    routes().into_iter().map(|(method, path, access, _)| (method, path, access)).collect()
}

/// Routes that answer from memory, or nearly so, and that the whole service rests on: they wait behind nothing.
pub(super) const UNBOUNDED: [&str; 5] =
    ["/.well-known/jwks.json", "/v1/revocations/2", "/v1/revocations", "/healthz", "/readyz"];

/// The routes with their checks.
pub(super) fn mounted(app: &Arc<App>) -> Router<Arc<App>> {
    routes().into_iter().fold(Router::new(), |router, (_, path, access, handler)| {
        router.route(path, handler.route_layer(from_fn_with_state((Arc::clone(app), access), auth::guard)))
    })
}
