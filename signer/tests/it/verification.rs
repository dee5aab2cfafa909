//! What the verifier takes and what it refuses. Each token here is signed by a trusted key unless a test says otherwise, so
//! that it is the one flaw that refuses it.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use vecmill_signer::claims::{Digest, JobId, Limits, Scope};
use vecmill_signer::mint::{AccessRequest, GrantRequest, Grantee, Minter, SigningKey};
use vecmill_signer::verify::{Keys, Refusal, Verifier};

use crate::support::{Forger, ISSUER, NOW, access_claims, b64, grant_claims, header, with, without};

async fn access_refusal(forger: &Forger, token: &str) -> Refusal {
    forger.verifier().access_at(token, NOW).await.expect_err("refused")
}

async fn grant_refusal(forger: &Forger, claims: &Value) -> Refusal {
    forger.verifier().grant_at(&forger.grant(claims), NOW).await.expect_err("refused")
}

/// What [`limits`](crate::support::limits) says.
const LIMITS: Limits = Limits {
    requests_per_minute: 1,
    tokens_per_minute: 2,
    tokens_burst: 3,
    tokens_per_day: 4,
    queued_tokens: 5,
    concurrent_jobs: 6,
    stored_bytes: None,
};

#[tokio::test]
async fn good_tokens_pass() {
    let forger = Forger::new();
    let access = forger.verifier().access_at(&forger.access(&access_claims()), NOW).await.expect("good");
    assert_eq!(access.tenant().as_str(), "acme");
    assert_eq!(access.key_id(), "key1");
    assert_eq!(access.client_addr(), None);
    assert!(access.has_scope(Scope::JobsSubmit) && !access.has_scope(Scope::Admin));

    let grant = forger.verifier().grant_at(&forger.grant(&grant_claims()), NOW).await.expect("good");
    assert_eq!(grant.tenant().as_str(), "acme");
    assert_eq!(grant.job().as_str(), "cd".repeat(16));
    assert_eq!(grant.manifest_sha256().to_string(), "ef".repeat(32));
    assert_eq!((grant.model(), grant.dimensions(), grant.rows(), grant.lane()), ("vecmill/mini", 64, 1000, 3));
    assert_eq!(grant.limits(), LIMITS);
    assert_eq!((grant.issued_at(), grant.expires_at()), (NOW, NOW + 86_400));
}

#[tokio::test]
async fn minted_tokens_pass_and_only_as_what_they_are() {
    let minter = Minter::new(ISSUER.to_owned(), SigningKey::generate().expect("random source"));
    let verifier = Verifier::new(ISSUER.to_owned(), Keys::Fixed(minter.public_keys()));
    let tenant: vecmill_signer::claims::TenantId = "acme".parse().expect("a name");
    let (access, claims) = minter
        .mint_access(AccessRequest {
            tenant: tenant.clone(),
            scopes: vec![Scope::Embed],
            key_id: "key1".to_owned(),
            client_addr: Some("192.0.2.1".to_owned()),
            limits: LIMITS,
            sources: vec!["192.0.2.0/24".parse().expect("a range")],
            parent: None,
            epoch: 7,
        })
        .expect("signed");
    let verified = verifier.access(&access).await.expect("good");
    assert_eq!(verified.token_id(), claims.jti);
    assert_eq!(verified.client_addr(), Some("192.0.2.1"));
    let from = |address: &str| verified.may_come_from(address.parse().expect("an address"));
    assert!(from("192.0.2.9") && !from("192.0.3.1"));
    assert_eq!(verified.expires_at() - verified.issued_at(), 300);

    let grantee = Grantee { tenant, key_id: "key1".to_owned(), client_addr: None, lane: 1, limits: LIMITS, epoch: 7 };
    let request = GrantRequest {
        job: JobId::from_digest(&[1; 32]),
        manifest_sha256: Digest::of(b"manifest"),
        model: "vecmill/mini".to_owned(),
        dimensions: 64,
        rows: 1,
        window_s: 600,
        life: None,
        run: None,
    };
    let (grant, claims) = minter.mint_grant(grantee, request).expect("signed");
    let verified = verifier.grant(&grant).await.expect("good");
    assert_eq!((verified.epoch(), verified.expires_at()), (7, claims.exp));

    assert_eq!(verifier.grant(&access).await.expect_err("refused"), Refusal::WrongType);
    assert_eq!(verifier.access(&grant).await.expect_err("refused"), Refusal::WrongType);
}

