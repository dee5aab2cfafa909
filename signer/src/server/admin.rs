//! `/v1/admin/..`: what the commands do, over HTTP. Who may is in the table of routes; each change is in the audit under
//! the id of the API key that made it, and is in force here when the answer comes and elsewhere within seconds.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::App;
use super::auth::Caller;
use super::error::ApiError;
use crate::claims::{JobId, Scope, TenantId};
use crate::header::is_kid;
use crate::store::{AuditFilter, NewKey, SettingsPatch, Tenant, TenantSettings};
use crate::time::unix_now;

/// Overlap of two API keys where none is named: a working day and a night to roll the new one out.
pub(crate) const OVERLAP_S_DEFAULT: u64 = 24 * 3600;
/// Longest overlap: a quarter.
pub(crate) const OVERLAP_S_MAX: u64 = 92 * 24 * 3600;
/// Events in one answer where no number is named.
pub(crate) const AUDIT_LIMIT_DEFAULT: u32 = 100;

type Shared = State<Arc<App>>;
type Body<T> = Result<Json<T>, JsonRejection>;
type Named<T> = Result<Path<T>, PathRejection>;
type Answer = Result<(StatusCode, [(axum::http::HeaderName, &'static str); 1], Json<serde_json::Value>), ApiError>;

fn answer(status: StatusCode, value: impl Serialize) -> Answer {
    let value = serde_json::to_value(value).map_err(|error| ApiError::internal(&error))?;
    Ok((status, [(CACHE_CONTROL, "no-store")], Json(value)))
}

/// The body. Its reader's sentence names the field that is wrong.
fn body<T>(body: Body<T>) -> Result<T, ApiError> {
    body.map(|Json(body)| body).map_err(|rejection| ApiError::bad_body(rejection.status(), rejection.body_text()))
}

/// What the path names; a name that can't be is that of nothing.
fn named<T>(path: Named<T>) -> Result<T, ApiError> {
    path.map(|Path(named)| named).map_err(|_| ApiError::not_found())
}

/// The id of a key or role in a path.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Id(String);

impl TryFrom<String> for Id {
    type Error = &'static str;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        if is_kid(&id) { Ok(Self(id)) } else { Err("it is not the id of anything") }
    }
}

pub(super) async fn tenants(State(app): Shared) -> Answer {
    answer(StatusCode::OK, json!({"tenants": app.store.tenants().await?}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTenant {
    name: TenantId,
    #[serde(default)]
    pub(super) settings: SettingsPatch,
}

pub(super) async fn create_tenant(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    new: Body<NewTenant>,
) -> Answer {
    let new = body(new)?;
    let settings = new.settings.apply(TenantSettings::default())?;
    app.store.create_tenant(&new.name, &settings, caller.actor()).await?;
    answer(StatusCode::CREATED, found(&app, &new.name).await?)
}

pub(super) async fn tenant(State(app): Shared, tenant: Named<TenantId>) -> Answer {
    answer(StatusCode::OK, found(&app, &named(tenant)?).await?)
}

async fn found(app: &App, tenant: &TenantId) -> Result<Tenant, ApiError> {
    app.store.tenant(tenant).await?.ok_or_else(ApiError::not_found)
}

pub(super) async fn set_limits(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    tenant: Named<TenantId>,
    patch: Body<SettingsPatch>,
) -> Answer {
    let tenant = app.store.set_limits(&named(tenant)?, body(patch)?, caller.actor()).await?;
    app.current.refresh().await?;
    answer(StatusCode::OK, tenant)
}

pub(super) async fn suspend(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    tenant: Named<TenantId>,
) -> Answer {
    let tenant = named(tenant)?;
    if &tenant == caller.access.tenant() {
        return Err(ApiError::access_denied("an operator can't suspend its own tenant: nobody could let it back in"));
    }
    let tenant = app.store.set_active(&tenant, false, caller.actor()).await?;
    app.current.refresh().await?;
    answer(StatusCode::OK, tenant)
}

pub(super) async fn resume(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    tenant: Named<TenantId>,
) -> Answer {
    let tenant = app.store.set_active(&named(tenant)?, true, caller.actor()).await?;
    app.current.refresh().await?;
    answer(StatusCode::OK, tenant)
}

pub(super) async fn void_tokens(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    tenant: Named<TenantId>,
) -> Answer {
    let tenant = app.store.void_tokens(&named(tenant)?, caller.actor()).await?;
    app.current.refresh().await?;
    answer(StatusCode::OK, tenant)
}

pub(super) async fn keys(State(app): Shared, tenant: Named<TenantId>) -> Answer {
    let tenant = found(&app, &named(tenant)?).await?;
    answer(StatusCode::OK, json!({"keys": app.store.keys_of(Some(&tenant.id)).await?}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyOrder {
    /// Checked by the store to be one.
    role: String,
    /// Unix seconds.
    expires_s: Option<u64>,
}

pub(super) async fn create_key(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    tenant: Named<TenantId>,
    order: Body<KeyOrder>,
) -> Answer {
    let (tenant, order) = (named(tenant)?, body(order)?);
    if order.expires_s.is_some_and(|at| at <= unix_now()) {
        return Err(ApiError::bad_request("invalid_request", "expires_s must lie in the future, in Unix seconds"));
    }
    let new = NewKey { tenant, role: order.role, expires_s: order.expires_s };
    let key = app.store.create_key(&app.vault, &new, caller.actor()).await?;
    let made = json!({
        "id": key.id(), "key": key.expose(), "tenant": new.tenant, "role": new.role, "expires_s": new.expires_s,
    });
    answer(StatusCode::CREATED, made)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Overlap {
    overlap_s: u64,
}

pub(super) async fn rotate_key(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    path: Named<(TenantId, Id)>,
    overlap: Option<Json<Overlap>>,
) -> Answer {
    let (tenant, Id(id)) = named(path)?;
    let overlap_s = overlap.map_or(OVERLAP_S_DEFAULT, |Json(overlap)| overlap.overlap_s);
    if overlap_s > OVERLAP_S_MAX {
        let sentence = format!("overlap_s must be at most {OVERLAP_S_MAX}");
        return Err(ApiError::bad_request("invalid_request", sentence));
    }
    let rotated = app.store.rotate_key(&app.vault, Some(&tenant), &id, overlap_s, caller.actor()).await?;
    let made = json!({
        "id": rotated.key.id(), "key": rotated.key.expose(), "tenant": tenant, "role": rotated.info.role,
        "expires_s": rotated.info.expires_s, "old_id": id, "old_expires_s": rotated.old_expires_s,
    });
    answer(StatusCode::CREATED, made)
}

pub(super) async fn revoke_key(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    path: Named<(TenantId, Id)>,
) -> Answer {
    let (tenant, Id(id)) = named(path)?;
    let info = app.store.revoke_key(Some(&tenant), &id, caller.actor()).await?;
    app.current.refresh().await?;
    answer(StatusCode::OK, info)
}

pub(super) async fn revoke_job(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    path: Named<(TenantId, JobId)>,
) -> Answer {
    let (tenant, job) = named(path)?;
    app.store.revoke_job(&tenant, &job, caller.actor()).await?;
    app.current.refresh().await?;
    answer(StatusCode::OK, json!({"tenant": tenant, "job": job}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    tenant: Option<TenantId>,
    before: Option<u64>,
    limit: Option<u32>,
}

impl AuditQuery {
    async fn events(self, app: &App) -> Answer {
        let limit = self.limit.unwrap_or(AUDIT_LIMIT_DEFAULT);
        let filter = AuditFilter { tenant: self.tenant, before_seq: self.before, limit };
        answer(StatusCode::OK, json!({"events": app.store.audit(&filter).await?}))
    }
}

fn query(query: Result<Query<AuditQuery>, QueryRejection>) -> Result<AuditQuery, ApiError> {
    let query = query.map(|Query(query)| query);
    query.map_err(|rejection| ApiError::bad_request("invalid_request", rejection.body_text()))
}

pub(super) async fn audit(State(app): Shared, asked: Result<Query<AuditQuery>, QueryRejection>) -> Answer {
    query(asked)?.events(&app).await
}

pub(super) async fn tenant_audit(
    State(app): Shared,
    tenant: Named<TenantId>,
    asked: Result<Query<AuditQuery>, QueryRejection>,
) -> Answer {
    let tenant = Some(named(tenant)?);
    AuditQuery { tenant, ..query(asked)? }.events(&app).await
}

pub(super) async fn roles(State(app): Shared) -> Answer {
    answer(StatusCode::OK, json!({"roles": app.store.roles().await?}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRole {
    name: String,
    scopes: Vec<Scope>,
}

pub(super) async fn create_role(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    new: Body<NewRole>,
) -> Answer {
    let new = body(new)?;
    scopes_bounded(&new.scopes)?;
    answer(StatusCode::CREATED, app.store.create_role(&new.name, &new.scopes, caller.actor()).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RoleScopes {
    scopes: Vec<Scope>,
}

pub(super) async fn set_role(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    role: Named<Id>,
    scopes: Body<RoleScopes>,
) -> Answer {
    let scopes = body(scopes)?.scopes;
    scopes_bounded(&scopes)?;
    answer(StatusCode::OK, app.store.set_role(&named(role)?.0, &scopes, caller.actor()).await?)
}

/// Each scope once at most is what a role is.
fn scopes_bounded(scopes: &[Scope]) -> Result<(), ApiError> {
    if scopes.len() <= Scope::ALL.len() {
        return Ok(());
    }
    Err(ApiError::bad_request("invalid_request", format!("scopes may have {} entries", Scope::ALL.len())))
}

pub(super) async fn delete_role(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    role: Named<Id>,
) -> Result<impl IntoResponse, ApiError> {
    app.store.delete_role(&named(role)?.0, caller.actor()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn signing_keys(State(app): Shared) -> Answer {
    answer(StatusCode::OK, json!({"signing_keys": app.store.list_signing_keys().await?}))
}

pub(super) async fn rotate_signing_key(State(app): Shared, Extension(caller): Extension<Caller>) -> Answer {
    let made = app.store.rotate_signing_key(&app.vault, caller.actor()).await?;
    app.current.refresh().await?;
    answer(StatusCode::CREATED, made)
}

pub(super) async fn retire_signing_key(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    kid: Named<Id>,
) -> Answer {
    let retired = app.store.retire_signing_key(&named(kid)?.0, caller.actor()).await?;
    app.current.refresh().await?;
    answer(StatusCode::OK, retired)
}

pub(super) async fn withdraw_signing_key(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    kid: Named<Id>,
) -> Answer {
    let withdrawn = app.store.withdraw_signing_key(&app.vault, &named(kid)?.0, caller.actor()).await?;
    app.current.refresh().await?;
    answer(StatusCode::OK, withdrawn)
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_body_is_an_order_or_refused(body in prop_oneof![
            ".{0,100}",
            "\\{(\"(name|settings|role|scopes|overlap_s|expires_s|sources|models|tokens_per_day|window_s_max|dimensions_max)\":(-1|0|1|99999999999999999999|null|true|\"acme\"|\"a b\"|\\[\"embed\"\\]|\\[\"10.0.0.0/8\"\\]|\\{\\}),?){0,4}\\}",
        ]) {
            super::super::fuzz::order(body.as_bytes());
        }
    }
}
