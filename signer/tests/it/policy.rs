//! The policy database: the same on SQLite and on Postgres.

use std::time::Duration;

use serde_json::json;
use vecmill_signer::claims::{JobId, Scope, TenantId};
use vecmill_signer::store::{
    AuditFilter, FirstTenant, NewKey, SettingsPatch, SigningKeyState, Store, StoreError, TenantSettings,
};
use vecmill_signer::vault::Vault;

use crate::support::Home;

fn tenant(name: &str) -> TenantId {
    name.parse().expect("a name")
}

fn patch(settings: serde_json::Value) -> SettingsPatch {
    serde_json::from_value(settings).expect("settings")
}

/// The audit since `seq`, oldest first: action, subject.
async fn deeds(store: &Store, since: u64) -> Vec<(String, String)> {
    let filter = AuditFilter { limit: 1000, ..AuditFilter::default() };
    let events = store.audit(&filter).await.expect("a database");
    assert!(events.windows(2).all(|pair| pair[0].seq > pair[1].seq), "newest first");
    events.into_iter().filter(|event| event.seq > since).rev().map(|event| (event.action, event.subject)).collect()
}

async fn last_seq(store: &Store) -> u64 {
    let newest = AuditFilter { limit: 1, ..AuditFilter::default() };
    store.audit(&newest).await.expect("a database").first().map_or(0, |event| event.seq)
}

#[tokio::test]
async fn tenants_and_limits() {
    for home in Home::of_each_kind().await {
        let (store, _, _) = home.bootstrap(TenantSettings::default()).await;
        let again = FirstTenant { id: tenant("other"), settings: TenantSettings::default() };
        let refused = store.bootstrap(&home.master_key_file(), &again, "test").await.expect_err("refused");
        assert!(matches!(refused, StoreError::AlreadyBootstrapped));
        assert!(store.tenant(&tenant("acme")).await.expect("a database").expect("there").operator);

        let globex = tenant("globex");
        let settings = TenantSettings { rows_per_job: u64::MAX, ..TenantSettings::default() };
        store.create_tenant(&globex, &settings, "test").await.expect("created");
        let refused = store.create_tenant(&globex, &settings, "test").await.expect_err("refused");
        assert!(matches!(&refused, StoreError::TenantExists(name) if name == "globex"), "{refused}");
        let made = store.tenant(&globex).await.expect("a database").expect("there");
        assert_eq!((made.ordinal, made.operator, made.active, made.epoch), (1, false, true, 0));
        assert_eq!(made.settings.rows_per_job, i64::MAX as u64, "what no column holds is capped");

        let since = last_seq(&store).await;
        let change = patch(json!({
            "tokens_per_minute": 1000, "models": ["b", "a", "b"], "sources": ["192.0.2.0/24", "2001:db8::/32"], "dimensions_max": 512,
        }));
        let changed = store.set_limits(&globex, change, "me").await.expect("changed").settings;
        assert_eq!((changed.limits.tokens_per_minute, changed.limits.tokens_burst), (1000, 1000), "the burst follows");
        assert_eq!(changed.models, ["a", "b"]);
        assert_eq!(
            changed.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.0/24", "2001:db8::/32"]
        );
        assert_eq!(changed.limits.stored_bytes, Some(1 << 40), "a new tenant has a limit");
        for (given, then) in [(json!(5), Some(5)), (json!(null), None)] {
            let set = store.set_limits(&globex, patch(json!({"stored_bytes": given})), "me").await.expect("changed");
            assert_eq!(set.settings.limits.stored_bytes, then);
            store.set_limits(&globex, patch(json!({})), "me").await.expect("nothing changed");
            let stored = store.tenant(&globex).await.expect("a database").expect("there");
            assert_eq!(stored.settings.limits.stored_bytes, then, "what is left out stays");
        }
        let back = patch(json!({"stored_bytes": 1_u64 << 40}));
        store.set_limits(&globex, back, "me").await.expect("changed");
        assert_eq!(changed.limits.concurrent_jobs, TenantSettings::default().limits.concurrent_jobs, "the rest stays");

        for wrong in [
            json!({"tokens_per_day": 0}),
            json!({"stored_bytes": 0}),
            json!({"dimensions_max": 4097}),
            json!({"window_s_max": 59}),
            json!({"models": ["a b"]}),
            json!({"models": vec!["a"; 65]}),
        ] {
            let refused = store.set_limits(&globex, patch(wrong.clone()), "me").await.expect_err("refused");
            assert!(matches!(refused, StoreError::BadSetting(_)), "{wrong}: {refused}");
        }
        assert_eq!(store.tenant(&globex).await.expect("a database").expect("there").settings, changed);
        let nobody = store.set_limits(&tenant("nobody"), patch(json!({})), "me").await.expect_err("refused");
        assert!(matches!(nobody, StoreError::NoTenant(_)));

        let suspended = store.set_active(&globex, false, "me").await.expect("suspended");
        assert!(!suspended.active && suspended.epoch == 1, "its tokens are void");
        let resumed = store.set_active(&globex, true, "me").await.expect("resumed");
        assert!(resumed.active && resumed.epoch == 1, "and stay so");
        assert_eq!(store.void_tokens(&globex, "me").await.expect("voided").epoch, 2);

        let done = deeds(&store, since).await;
        let actions: Vec<_> = done.iter().map(|(action, _)| action.as_str()).collect();
        assert_eq!(
            actions,
            [&["limit.set"; 6][..], &["tenant.suspend", "tenant.resume", "tenant.void-tokens"]].concat(),
            "refusals leave no trace"
        );
        let filter = AuditFilter { tenant: Some(globex.clone()), before_seq: Some(since + 2), limit: 10 };
        let event = store.audit(&filter).await.expect("a database").into_iter().next().expect("an event");
        assert_eq!((event.actor.as_str(), event.action.as_str()), ("me", "limit.set"));
        let (before, after) = (event.before.expect("before"), event.after.expect("after"));
        assert_eq!(before["limits"]["tokens_per_minute"], TenantSettings::default().limits.tokens_per_minute);
        assert_eq!(after["limits"]["tokens_per_minute"], 1000);
        assert_eq!(after["sources"], json!(["192.0.2.0/24", "2001:db8::/32"]));
    }
}

