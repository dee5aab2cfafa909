//! What comes to the server before it knows from whom. See [`crate::fuzz`].

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use axum::body::Body;
use axum::extract::{Form, FromRequest as _};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue, Request};
use serde::de::DeserializeOwned;

use super::admin::{KeyOrder, NewRole, NewTenant, Overlap, RoleScopes};
use super::auth;
use super::authorization::{basic, bearer};
use super::token::{TokenForm, filled, narrowed};
use crate::claims::Scope;
use crate::store::{SettingsPatch, TenantSettings};

/// The header is read, by one way or the other or by neither.
pub(crate) fn authorization(value: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, value.clone());
    assert!(bearer(&headers).is_err() || !matches!(basic(&headers), Ok(Some(_))));
    headers.append(AUTHORIZATION, value);
    assert!(bearer(&headers).is_err() && basic(&headers).is_err(), "two of them are nobody's");
}

/// Reads a body as the handler gets it.
pub(super) fn token_form(body: Vec<u8>) -> Option<TokenForm> {
    let request = Request::post("/").header("content-type", "application/x-www-form-urlencoded");
    let request = request.body(Body::from(body)).expect("a request");
    let mut reading = pin!(Form::from_request(request, &()));
    match reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(form) => form.ok().map(|Form(form)| form),
        Poll::Pending => panic!("a body that is there is waited for"),
    }
}

/// A body is a form or is refused, and no scope comes of it that its role lacks.
pub(crate) fn form(body: &[u8]) {
    if let Some(form) = token_form(body.to_vec()) {
        let shown = auth::credentials(&HeaderMap::new(), form.client_id, form.client_secret);
        let _ = shown.map(|shown| auth::shown_key(&shown));
        let role = &Scope::ALL[..2];
        if let Ok(scopes) = narrowed(role, filled(form.scope.as_deref())) {
            assert!(!scopes.is_empty() && scopes.iter().all(|scope| role.contains(scope)));
        }
    }
}

/// Whatever an order of an administrator says, what is made of it keeps to what a tenant may be.
pub(crate) fn order(body: &[u8]) {
    fn read<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
        serde_json::from_slice(body).ok()
    }
    let _ = read::<KeyOrder>(body);
    let _ = read::<Overlap>(body);
    let _ = read::<NewRole>(body);
    let _ = read::<RoleScopes>(body);
    let patches = [read::<SettingsPatch>(body), read::<NewTenant>(body).map(|new| new.settings)];
    for settings in patches.into_iter().flatten().filter_map(|patch| patch.apply(TenantSettings::default()).ok()) {
        assert!(settings.limits.tokens_per_day > 0 && settings.window_s_max >= 60 && settings.models.len() <= 64);
    }
}
