//! Every route of the gateway wants one scope, and a credential at all: taken from its own description, so that a new route
//! can't be forgotten.

use reqwest::Method;
use serde_json::Value;
use vecmill_tests::{Cluster, Tenant};

use super::Caller;

const SCOPES: [&str; 6] = ["jobs:submit", "jobs:read", "vectors:read", "jobs:cancel", "jobs:delete", "embed"];

/// What each route is for; the first that fits.
const WANTED: [(&str, &str, &str); 9] = [
    ("GET", "/v1/models", "embed"),
    ("POST", "/v1/embeddings", "embed"),
    ("GET", "/v1/files/{file_id}/content", "vectors:read"),
    ("GET", "/v1/jobs/{job}/parts/{part}", "vectors:read"),
    ("GET", "/v1/webhooks/secret", "jobs:submit"),
    ("GET", "/v1/", "jobs:read"),
    ("DELETE", "/v1/files/{file_id}", "jobs:delete"),
    ("POST", "/v1/jobs/{job}/retry", "jobs:submit"),
    ("POST", "/v1/jobs/{job}/", "jobs:cancel"),
];

fn wanted(method: &str, path: &str) -> &'static str {
    if (method, path) == ("POST", "/v1/batches/{batch_id}/cancel") {
        return "jobs:cancel";
    }
    let fits = |(of, prefix, _): &&(&str, &str, &str)| *of == method && path.starts_with(prefix);
    WANTED.iter().find(fits).map_or("jobs:submit", |(_, _, scope)| scope)
}

#[tokio::test]
async fn every_route_wants_its_scope() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.admin("a", &[]);
    let gateway = cluster.gateway(&[]).await;
    // Each lacks one scope.
    let mut lacking = Vec::new();
    for scope in SCOPES {
        let others: Vec<_> = SCOPES.into_iter().filter(|other| *other != scope).collect();
        let role = format!("{}-no-{}", cluster.unique(), scope.replace(':', "-"));
        cluster.signer(&["role", "create", &role, "--scopes", &others.join(",")]);
        let tenant = Tenant { api_key: cluster.api_key(&tenant.id, &role), ..tenant.clone() };
        lacking.push((scope, Caller::new(&gateway, &tenant)));
    }
    let nobody = Caller::new(&gateway, &Tenant { api_key: "vm_nobody".to_owned(), ..tenant.clone() });
    let described: Value = serde_json::from_str(&gateway.get("/openapi.json").await.unwrap().1).unwrap();
    let mut routes = 0;
    for (path, methods) in described["paths"].as_object().unwrap() {
        let asked = path
            .replace("{file_id}", "file-none")
            .replace("{batch_id}", "batch_none")
            .replace("{job}", &"0".repeat(32))
            .replace("{part}", "0")
            .replace("{model}", "none");
        for method in methods.as_object().unwrap().keys().map(|method| method.to_uppercase()) {
            routes += 1;
            let verb: Method = method.parse().unwrap();
            let (status, _) = nobody.ask(verb.clone(), &asked, None).await;
            assert_eq!(status, 401, "{method} {path} without a good key");
            for (scope, caller) in &lacking {
                let (status, body) = caller.ask(verb.clone(), &asked, None).await;
                let is_wanted = wanted(&method, path) == *scope;
                let told = body["error"]["code"] == "insufficient_scope";
                assert_eq!(
                    (status == 403, told),
                    (is_wanted, is_wanted),
                    "{method} {path} without {scope}: {status} {body}"
                );
            }
        }
    }
    assert!(routes >= 26, "{routes}");
}