#[tokio::test]
async fn the_algorithm_is_pinned() {
    let forger = Forger::new();
    let claims = access_claims().to_string();
    for alg in ["none", "None", "HS256", "RS256", "ES256", "Ed25519", "eddsa", ""] {
        let header = json!({"alg": alg, "typ": "at+jwt", "kid": "k1"}).to_string();
        let token = forger.sign(&header, &claims);
        assert_eq!(access_refusal(&forger, &token).await, Refusal::WrongAlgorithm, "{alg}");
        // And with no signature at all.
        let (message, _) = token.rsplit_once('.').expect("signed");
        assert_eq!(access_refusal(&forger, &format!("{message}.")).await, Refusal::WrongAlgorithm, "{alg}");
    }

    // The classic: HMAC with the public key as its secret.
    let mut confused = Header::new(Algorithm::HS256);
    confused.typ = Some("at+jwt".to_owned());
    confused.kid = Some("k1".to_owned());
    let token = encode(&confused, &access_claims(), &EncodingKey::from_secret(forger.public())).expect("signed");
    assert_eq!(access_refusal(&forger, &token).await, Refusal::WrongAlgorithm);
}

#[tokio::test]
async fn the_type_is_pinned() {
    let forger = Forger::new();
    for typ in ["JWT", "job-grant+jwt", "AT+JWT", "application/at+jwt", ""] {
        let token = forger.sign(&header(typ), &access_claims().to_string());
        assert_eq!(access_refusal(&forger, &token).await, Refusal::WrongType, "{typ}");
    }
    let token = forger.sign(&header("at+jwt"), &grant_claims().to_string());
    assert_eq!(forger.verifier().grant_at(&token, NOW).await.expect_err("refused"), Refusal::WrongType);
    // A grant's claims under an access token's type, and the other way round.
    assert_eq!(access_refusal(&forger, &forger.access(&grant_claims())).await, Refusal::BadClaims);
    assert_eq!(grant_refusal(&forger, &access_claims()).await, Refusal::BadClaims);
}

#[tokio::test]
async fn the_kid_is_a_key_of_a_map_and_nothing_else() {
    let forger = Forger::new();
    let with_kid = |kid: Value| {
        forger.sign(&json!({"alg": "EdDSA", "typ": "at+jwt", "kid": kid}).to_string(), &access_claims().to_string())
    };
    for kid in ["k2", "K1", &"a".repeat(64)] {
        assert_eq!(access_refusal(&forger, &with_kid(json!(kid))).await, Refusal::UnknownKey, "{kid}");
    }
    for kid in ["", "../k1", "k1\0", "k1'--", "k 1", "http://evil/k", "é", &"a".repeat(65)] {
        assert_eq!(access_refusal(&forger, &with_kid(json!(kid))).await, Refusal::Malformed, "{kid}");
    }
    for kid in [json!(1), json!(["k1"]), Value::Null] {
        assert_eq!(access_refusal(&forger, &with_kid(kid)).await, Refusal::Malformed);
    }
}

#[tokio::test]
async fn headers_that_steer_the_check_are_refused() {
    let forger = Forger::new();
    for name in ["crit", "jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256"] {
        for value in [json!("https://evil.example"), json!([]), json!({"kty": "OKP"}), Value::Null] {
            let mut header: Value = serde_json::from_str(&header("at+jwt")).expect("JSON");
            header[name] = value;
            let token = forger.sign(&header.to_string(), &access_claims().to_string());
            assert_eq!(access_refusal(&forger, &token).await, Refusal::ForbiddenHeader(name));
        }
    }
    for header in [
        r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1","b64":false}"#,
        r#"{"alg":"EdDSA","alg":"EdDSA","typ":"at+jwt","kid":"k1"}"#,
        r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1","kid":"k1"}"#,
        r#"{"alg":"EdDSA","typ":"at+jwt"}"#,
        r#"{"alg":"EdDSA","kid":"k1"}"#,
        r#"["EdDSA","at+jwt","k1"]"#,
        "{}",
        "",
    ] {
        let token = forger.sign(header, &access_claims().to_string());
        assert_eq!(access_refusal(&forger, &token).await, Refusal::Malformed, "{header}");
    }
}

