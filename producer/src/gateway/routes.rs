//! The one table of routes. Each says who may use it, and the check is put before its handler here.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get, post};
use vecmill_signer::claims::Scope;

use super::{App, embeddings, models, openapi};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Anyone.
    Open,
    /// Whoever has this scope.
    Scope(Scope),
}

#[rustfmt::skip]
fn routes() -> Vec<(&'static str, Access, MethodRouter<Arc<App>>)> {
    vec![
        ("/healthz", Access::Open, get(async || "ok\n")),
        ("/readyz", Access::Open, get(readyz)),
        ("/openapi.json", Access::Open, get(openapi::openapi)),
        ("/v1/models", Access::Scope(Scope::Embed), get(models::list)),
        // A model's name has a slash in it, which most clients leave as it is.
        ("/v1/models/{*model}", Access::Scope(Scope::Embed), get(models::model)),
        ("/v1/embeddings", Access::Scope(Scope::Embed), post(embeddings::embeddings)),
    ]
}

/// The routes with their checks.
pub(super) fn mounted(app: &Arc<App>) -> Router<Arc<App>> {
    routes().into_iter().fold(Router::new(), |router, (path, access, handler)| {
        router.route(path, handler.route_layer(from_fn_with_state((Arc::clone(app), access), guard)))
    })
}

/// Lets through who may, and tells the handler who that is.
async fn guard(
    State((app, access)): State<(Arc<App>, Access)>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Access::Scope(scope) = access {
        match app.auth.caller(request.headers(), scope, peer).await {
            Ok(caller) => _ = request.extensions_mut().insert(caller),
            Err(refusal) => return refusal.into_response(),
        }
    }
    next.run(request).await
}

/// `GET /readyz`: whether credentials can be checked and workers asked.
async fn readyz(State(app): State<Arc<App>>) -> (StatusCode, String) {
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
        let closed = routes().into_iter().filter(|(_, access, _)| *access != Access::Open);
        // The rest of a path, in the router's words; a parameter in the description's.
        let closed: BTreeSet<_> = closed.map(|(path, _, _)| path.replace("{*", "{")).collect();
        assert_eq!(described, closed);
    }
}