#[tokio::test]
async fn roles() {
    for home in Home::of_each_kind().await {
        let (store, vault, _) = home.bootstrap(TenantSettings::default()).await;
        let names = async || -> Vec<String> {
            store.roles().await.expect("a database").into_iter().map(|role| role.name).collect()
        };
        assert_eq!(names().await, ["admin", "reader", "writer"]);
        let made =
            store.create_role("embedder", &[Scope::Embed, Scope::JobsRead, Scope::Embed], "me").await.expect("made");
        assert_eq!(made.scopes, [Scope::JobsRead, Scope::Embed], "each once, in one order");
        let new = |role: &str| NewKey { tenant: tenant("acme"), role: role.to_owned(), expires_s: None };
        let key = store.create_key(&vault, &new("embedder"), "me").await.expect("a key");
        let scopes = async || store.find_key(key.id()).await.expect("a database").expect("there").scopes;
        assert_eq!(scopes().await, [Scope::JobsRead, Scope::Embed]);
        store.set_role("embedder", &[Scope::Embed], "me").await.expect("set");
        assert_eq!(scopes().await, [Scope::Embed]);

        for (refused, sentence) in [
            (store.create_role("embedder", &[], "me").await.map(drop), "already"),
            (store.create_role("a b", &[], "me").await.map(drop), "name"),
            (store.set_role("admin", &[], "me").await.map(drop), "built in"),
            (store.delete_role("reader", "me").await, "built in"),
            (store.delete_role("embedder", "me").await, "in use"),
            (store.set_role("nothing", &[], "me").await.map(drop), "no role"),
            (store.create_key(&vault, &new("nothing"), "me").await.map(drop), "no role"),
        ] {
            let told = refused.expect_err("refused").to_string();
            assert!(told.contains(sentence), "{told}");
        }
        store.create_role("unused", &[Scope::JobsRead], "me").await.expect("made");
        store.delete_role("unused", "me").await.expect("deleted");
        assert_eq!(names().await, ["admin", "embedder", "reader", "writer"]);
        let done = deeds(&store, 0).await;
        let of_roles: Vec<_> = done.iter().filter(|(action, _)| action.starts_with("role.")).collect();
        assert_eq!(of_roles.len(), 4, "{of_roles:?}");
    }
}

#[tokio::test]
async fn api_keys_live_and_end() {
    for home in Home::of_each_kind().await {
        let (store, vault, first) = home.bootstrap(TenantSettings::default()).await;
        let now = jiff::Timestamp::now().as_second() as u64;
        let new = NewKey { tenant: tenant("acme"), role: "writer".to_owned(), expires_s: Some(now + 7200) };
        let key = store.create_key(&vault, &new, "me").await.expect("a key");
        assert!(
            key.expose().starts_with(&store.find_key(key.id()).await.expect("a database").expect("there").info.prefix)
        );

        let rotated = store.rotate_key(&vault, Some(&tenant("acme")), key.id(), 3600, "me").await.expect("rotated");
        assert_ne!(rotated.key.id(), key.id());
        assert_eq!((rotated.info.role.as_str(), rotated.info.expires_s), ("writer", Some(now + 7200)), "the same end");
        assert!((now + 3600..now + 3610).contains(&rotated.old_expires_s));
        let longer = store.rotate_key(&vault, None, rotated.key.id(), 90_000, "me").await.expect("rotated");
        assert_eq!(longer.old_expires_s, now + 7200, "no longer than it would have lived");

        let absent = store.revoke_key(Some(&tenant("globex")), key.id(), "me").await.expect_err("another's");
        assert!(matches!(absent, StoreError::NoKey(_)), "as absent as one that is not there: {absent}");
        let revoked = store.revoke_key(Some(&tenant("acme")), key.id(), "me").await.expect("revoked");
        assert!(revoked.revoked_s.is_some());
        let again = store.revoke_key(None, key.id(), "me").await.expect("as it was");
        assert_eq!(again.revoked_s, revoked.revoked_s);
        let over = store.rotate_key(&vault, None, key.id(), 3600, "me").await.expect_err("over");
        assert!(matches!(over, StoreError::KeyOver(_)), "{over}");

        let ids: Vec<_> = store.keys_of(Some(&tenant("acme"))).await.expect("a database");
        assert_eq!(ids.len(), 5, "two of the bootstrap and three more");
        assert!(store.keys_of(Some(&tenant("globex"))).await.expect("a database").is_empty());
        let done = deeds(&store, 0).await;
        let of_key = |action: &str| done.iter().filter(|(done, _)| done == action).count();
        assert_eq!((of_key("key.create"), of_key("key.rotate"), of_key("key.revoke")), (5, 2, 1));
        let filter = AuditFilter { limit: 1000, ..AuditFilter::default() };
        let told = serde_json::to_string(&store.audit(&filter).await.expect("a database")).expect("JSON");
        for secret in [&key, &first.admin, &first.writer, &rotated.key] {
            assert!(!told.contains(&secret.expose()[20..]), "the audit holds no secret");
        }
    }
}