#[tokio::test]
async fn every_claim_is_needed_once_and_of_its_type() {
    let forger = Forger::new();
    for (claims, optional) in [(access_claims(), "client_addr"), (grant_claims(), "client_addr")] {
        let is_grant = claims.get("epoch").is_some();
        for name in claims.as_object().expect("an object").keys() {
            assert_ne!(name, optional);
            let wrong_type = if claims[name].is_string() { json!(5) } else { json!("5") };
            let twice = format!("{{\"{name}\":{},{}", claims[name], &claims.to_string()[1..]);
            let flawed = [
                without(claims.clone(), name).to_string(),
                with(claims.clone(), name, wrong_type).to_string(),
                with(claims.clone(), name, Value::Null).to_string(),
                with(claims.clone(), name, json!([claims[name]])).to_string(),
                twice,
            ];
            for text in flawed {
                let refusal = if is_grant {
                    let token = forger.sign(&header("job-grant+jwt"), &text);
                    forger.verifier().grant_at(&token, NOW).await.expect_err("refused")
                } else {
                    access_refusal(&forger, &forger.sign(&header("at+jwt"), &text)).await
                };
                assert_eq!(refusal, Refusal::BadClaims, "{name}: {text}");
            }
        }
        assert!(!is_grant || grant_refusal(&forger, &with(claims, "admin", json!(true))).await == Refusal::BadClaims);
    }
    let token = forger.access(&with(access_claims(), "admin", json!(true)));
    assert_eq!(access_refusal(&forger, &token).await, Refusal::BadClaims);
    for (name, value) in [
        ("sub", json!("../acme")),
        ("jti", json!("x")),
        ("manifest_sha256", json!("EF".repeat(32))),
        ("dimensions", json!(0)),
        ("dimensions", json!(64.5)),
        ("rows", json!(-1)),
        ("model", json!("")),
        ("key_id", json!("a/b")),
        ("limits", json!({"tokens_per_minute": 1})),
    ] {
        assert_eq!(
            grant_refusal(&forger, &with(grant_claims(), name, value.clone())).await,
            Refusal::BadClaims,
            "{name} {value}"
        );
    }
}

#[tokio::test]
async fn issuer_and_audience_are_ours() {
    let forger = Forger::new();
    for other in ["evil", "", "test-signer2", "Test-Signer"] {
        let token = forger.access(&with(access_claims(), "iss", json!(other)));
        assert_eq!(access_refusal(&forger, &token).await, Refusal::WrongIssuer, "{other}");
        let token = forger.access(&with(access_claims(), "aud", json!(other)));
        assert_eq!(access_refusal(&forger, &token).await, Refusal::WrongAudience, "{other}");
    }
    let grant = with(grant_claims(), "aud", json!("vecmill-api"));
    assert_eq!(grant_refusal(&forger, &grant).await, Refusal::WrongAudience);
}

#[tokio::test]
async fn times_hold_to_the_second() {
    let forger = Forger::new();
    let verifier = forger.verifier();
    let token = forger.access(&access_claims());
    let exp = NOW + 300;
    assert!(verifier.access_at(&token, exp + 29).await.is_ok(), "within the leeway");
    assert_eq!(verifier.access_at(&token, exp + 30).await.expect_err("refused"), Refusal::Expired);
    assert!(verifier.access_at(&token, NOW - 30).await.is_ok(), "within the leeway");
    assert_eq!(verifier.access_at(&token, NOW - 31).await.expect_err("refused"), Refusal::NotYetValid);

    let later = forger.access(&with(access_claims(), "nbf", json!(NOW + 31)));
    assert_eq!(access_refusal(&forger, &later).await, Refusal::NotYetValid);
    let from_the_future = forger.access(&with(access_claims(), "iat", json!(NOW + 31)));
    assert_eq!(access_refusal(&forger, &from_the_future).await, Refusal::NotYetValid);
    for exp in [NOW, NOW - 1, 0] {
        let backwards = forger.access(&with(access_claims(), "exp", json!(exp)));
        assert_eq!(access_refusal(&forger, &backwards).await, Refusal::BadClaims, "{exp}");
    }
}

#[tokio::test]
async fn lifetimes_are_capped() {
    let forger = Forger::new();
    let verifier = forger.verifier();
    let access = |exp: u64| forger.access(&with(access_claims(), "exp", json!(exp)));
    assert!(verifier.access_at(&access(NOW + 600), NOW).await.is_ok());
    for exp in [NOW + 601, u64::MAX] {
        assert_eq!(access_refusal(&forger, &access(exp)).await, Refusal::LifetimeTooLong);
    }
    let days_8 = 8 * 86_400;
    let grant = |exp: u64| with(grant_claims(), "exp", json!(exp));
    assert!(verifier.grant_at(&forger.grant(&grant(NOW + days_8)), NOW).await.is_ok());
    assert_eq!(grant_refusal(&forger, &grant(NOW + days_8 + 1)).await, Refusal::LifetimeTooLong);
    // Neither start alone stretches the life.
    let early = with(grant(NOW + days_8), "nbf", json!(NOW - 1));
    assert_eq!(grant_refusal(&forger, &early).await, Refusal::LifetimeTooLong);
}

