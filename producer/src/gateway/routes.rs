//! The one table of routes. Each says who may use it, and the check is put before its handler here.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, delete, get, post};
use vecmill_signer::claims::Scope;

use super::auth::Caller;
use super::bodies::BodyLen;
use super::error::ApiError;
use super::limits::Standing;
use super::{App, batches, embeddings, files, jobs, models, openapi, usage, webhooks};
use crate::shares::Share;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Anyone.
    Open,
    /// Whoever has this scope.
    Scope(Scope),
}

#[rustfmt::skip]
fn routes() -> Vec<(&'static str, Access, BodyLen, MethodRouter<Arc<App>>)> {
    vec![
        ("/healthz", Access::Open, BodyLen::None, get(async || "ok\n")),
        ("/readyz", Access::Open, BodyLen::None, get(readyz)),
        ("/openapi.json", Access::Open, BodyLen::None, get(openapi::openapi)),
        ("/v1/models", Access::Scope(Scope::Embed), BodyLen::None, get(models::list)),
        // A model's name has a slash in it, which most clients leave as it is.
        ("/v1/models/{*model}", Access::Scope(Scope::Embed), BodyLen::None, get(models::model)),
        ("/v1/embeddings", Access::Scope(Scope::Embed), BodyLen::Texts, post(embeddings::embeddings)),
        // As long as its own bound allows.
        ("/v1/files", Access::Scope(Scope::JobsSubmit), BodyLen::Streamed, post(files::upload::upload).layer(DefaultBodyLimit::disable())),
        ("/v1/files", Access::Scope(Scope::JobsRead), BodyLen::None, get(files::list)),
        ("/v1/files/{file_id}", Access::Scope(Scope::JobsRead), BodyLen::None, get(files::get)),
        ("/v1/files/{file_id}", Access::Scope(Scope::JobsDelete), BodyLen::None, delete(files::delete)),
        ("/v1/files/{file_id}/content", Access::Scope(Scope::VectorsRead), BodyLen::None, get(files::content)),
        ("/v1/batches", Access::Scope(Scope::JobsSubmit), BodyLen::Parameters, post(batches::create::create)),
        ("/v1/batches", Access::Scope(Scope::JobsRead), BodyLen::None, get(batches::list)),
        ("/v1/batches/{batch_id}", Access::Scope(Scope::JobsRead), BodyLen::None, get(batches::get)),
        ("/v1/batches/{batch_id}/cancel", Access::Scope(Scope::JobsCancel), BodyLen::Parameters, post(batches::cancel)),
        ("/v1/jobs", Access::Scope(Scope::JobsRead), BodyLen::None, get(jobs::list)),
        ("/v1/jobs/{job}", Access::Scope(Scope::JobsRead), BodyLen::None, get(jobs::get)),
        ("/v1/jobs/{job}/events", Access::Scope(Scope::JobsRead), BodyLen::None, get(jobs::events)),
        ("/v1/jobs/{job}/parts", Access::Scope(Scope::JobsRead), BodyLen::None, get(jobs::results::parts)),
        ("/v1/jobs/{job}/parts/{part}", Access::Scope(Scope::VectorsRead), BodyLen::None, get(jobs::results::part)),
        ("/v1/jobs/{job}/manifest", Access::Scope(Scope::JobsRead), BodyLen::None, get(jobs::results::manifest)),
        ("/v1/jobs/{job}/errors", Access::Scope(Scope::JobsRead), BodyLen::None, get(jobs::results::errors)),
        ("/v1/jobs/{job}/cancel", Access::Scope(Scope::JobsCancel), BodyLen::Parameters, post(jobs::cancel)),
        ("/v1/jobs/{job}/pause", Access::Scope(Scope::JobsCancel), BodyLen::Parameters, post(jobs::pause)),
        ("/v1/jobs/{job}/resume", Access::Scope(Scope::JobsCancel), BodyLen::Parameters, post(jobs::resume)),
        ("/v1/jobs/{job}/retry", Access::Scope(Scope::JobsSubmit), BodyLen::Parameters, post(jobs::retry)),
        ("/v1/webhooks/secret", Access::Scope(Scope::JobsSubmit), BodyLen::None, get(webhooks::secret)),
        ("/v1/usage", Access::Scope(Scope::JobsRead), BodyLen::None, get(usage::usage)),
        ("/v1/limits", Access::Scope(Scope::JobsRead), BodyLen::None, get(usage::limits)),
    ]
}

