//! Every route with every kind of caller and tenant. The routes come from the server's own table, so a new one is in here
//! before anybody thinks of it; what each must answer follows from the access that the table states.

use serde_json::{Value, json};
use vecmill_signer::claims::Scope;
use vecmill_signer::client::ApiKey;
use vecmill_signer::server::{Access, route_table};
use vecmill_signer::store::TenantSettings;

use crate::support::{Answer, Signer};

/// Who asks.
struct Caller {
    name: &'static str,
    /// None: shows nothing.
    key: Option<ApiKey>,
    tenant: &'static str,
    operator: bool,
    scopes: Vec<Scope>,
}

/// Whose things are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Named {
    Own,
    Other,
    /// A tenant that is not there.
    Nobody,
}

impl Caller {
    fn may(&self, access: Access, named: Option<Named>) -> bool {
        let admin = self.scopes.contains(&Scope::Admin);
        match access {
            Access::Open => true,
            // An API key is shown in the form, not as a token: no token opens these.
            Access::Client => false,
            Access::Scope(scope) => self.scopes.contains(&scope),
            Access::Submission => self.scopes.contains(&Scope::JobsSubmit),
            Access::TenantAdmin => admin && (self.operator || named.is_none_or(|named| named == Named::Own)),
            Access::Operator => admin && self.operator,
        }
    }
}

async fn callers(signer: &Signer) -> Vec<Caller> {
    signer.store.create_role("manager", &[Scope::Admin], "test").await.expect("a role");
    signer.store.create_role("nothing", &[], "test").await.expect("a role");
    let mut callers = vec![Caller { name: "nobody", key: None, tenant: "globex", operator: false, scopes: Vec::new() }];
    for (name, tenant, role) in [
        ("the operator's admin", "acme", "admin"),
        ("the operator's writer", "acme", "writer"),
        ("an admin", "globex", "admin"),
        ("a manager", "globex", "manager"),
        ("a writer", "globex", "writer"),
        ("a reader", "globex", "reader"),
        ("a key without scopes", "globex", "nothing"),
    ] {
        let key = signer.key(tenant, role).await;
        let scopes = signer.store.find_key(key.id()).await.expect("a database").expect("there").scopes;
        callers.push(Caller { name, key: Some(key), tenant, operator: tenant == "acme", scopes });
    }
    callers
}

/// The path with names filled in; the tenant is the one named, nothing else is there.
fn path(pattern: &str, caller: &Caller, named: Option<Named>) -> String {
    let tenant = match named {
        Some(Named::Own) | None => caller.tenant,
        Some(Named::Other) => "initech",
        Some(Named::Nobody) => "hooli",
    };
    let filled = pattern
        .replace("{tenant}", tenant)
        .replace("{job}", &"ab".repeat(16))
        .replace("{key}", "0000000000000000")
        .replace("{role}", "absent")
        .replace("{kid}", "absent");
    assert!(!filled.contains('{'), "a name that this test does not know: {pattern}");
    filled
}

async fn ask(signer: &Signer, caller: &Caller, method: &str, path: &str) -> Answer {
    // A fresh token each time: some routes void those there are.
    let token = match &caller.key {
        Some(key) => Some(signer.token(key).await),
        None => None,
    };
    let body = matches!(method, "POST" | "PATCH").then(|| json!({}));
    signer.ask(token.as_deref(), method, path, body).await
}

#[tokio::test]
async fn each_route_lets_in_whom_its_access_says_and_nobody_else() {
    let signer = Signer::start(TenantSettings::default()).await;
    signer.key("initech", "admin").await;
    let callers = callers(&signer).await;
    let routes = route_table();
    let (mut let_in, mut kept_out) = (0, 0);
    for (method, pattern, access) in &routes {
        let all = [Some(Named::Own), Some(Named::Other), Some(Named::Nobody)];
        let named = if pattern.contains("{tenant}") { &all[..] } else { &[None][..] };
        for caller in &callers {
            let mut refusals: Vec<(u16, Value)> = Vec::new();
            for named in named {
                let at = path(pattern, caller, *named);
                let answer = ask(&signer, caller, method.as_str(), &at).await;
                let case = format!("{method} {at} by {}: {} {}", caller.name, answer.status, answer.body);
                let own_suspension = pattern.ends_with("/suspend") && *named == Some(Named::Own);
                if caller.may(*access, *named) && !own_suspension {
                    assert!(![401, 403, 404, 405].contains(&answer.status) || known_absent(pattern, *named), "{case}");
                    assert!(![401, 403, 405].contains(&answer.status) && answer.status < 500, "{case}");
                    let_in += 1;
                    continue;
                }
                kept_out += 1;
                let expected = match (access, &caller.key) {
                    // The form is read first: without a grant type or a token there is nobody to tell.
                    (Access::Client, _) => vec![400, 401],
                    (_, None) => vec![401],
                    _ => vec![403],
                };
                assert!(expected.contains(&answer.status), "{case}");
                if *access != Access::Client {
                    let code = if caller.key.is_none() { "invalid_token" } else { "" };
                    let known = ["insufficient_scope", "access_denied", code];
                    assert!(known.contains(&answer.body["error"].as_str().expect("a code")), "{case}");
                }
                if *named != Some(Named::Own) {
                    refusals.push((answer.status, answer.body));
                }
            }
            // Another's tenant and one that is not there: the refusal tells nobody which.
            assert!(refusals.windows(2).all(|pair| pair[0] == pair[1]), "{pattern} by {}: {refusals:?}", caller.name);
        }
    }
    assert!(let_in > 100 && kept_out > 200, "{let_in} let in, {kept_out} kept out");
}

/// Whether the path names something that is not there: then whoever may ask is told so.
fn known_absent(pattern: &str, named: Option<Named>) -> bool {
    // There during an upgrade only.
    pattern == "/v1/revocations"
        || named == Some(Named::Nobody)
        || ["{key}", "{role}", "{kid}"].iter().any(|name| pattern.contains(name))
}

#[tokio::test]
async fn other_methods_and_paths_lead_nowhere() {
    let signer = Signer::start(TenantSettings::default()).await;
    let admin = signer.token(&signer.keys.admin).await;
    let routes = route_table();
    for (_, pattern, _) in &routes {
        let caller = Caller { name: "", key: None, tenant: "acme", operator: true, scopes: Vec::new() };
        let at = path(pattern, &caller, None);
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"] {
            if routes.iter().any(|(known, other, _)| known.as_str() == method && other == pattern) {
                continue;
            }
            // A server that answers HEAD and GET alike would count as knowing the method.
            let answer = signer.ask(Some(&admin), method, &at, None).await;
            assert_eq!(answer.status, 405, "{method} {at}");
        }
        for off in [format!("{at}/"), format!("{at}/x"), format!("/{at}"), at.replace("/v1/", "/v1/../v1/")] {
            if off != at {
                let answer = signer.ask(Some(&admin), "GET", &off, None).await;
                assert!([404, 405].contains(&answer.status) || off.contains(".."), "{off}: {}", answer.status);
            }
        }
    }
}