#[tokio::test]
async fn the_signature_covers_every_bit() {
    let forger = Forger::new();
    let token = forger.access(&access_claims());
    let (message, signature) = token.rsplit_once('.').expect("signed");
    for cut in [0, 1, 40, 84, 85] {
        let refusal = access_refusal(&forger, &format!("{message}.{}", &signature[..cut])).await;
        assert!(matches!(refusal, Refusal::BadSignature | Refusal::Malformed), "cut at {cut}: {refusal}");
    }
    for at in 0..signature.len() {
        let mut flipped = signature.as_bytes().to_vec();
        flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
        let flipped = String::from_utf8(flipped).expect("ASCII");
        let refusal = access_refusal(&forger, &format!("{message}.{flipped}")).await;
        assert!(matches!(refusal, Refusal::BadSignature | Refusal::Malformed), "flipped at {at}: {refusal}");
    }
    // Other claims under the signature of these, and another's key under this kid.
    let (head, _) = message.split_once('.').expect("two parts");
    let swapped = format!("{head}.{}.{signature}", b64(with(access_claims(), "sub", json!("globex")).to_string()));
    assert_eq!(access_refusal(&forger, &swapped).await, Refusal::BadSignature);
    assert_eq!(access_refusal(&forger, &Forger::new().access(&access_claims())).await, Refusal::BadSignature);
}

#[tokio::test]
async fn a_token_that_was_good_before_vouches_for_no_other_and_not_for_ever() {
    let forger = Forger::new();
    let verifier = forger.verifier();
    let token = forger.access(&access_claims());
    for _ in 0..2 {
        verifier.access_at(&token, NOW).await.expect("good");
    }
    for at in 0..token.len() {
        let mut flipped = token.clone().into_bytes();
        flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
        let flipped = String::from_utf8(flipped).expect("ASCII");
        assert!(verifier.access_at(&flipped, NOW).await.is_err(), "flipped at {at}");
    }
    assert!(verifier.grant_at(&token, NOW).await.is_err(), "as a grant");
    assert_eq!(verifier.access_at(&token, NOW + 330).await.expect_err("refused"), Refusal::Expired);
    // What fails once is not remembered as good.
    let foreign = Forger::new().access(&access_claims());
    for _ in 0..2 {
        assert_eq!(verifier.access_at(&foreign, NOW).await.expect_err("refused"), Refusal::BadSignature);
    }
}

#[tokio::test]
async fn only_three_parts_of_base64url_are_a_token() {
    let forger = Forger::new();
    let token = forger.access(&access_claims());
    for text in [
        "",
        ".",
        "..",
        "...",
        "a.b",
        &format!("{token}."),
        &format!("{token}.x"),
        &format!(" {token}"),
        &format!("{token}="),
    ] {
        assert_eq!(access_refusal(&forger, text).await, Refusal::Malformed, "{text:?}");
    }
}

#[tokio::test]
async fn length_is_judged_before_anything_else() {
    let forger = Forger::new();
    assert_eq!(access_refusal(&forger, &"x".repeat(8 * 1024 + 1)).await, Refusal::TooLong);
    assert_eq!(access_refusal(&forger, &"x".repeat(8 * 1024)).await, Refusal::Malformed);
    let long = forger.access(&with(access_claims(), "scope", json!("a".repeat(8 * 1024))));
    assert_eq!(access_refusal(&forger, &long).await, Refusal::TooLong);
}

#[tokio::test]
async fn refusals_are_named_and_show_no_token() {
    let forger = Forger::new();
    let token = forger.access(&with(access_claims(), "sub", json!("Secret_Tenant")));
    let refusal = access_refusal(&forger, &token).await;
    assert_eq!((refusal.code(), refusal.is_transient()), ("bad_claims", false));
    assert!(!format!("{refusal} {refusal:?}").contains("Secret"));
    assert!(Refusal::KeysUnavailable(String::new()).is_transient());
}

#[tokio::test]
async fn a_verifier_without_keys_refuses() {
    let verifier = Verifier::new(ISSUER.to_owned(), Keys::Fixed(vecmill_signer::keys::KeySet::default()));
    assert!(verifier.ready().await.is_err());
    let token = Forger::new().access(&access_claims());
    assert_eq!(verifier.access_at(&token, NOW).await.expect_err("refused"), Refusal::UnknownKey);
}