#[tokio::test]
async fn signing_keys_from_rotation_to_withdrawal() {
    for home in Home::of_each_kind().await {
        let (store, vault, _) = home.bootstrap(TenantSettings::default()).await;
        let states = async || -> Vec<SigningKeyState> {
            store.list_signing_keys().await.expect("a database").into_iter().map(|key| key.state).collect()
        };
        assert_eq!(states().await, [SigningKeyState::Signing]);
        let (first, published) = store.signing_keys(&vault).await.expect("keys");
        assert_eq!(published.kids().count(), 1);

        // The next is published before it signs, and the first is until long after.
        let next = store.rotate_signing_key(&vault, "me").await.expect("rotated");
        assert_eq!(states().await, [SigningKeyState::Published, SigningKeyState::Signing]);
        let (signing, published) = store.signing_keys(&vault).await.expect("keys");
        assert_eq!((signing.kid(), published.kids().count()), (first.kid(), 2));
        let listed = store.list_signing_keys().await.expect("a database");
        let week = 8 * 24 * 3600;
        assert!(listed[1].retired_s.is_some_and(|at| at > next.signs_from_s + week), "longer than any grant of it");
        assert_eq!(listed[0].retired_s, None);

        let in_use = store.retire_signing_key(first.kid(), "me").await.expect_err("it signs");
        assert!(matches!(in_use, StoreError::SigningKeyInUse(_)), "{in_use}");
        store.retire_signing_key(&next.kid, "me").await.expect("retired: it never signed");
        assert_eq!(states().await, [SigningKeyState::Retired, SigningKeyState::Signing]);
        let listed = store.list_signing_keys().await.expect("a database");
        assert_eq!(listed[1].retired_s, None, "nothing takes over from it any more");

        // A vault of another master key must not add a key that no signer could open.
        let other = Vault::open_or_create(&home.folder.path().join("other.key")).expect("a vault");
        assert!(store.rotate_signing_key(&other, "me").await.is_err());

        let withdrawn = store.withdraw_signing_key(&vault, first.kid(), "me").await.expect("withdrawn");
        assert_eq!(withdrawn.state, SigningKeyState::Withdrawn);
        let none = store.signing_keys(&vault).await.expect_err("the next is not known to verifiers yet");
        assert!(matches!(none, StoreError::NoSigningKey), "{none}");
        tokio::time::sleep(Duration::from_millis(6100)).await;
        let (signing, published) = store.signing_keys(&vault).await.expect("keys");
        assert_ne!(signing.kid(), first.kid());
        assert_eq!(published.kids().collect::<Vec<_>>(), [signing.kid()]);
        let unknown = store.withdraw_signing_key(&vault, "nothing", "me").await.expect_err("unknown");
        assert!(matches!(unknown, StoreError::NoSuchSigningKey(_)), "{unknown}");
    }
}

#[tokio::test]
async fn revocations_of_one_tenant_have_a_bound() {
    for home in Home::of_each_kind().await {
        let (store, _, _) = home.bootstrap(TenantSettings::default()).await;
        let job = |number: u32| {
            JobId::from_digest(&[number.to_be_bytes(), [0; 4]].concat().repeat(4).try_into().expect("32 bytes"))
        };
        for number in 0..32 {
            store.revoke_job(&tenant("acme"), &job(number), "me").await.expect("revoked");
        }
        let refused = store.revoke_job(&tenant("acme"), &job(32), "me").await.expect_err("one too many");
        assert!(refused.to_string().contains("void-tokens"), "{refused}");
        store.revoke_job(&tenant("acme"), &job(7), "me").await.expect("one that is there may be renewed");
        let nobody = store.revoke_job(&tenant("nobody"), &job(1), "me").await.expect_err("no tenant");
        assert!(matches!(nobody, StoreError::NoTenant(_)), "{nobody}");
    }
}