/// The routes with their checks.
pub(super) fn mounted(app: &Arc<App>) -> Router<Arc<App>> {
    routes().into_iter().fold(Router::new(), |router, (path, access, body, handler)| {
        router.route(path, handler.route_layer(from_fn_with_state((Arc::clone(app), access, body), guard)))
    })
}

/// Lets through who may, and tells the handler who that is.
///
/// In this order, so that nobody holds what it has not paid for: whose request it is; its tenant's requests a minute; memory for
/// its body, of the tenant's share; the body, within its time; and only then a place among the requests that are worked on.
/// What is open to anyone takes none of these: it is bounded by its address's connections.
async fn guard(
    State((app, access, body)): State<(Arc<App>, Access, BodyLen)>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let Access::Scope(scope) = access else { return next.run(request).await };
    let caller = match app.auth.caller(request.headers(), scope, peer).await {
        Ok(caller) => caller,
        Err(refusal) => return refusal.into_response(),
    };
    // Before a look at the body: who is over its limit costs no more than this.
    let standing = match app.limits.count(caller.access.tenant(), caller.access.limits()).await {
        Ok(standing) => standing,
        Err(refusal) => return refusal.into_response(),
    };
    let mut response = match admitted(&app, caller.clone(), standing, request, body).await {
        // What is held for the request is held until it is answered.
        Ok((request, _held)) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        // The signer or a worker has heard of something before this gateway did.
        response = app.auth.refused_elsewhere(&caller).await.into_response();
    }
    standing.tell(response.headers_mut());
    response
}

/// The request with its body and what its handler is told of it; the memory of its body, and its place.
async fn admitted(
    app: &App,
    caller: Caller,
    standing: Standing,
    request: Request,
    body: BodyLen,
) -> Result<(Request, (Option<Share>, Option<Share>)), ApiError> {
    let tenant = caller.access.tenant().clone();
    let (mut request, memory) = app.bodies.read(tenant.as_str(), request, body).await?;
    // An upload has a place of its own kind: it may take hours.
    let place =
        (body != BodyLen::Streamed).then(|| app.places.take(tenant.as_str(), 1).ok_or_else(full)).transpose()?;
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(standing);
    Ok((request, (memory, place)))
}

fn full() -> ApiError {
    let sentence = "the gateway has all the requests of this tenant that it works on at once; ask again";
    ApiError::unavailable("overloaded", sentence)
}

/// `GET /readyz`: whether credentials can be checked and workers asked.
async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, String) {
    // Its own places: probes are answered whatever else there is, and a flood of them waits for nobody.
    let Ok(_place) = app.probes.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "Probes: too many at once\n".to_owned());
    };
    let mut lacking = Vec::new();
    if let Err(reason) = app.auth.ready().await {
        lacking.push(format!("Keys: {reason}"));
    }
    if !app.workers.ready() {
        lacking.push("Broker: no connection to RabbitMQ".to_owned());
    }
    match lacking.is_empty() {
        true => (StatusCode::OK, "ready\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, lacking.join("\n") + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_needs_credentials_is_described_and_nothing_else() {
        let described: BTreeSet<_> = openapi::described().paths.paths.into_keys().collect();
        let closed = routes().into_iter().filter(|(_, access, ..)| *access != Access::Open);
        // The rest of a path, in the router's words; a parameter in the description's.
        let closed: BTreeSet<_> = closed.map(|(path, ..)| path.replace("{*", "{")).collect();
        assert_eq!(described, closed);
    }
}
