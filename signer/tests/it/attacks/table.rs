//! Tokens that must not pass, as a table.
//!
//! Every attack is one change to a draft of an honest token, signed with a key that the verifier trusts unless the attack
//! is about that. So what refuses it is the check it aims at, and [`Bench::control`], the same draft unchanged, passes.
//!
//! The tests of `vecmill-tests` compile this file too, to put the same table to a worker.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// Kind of token that a verifier takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What the signer's own endpoints and the gateway take.
    Access,
    /// What the signer gives grants for, beside access tokens.
    Submission,
    /// What workers take with a synchronous request.
    Embed,
    /// What workers take with a job's chunk.
    Grant,
}

impl Kind {
    fn typ(self) -> &'static str {
        match self {
            Self::Access => "at+jwt",
            Self::Submission => "submission+jwt",
            Self::Embed => "embed+jwt",
            Self::Grant => "job-grant+jwt",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Access => Self::Grant,
            Self::Grant | Self::Submission | Self::Embed => Self::Access,
        }
    }
}

/// One token that must be refused.
pub struct Attack {
    /// What it tries; unique in the table.
    pub name: String,
    /// The token.
    pub token: String,
}

/// Where attacks are made: a trusted key, and what an honest token of each kind would say.
pub struct Bench {
    kind: Kind,
    kid: String,
    pair: Ed25519KeyPair,
    stranger: Ed25519KeyPair,
    claims: Value,
    other_claims: Value,
    now: u64,
}

/// Order of the curve's prime subgroup, little-endian: adding it to a signature's S gives the same point.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// Points of order 1, 2, 4 and 8, two of them also in encodings that are not canonical: first byte, middle bytes, last.
const SMALL_ORDER: [(&str, u8, u8, u8); 5] = [
    ("identity", 0x01, 0x00, 0x00),
    ("order 2", 0xec, 0xff, 0x7f),
    ("order 4", 0x00, 0x00, 0x00),
    ("identity, not canonical", 0xee, 0xff, 0x7f),
    ("order 4, not canonical", 0xed, 0xff, 0x7f),
];

impl Bench {
    /// A bench for tokens of `kind`, whose trusted key has the seed `[seed; 32]` and is published under `kid`. `claims`
    /// are those of an honest token, `other_claims` those of an honest token of the other kind.
    pub fn new(kind: Kind, seed: u8, kid: &str, claims: Value, other_claims: Value) -> Self {
        let pair = |seed| Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("32 bytes are a seed");
        let now = claims["iat"].as_u64().expect("a time");
        let (pair, stranger) = (pair(seed), pair(seed ^ 0xff));
        Self { kind, kid: kid.to_owned(), pair, stranger, claims, other_claims, now }
    }

    /// The draft unchanged: it must pass.
    pub fn control(&self) -> String {
        self.sign(self.header(), self.claims.to_string())
    }

    /// All attacks.
    pub fn attacks(&self) -> Vec<Attack> {
        let mut attacks = Vec::new();
        let mut add = |name: String, token: String| attacks.push(Attack { name, token });
        self.algorithms(&mut add);
        self.headers(&mut add);
        self.kids(&mut add);
        self.shapes_of_claims(&mut add);
        self.values_of_claims(&mut add);
        self.signatures(&mut add);
        self.encodings(&mut add);
        self.sizes(&mut add);
        attacks
    }

    fn header(&self) -> String {
        self.header_with(json!({}))
    }

    fn header_with(&self, changes: Value) -> String {
        merged(&json!({ "alg": "EdDSA", "typ": self.kind.typ(), "kid": self.kid }), &changes).to_string()
    }

    fn claims_with(&self, changes: Value) -> String {
        merged(&self.claims, &changes).to_string()
    }

    fn sign(&self, header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
        self.sign_coded(&b64(header), &b64(claims))
    }

    fn sign_coded(&self, header: &str, claims: &str) -> String {
        let message = format!("{header}.{claims}");
        let signature = self.pair.sign(message.as_bytes());
        format!("{message}.{}", b64(signature.as_ref()))
    }

    fn hmac_signed(&self, algorithm: hmac::Algorithm, secret: &[u8], header: &str) -> String {
        let message = format!("{}.{}", b64(header), b64(self.claims.to_string()));
        let tag = hmac::sign(&hmac::Key::new(algorithm, secret), message.as_bytes());
        format!("{message}.{}", b64(tag.as_ref()))
    }

    /// The algorithm is the verifier's choice, not the token's.
    fn algorithms(&self, add: &mut impl FnMut(String, String)) {
        let claims = self.claims.to_string();
        for alg in
            ["none", "None", "nOnE", "NONE", "", "HS256", "RS256", "PS256", "ES256", "ES256K", "Ed25519", "eddsa"]
        {
            let header = self.header_with(json!({ "alg": alg }));
            add(format!("alg {alg:?}, signed all the same"), self.sign(&header, &claims));
            add(format!("alg {alg:?}, no signature"), format!("{}.{}.", b64(&header), b64(&claims)));
        }
        for (name, alg) in [
            ("null", Value::Null),
            ("a number", json!(5)),
            ("a list", json!(["EdDSA"])),
            ("a list of two", json!(["EdDSA", "none"])),
            ("an object", json!({ "EdDSA": true })),
        ] {
            add(format!("alg is {name}"), self.sign(self.header_with(json!({ "alg": alg })), &claims));
        }
        let public = self.pair.public_key().as_ref();
        // The public key as it is handed around: raw, DER, PEM, base64url.
        let der = [&[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00], public].concat();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(&der));
        let secrets = [
            ("raw", public.to_vec()),
            ("DER", der),
            ("PEM", pem.into_bytes()),
            ("base64url", b64(public).into_bytes()),
        ];
        for (form, secret) in &secrets {
            let header = self.header_with(json!({ "alg": "HS256" }));
            add(format!("HS256 with the public key, {form}"), self.hmac_signed(hmac::HMAC_SHA256, secret, &header));
            let name = format!("HMAC with the public key, {form}, called EdDSA");
            add(name, self.hmac_signed(hmac::HMAC_SHA256, secret, &self.header()));
        }
        let header = self.header_with(json!({ "alg": "HS512" }));
        add("HS512 with the public key".to_owned(), self.hmac_signed(hmac::HMAC_SHA512, public, &header));
        let header = self.header_with(json!({ "alg": "HS256", "kid": "" }));
        add("HS256 with the empty secret".to_owned(), self.hmac_signed(hmac::HMAC_SHA256, b"", &header));
    }

    /// A header has three members, each once, and none that steers the check.
    fn headers(&self, add: &mut impl FnMut(String, String)) {
        let claims = self.claims.to_string();
        let (typ, kid) = (self.kind.typ(), &self.kid);
        let own_key =
            json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": b64(self.stranger.public_key().as_ref()) });
        for (name, value) in [
            ("jku", json!("https://attacker.example/jwks.json")),
            ("jku", json!("http://169.254.169.254/latest/meta-data")),
            ("jku", json!("file:///dev/null")),
            ("jwk", own_key),
            ("jwk", Value::Null),
            ("x5u", json!("https://attacker.example/cert.pem")),
            ("x5c", json!(["MIIB"])),
            ("x5t", json!("AAAA")),
            ("x5t#S256", json!("AAAA")),
            ("crit", json!(["exp"])),
            ("crit", json!([])),
            ("crit", Value::Null),
            ("b64", json!(false)),
            ("zip", json!("DEF")),
            ("cty", json!("JWT")),
            ("enc", json!("A256GCM")),
            ("foo", json!(1)),
        ] {
            let header = self.header_with(json!({ name: value }));
            add(format!("header with {name}: {value}"), self.sign(header, &claims));
        }
        // The stranger's key in the header, and the stranger's signature to go with it.
        let header = self.header_with(json!({
            "jwk": { "kty": "OKP", "crv": "Ed25519", "x": b64(self.stranger.public_key().as_ref()) }
        }));
        let message = format!("{}.{}", b64(header), b64(&claims));
        let signature = self.stranger.sign(message.as_bytes());
        add("signed with the key that it brings".to_owned(), format!("{message}.{}", b64(signature.as_ref())));

        for other in [
            self.kind.other().typ(),
            "JWT",
            "jwt",
            "at+JWT",
            "AT+JWT",
            "JOB-GRANT+JWT",
            "logout+jwt",
            "",
            "at+jwt ",
            "job-grant+jwt\0",
        ] {
            add(format!("typ {other:?}"), self.sign(self.header_with(json!({ "typ": other })), &claims));
        }
        add(
            "typ with its media type".to_owned(),
            self.sign(self.header_with(json!({ "typ": format!("application/{typ}") })), &claims),
        );
        for (name, value) in
            [("null", Value::Null), ("a number", json!(1)), ("a list", json!([typ])), ("true", json!(true))]
        {
            add(format!("typ is {name}"), self.sign(self.header_with(json!({ "typ": value })), &claims));
        }
        for (name, header) in [
            ("no alg", format!(r#"{{"typ":"{typ}","kid":"{kid}"}}"#)),
            ("no typ", format!(r#"{{"alg":"EdDSA","kid":"{kid}"}}"#)),
            ("no kid", format!(r#"{{"alg":"EdDSA","typ":"{typ}"}}"#)),
            ("alg twice, none last", format!(r#"{{"alg":"EdDSA","typ":"{typ}","kid":"{kid}","alg":"none"}}"#)),
            ("alg twice, none first", format!(r#"{{"alg":"none","alg":"EdDSA","typ":"{typ}","kid":"{kid}"}}"#)),
            ("alg twice, once escaped", format!(r#"{{"alg":"EdDSA","typ":"{typ}","kid":"{kid}","\u0061lg":"none"}}"#)),
            ("typ twice", format!(r#"{{"alg":"EdDSA","typ":"{typ}","typ":"{typ}","kid":"{kid}"}}"#)),
            ("kid twice", format!(r#"{{"alg":"EdDSA","typ":"{typ}","kid":"{kid}","kid":"other"}}"#)),
            ("names in capitals", format!(r#"{{"ALG":"EdDSA","TYP":"{typ}","KID":"{kid}"}}"#)),
            ("a list for an object", format!(r#"["EdDSA","{typ}","{kid}"]"#)),
            ("a list in a list", format!(r#"[["EdDSA","{typ}","{kid}"]]"#)),
            ("a string for an object", r#""EdDSA""#.to_owned()),
            ("null for an object", "null".to_owned()),
            ("an empty object", "{}".to_owned()),
            ("nothing", String::new()),
            ("a space in front", format!(r#" {{"alg":"EdDSA","typ":"{typ}","kid":"{kid}"}}"#)),
            ("a BOM in front", format!("\u{feff}{}", self.header())),
            ("a second object behind", format!("{}{{}}", self.header())),
            ("a NUL behind", format!("{}\0", self.header())),
            ("a comment", format!(r#"{{"alg":"EdDSA",/**/"typ":"{typ}","kid":"{kid}"}}"#)),
            ("a comma too many", format!(r#"{{"alg":"EdDSA","typ":"{typ}","kid":"{kid}",}}"#)),
            ("cut off", self.header()[..self.header().len() - 1].to_owned()),
            ("deep lists", format!(r#"{{"alg":{}"#, "[".repeat(3000))),
            ("deep objects", r#"{"a":"#.repeat(1000)),
        ] {
            add(format!("header: {name}"), self.sign(header, &claims));
        }
        add("header: not UTF-8".to_owned(), self.sign([self.header().as_bytes(), b"\xff"].concat(), &claims));
        let utf16: Vec<u8> = self.header().encode_utf16().flat_map(u16::to_le_bytes).collect();
        add("header: UTF-16".to_owned(), self.sign(utf16, &claims));
    }

    /// The kid is a key into a map of published keys: no path, no query, no address, nothing close to it.
    fn kids(&self, add: &mut impl FnMut(String, String)) {
        let kid = &self.kid;
        for other in [
            "",
            ".",
            "..",
            "../../../../dev/null",
            "..%2f..%2fdev%2fnull",
            "..\\..\\key",
            "/dev/null",
            "/proc/self/environ",
            "file:///dev/null",
            "https://attacker.example/key",
            "x' UNION SELECT 'key' --",
            "x'; DROP TABLE signing_keys; --",
            "$(id)",
            "`id`",
            "|id",
            "${jndi:ldap://x}",
            "{{7*7}}",
            "%00",
            "\0",
            "*",
            "a b",
            "é",
            "unknown",
            "__proto__",
            "constructor",
            "null",
            "0",
        ] {
            add(
                format!("kid {other:?}"),
                self.sign(self.header_with(json!({ "kid": other })), self.claims.to_string()),
            );
        }
        for (name, other) in [
            ("with a NUL behind", format!("{kid}\0")),
            ("with a space behind", format!("{kid} ")),
            ("with a line break behind", format!("{kid}\n")),
            (
                "with another case",
                if kid.chars().any(char::is_lowercase) { kid.to_uppercase() } else { kid.to_lowercase() },
            ),
            ("in a folder", format!("./{kid}")),
            ("through a folder", format!("x/../{kid}")),
            ("with a fragment", format!("{kid}#")),
            ("cut short", kid[..kid.len() - 1].to_owned()),
            ("one longer", format!("{kid}0")),
            ("with a zero-width space", format!("{kid}\u{200b}")),
            ("very long", "k".repeat(65)),
            ("very, very long", "k".repeat(3000)),
        ] {
            add(format!("kid {name}"), self.sign(self.header_with(json!({ "kid": other })), self.claims.to_string()));
        }
        for (name, other) in [
            ("null", Value::Null),
            ("a number", json!(0)),
            ("a list", json!([kid])),
            ("an object", json!({ kid: 1 })),
            ("true", json!(true)),
        ] {
            add(
                format!("kid is {name}"),
                self.sign(self.header_with(json!({ "kid": other })), self.claims.to_string()),
            );
        }
    }

    /// Each claim is there, once, of its type, and no other.
    fn shapes_of_claims(&self, add: &mut impl FnMut(String, String)) {
        let text = self.claims.to_string();
        for (name, value) in self.claims.as_object().expect("an object") {
            let mut without = self.claims.clone();
            without.as_object_mut().expect("an object").remove(name);
            let wrong = if value.is_string() { json!(5) } else { json!(value.to_string()) };
            for (flaw, claims) in [
                ("missing", without.to_string()),
                ("null", self.claims_with(json!({ name: null }))),
                ("of another type", self.claims_with(json!({ name: wrong }))),
                ("a list of itself", self.claims_with(json!({ name: [value] }))),
                ("an object", self.claims_with(json!({ name: { "": value } }))),
                ("true", self.claims_with(json!({ name: true }))),
                ("twice", format!("{{\"{name}\":{value},{}", &text[1..])),
                ("twice, once null", format!("{{\"{name}\":null,{}", &text[1..])),
            ] {
                add(format!("{name} is {flaw}"), self.sign(self.header(), claims));
            }
        }
        for name in [
            "admin",
            "tenant",
            "role",
            "azp",
            "act",
            "cnf",
            "Sub",
            "sub ",
            "\u{200b}sub",
            "__proto__",
            "epoch2",
            "$schema",
        ] {
            add(
                format!("a claim nobody knows: {name:?}"),
                self.sign(self.header(), self.claims_with(json!({ name: "x" }))),
            );
        }
        for (name, claims) in [
            ("a list", format!("[{text}]")),
            ("a string", json!(text).to_string()),
            ("null", "null".to_owned()),
            ("a number", "1".to_owned()),
            ("nothing", String::new()),
            ("an empty object", "{}".to_owned()),
            ("a BOM in front", format!("\u{feff}{text}")),
            ("another object behind", format!("{text}{text}")),
            ("a NUL behind", format!("{text}\0")),
            ("a comma too many", format!("{},}}", &text[..text.len() - 1])),
            ("cut off", text[..text.len() - 1].to_owned()),
            ("deep lists", "[".repeat(3000)),
            ("deep objects", r#"{"sub":"#.repeat(800)),
            ("a deep claim", format!("{{\"x\":{}{},{}", "[".repeat(1500), "]".repeat(1500), &text[1..])),
            ("form-coded", "iss=a&sub=b".to_owned()),
            ("a whole token", self.control()),
        ] {
            add(format!("claims: {name}"), self.sign(self.header(), claims));
        }
        // As a list in the struct's order: what serde would read a struct from.
        let values: Vec<&Value> = self.claims.as_object().expect("an object").values().collect();
        add("claims: a list of their values".to_owned(), self.sign(self.header(), json!(values).to_string()));
        let field_order = match self.kind {
            Kind::Access | Kind::Submission => &[
                "iss",
                "sub",
                "aud",
                "jti",
                "iat",
                "nbf",
                "exp",
                "scope",
                "client_id",
                "client_addr",
                "limits",
                "epoch",
            ][..],
            Kind::Embed => &[
                "iss",
                "sub",
                "aud",
                "jti",
                "iat",
                "nbf",
                "exp",
                "model",
                "dimensions_max",
                "client_id",
                "client_addr",
                "parent",
                "limits",
                "epoch",
            ],
            Kind::Grant => &[
                "iss",
                "sub",
                "aud",
                "jti",
                "iat",
                "nbf",
                "exp",
                "manifest_sha256",
                "model",
                "dimensions",
                "rows",
                "key_id",
                "client_addr",
                "lane",
                "limits",
                "epoch",
            ],
        };
        let ordered: Vec<&Value> = field_order.iter().map(|name| &self.claims[name]).collect();
        add("claims: a list in the struct's order".to_owned(), self.sign(self.header(), json!(ordered).to_string()));
        add("claims: not UTF-8".to_owned(), self.sign(self.header(), [text.as_bytes(), b"\xff"].concat()));
        let honest = json!(self.claims["sub"]).to_string();
        let lone = text.replacen(&honest, r#""\ud800""#, 1);
        add("claims: a lone surrogate as tenant".to_owned(), self.sign(self.header(), lone));
        let name = "the other kind's claims".to_owned();
        add(name, self.sign(self.header(), self.other_claims.to_string()));
        let header = json!({ "alg": "EdDSA", "typ": self.kind.other().typ(), "kid": self.kid }).to_string();
        add("an honest token of the other kind".to_owned(), self.sign(header, self.other_claims.to_string()));
    }

    /// Values are exact: times, issuer, audience, names.
    fn values_of_claims(&self, add: &mut impl FnMut(String, String)) {
        let now = self.now;
        let (aud, iss) = (&self.claims["aud"], self.claims["iss"].as_str().expect("an issuer"));
        let mut cases = vec![
            ("expired an hour ago", json!({ "iat": now - 3900, "nbf": now - 3900, "exp": now - 3600 })),
            ("expired at the leeway's end", json!({ "iat": now - 300, "nbf": now - 300, "exp": now - 30 })),
            ("expired at the beginning of time", json!({ "iat": 0, "nbf": 0, "exp": 1 })),
            ("not before an hour from now", json!({ "nbf": now + 3600, "exp": now + 3700 })),
            ("not before two minutes from now", json!({ "nbf": now + 120 })),
            ("all a minute from now", json!({ "iat": now + 60, "nbf": now + 60, "exp": now + 120 })),
            ("issued two minutes from now", json!({ "iat": now + 120 })),
            ("not before the end of time", json!({ "nbf": u64::MAX })),
            ("issued at the end of time", json!({ "iat": u64::MAX })),
            ("all at the end of time", json!({ "iat": u64::MAX, "nbf": u64::MAX, "exp": u64::MAX })),
            ("ends as it begins", json!({ "exp": now })),
            ("ends before it begins", json!({ "exp": now - 1 })),
            ("lives for ever", json!({ "exp": u64::MAX })),
            ("lives for a year", json!({ "exp": now + 365 * 86_400 })),
            ("lives since long", json!({ "iat": now - 30 * 86_400 })),
            ("valid since long", json!({ "nbf": now - 30 * 86_400 })),
            ("exp is a fraction", json!({ "exp": now as f64 + 200.5 })),
            ("exp is a whole float", json!({ "exp": now as f64 + 200.0 })),
            ("exp is below zero", json!({ "exp": -1 })),
            ("nbf is below zero", json!({ "nbf": -1 })),
            ("iat is a fraction", json!({ "iat": 0.5 })),
            ("iss is another", json!({ "iss": "attacker" })),
            ("iss is empty", json!({ "iss": "" })),
            ("iss in capitals", json!({ "iss": iss.to_uppercase() })),
            ("iss with a slash behind", json!({ "iss": format!("{iss}/") })),
            ("iss with a NUL behind", json!({ "iss": format!("{iss}\0") })),
            ("iss with a look-alike", json!({ "iss": iss.replacen('e', "\u{435}", 1) })),
            ("iss lists ours among others", json!({ "iss": ["attacker", iss] })),
            ("aud is the other kind's", json!({ "aud": self.other_claims["aud"] })),
            ("aud is empty", json!({ "aud": "" })),
            ("aud lists ours among others", json!({ "aud": ["attacker", aud] })),
            ("aud with a space behind", json!({ "aud": format!("{} ", aud.as_str().expect("a text")) })),
            ("aud as a wildcard", json!({ "aud": "*" })),
        ];
        for sub in [
            "",
            ".",
            "..",
            "../other",
            "acme/../other",
            "/acme",
            "acme/",
            "acme/jobs",
            "acme\\other",
            "ACME",
            "Acme",
            "-acme",
            "acme ",
            " acme",
            "acme\n",
            "acme\0",
            "acme%2f..",
            "*",
            "acme.",
            "acme_x",
            "acme:other",
            "{acme}",
            "acme}:quota",
            "\u{430}cme",
            "ac\u{200b}me",
            "acm\u{e9}",
            "\u{ff41}cme",
            "acme\u{202e}",
            "ac\u{ad}me",
        ] {
            cases.push(("", json!({ "sub": sub })));
        }
        let long_name = "a".repeat(64);
        cases.push(("a tenant one too long", json!({ "sub": long_name })));
        for jti in [
            "",
            "x",
            "../../../../../../../../../../..",
            "ABABABABABABABABABABABABABABABAB",
            "ababababababababababababababab",
            "abababababababababababababababab0",
        ] {
            cases.push(("", json!({ "jti": jti })));
        }
        cases.push(("jti of full-width digits", json!({ "jti": "\u{ff11}".repeat(32) })));
        for key_id in ["", "a/b", "../key", "k\0", "\u{43a}ey1", "key id"] {
            cases.push(("", json!({ self.key_claim(): key_id })));
        }
        if matches!(self.kind, Kind::Submission | Kind::Embed) {
            for parent in ["", "x", "ABABABABABABABABABABABABABABABAB", "../../../../../../../../../../.."] {
                cases.push(("", json!({ "parent": parent })));
            }
            cases.push(("parents", json!({ "parent": ["ab".repeat(16)] })));
        }
        if self.kind == Kind::Access {
            cases.push(("a parent, which only what is made with it has", json!({ "parent": "ab".repeat(16) })));
        }
        if self.kind == Kind::Embed {
            for (name, value) in [
                ("model", json!("")),
                ("dimensions_max", json!(0)),
                ("dimensions_max", json!(-32)),
                ("dimensions_max", json!(32.5)),
                ("dimensions_max", json!(1_u64 << 32)),
                ("scope", json!("embed")),
            ] {
                cases.push(("", json!({ name: value })));
            }
            cases.push(("a second longer than it may", json!({ "exp": now + 91 })));
        }
        if self.kind == Kind::Submission {
            // An embed token has one always, and so has this case already.
            cases.push(("a parent that is a number", json!({ "parent": 5_u32 })));
            for scope in ["", "admin", "jobs:submit admin", "jobs:submit jobs:submit", "jobs:submit ", "JOBS:SUBMIT"] {
                cases.push(("", json!({ "scope": scope })));
            }
        }
        if self.kind == Kind::Grant {
            for (name, value) in [
                ("manifest_sha256", json!("EF".repeat(32))),
                ("manifest_sha256", json!("ef".repeat(31))),
                ("manifest_sha256", json!("ef".repeat(33))),
                ("manifest_sha256", json!("")),
                ("manifest_sha256", json!(format!("0x{}", "ef".repeat(31)))),
                ("dimensions", json!(0)),
                ("dimensions", json!(-32)),
                ("dimensions", json!(32.5)),
                ("dimensions", json!(1_u64 << 32)),
                ("model", json!("")),
                ("rows", json!(-1)),
                ("rows", json!(1e30)),
                ("lane", json!(-1)),
                ("lane", json!(1_u64 << 32)),
            ] {
                cases.push(("", json!({ name: value })));
            }
        }
        let limits = |changes: Value| {
            let mut limits = self.claims["limits"].clone();
            for (name, value) in changes.as_object().expect("an object") {
                limits[name] = value.clone();
            }
            limits
        };
        let (mut fewer, all) = (limits(json!({})), limits(json!({})));
        fewer.as_object_mut().expect("an object").remove("tokens_per_day").expect("a limit");
        let in_order: Vec<_> = all.as_object().expect("an object").values().collect();
        for (name, value) in [
            ("epoch", json!(-1)),
            ("limits", json!({})),
            ("limits", fewer),
            ("limits", limits(json!({ "free": true }))),
            ("limits", limits(json!({ "tokens_per_minute": "1" }))),
            ("limits", limits(json!({ "tokens_per_day": -1 }))),
            ("limits", limits(json!({ "concurrent_jobs": 1e30 }))),
            ("limits", limits(json!({ "stored_bytes": "1" }))),
            ("limits", limits(json!({ "stored_bytes": -1 }))),
            ("limits", json!([1, 1])),
            ("limits", json!(in_order)),
        ] {
            cases.push(("", json!({ name: value })));
        }
        for (name, changes) in cases {
            let name = if name.is_empty() { changes.to_string() } else { name.to_owned() };
            add(name, self.sign(self.header(), self.claims_with(changes)));
        }
        // Numbers that `Value` can't hold.
        let exp = format!("\"exp\":{}", self.claims["exp"]);
        for number in
            ["18446744073709551616", "1e10", "1E400", "0x7fffffff", "+1900000000", "01900000000", "NaN", "Infinity"]
        {
            let claims = self.claims.to_string().replacen(&exp, &format!("\"exp\":{number}"), 1);
            add(format!("exp is {number}"), self.sign(self.header(), claims));
        }
    }

    /// The claim that names the API key.
    fn key_claim(&self) -> &'static str {
        match self.kind {
            Kind::Access | Kind::Submission | Kind::Embed => "client_id",
            Kind::Grant => "key_id",
        }
    }

    /// One signature fits one text, in one way of writing it.
    fn signatures(&self, add: &mut impl FnMut(String, String)) {
        let control = self.control();
        let (message, coded) = control.rsplit_once('.').expect("signed");
        let signature = URL_SAFE_NO_PAD.decode(coded).expect("base64url");
        let mut forged = |name: &str, bytes: &[u8]| add(name.to_owned(), format!("{message}.{}", b64(bytes)));
        for length in [0, 1, 31, 32, 63] {
            forged(&format!("signature cut to {length} bytes"), &signature[..length]);
        }
        forged("signature with a byte behind", &[&signature[..], b"\0"].concat());
        forged("signature twice", &[&signature[..], &signature[..]].concat());
        forged("signature of ones", &[0xff; 64]);
        forged("signature with its halves swapped", &[&signature[32..], &signature[..32]].concat());
        for at in [0, 31, 32, 63] {
            let mut flipped = signature.clone();
            flipped[at] ^= 1;
            forged(&format!("signature with a bit of byte {at} flipped"), &flipped);
        }
        for top in [0x20, 0x40, 0x80] {
            let mut flipped = signature.clone();
            flipped[63] ^= top;
            forged(&format!("signature with bit {top:#x} of S set"), &flipped);
        }
        // Malleable: S + L verifies where S is not checked to be below L.
        let mut s_plus_l = signature.clone();
        let mut carry = 0_u16;
        for (byte, order) in s_plus_l[32..].iter_mut().zip(ORDER) {
            let sum = u16::from(*byte) + u16::from(order) + carry;
            *byte = sum.to_le_bytes()[0];
            carry = sum >> 8;
        }
        forged("S + L", &s_plus_l);
        for (name, first, middle, last) in SMALL_ORDER {
            let mut bytes = [0; 64];
            bytes[..32].fill(middle);
            (bytes[0], bytes[31]) = (first, last);
            forged(&format!("R of small order ({name}), S zero"), &bytes);
            bytes[32..].copy_from_slice(&ORDER);
            forged(&format!("R of small order ({name}), S = L"), &bytes);
            bytes[32..].copy_from_slice(&signature[32..]);
            forged(&format!("R of small order ({name}), an honest S"), &bytes);
        }
        forged("another key's signature", self.stranger.sign(message.as_bytes()).as_ref());
        forged("a signature of the claims alone", self.pair.sign(self.claims.to_string().as_bytes()).as_ref());
        forged(
            "a signature of the text decoded",
            self.pair.sign(format!("{}.{}", self.header(), self.claims).as_bytes()).as_ref(),
        );
        forged("a signature of nothing", self.pair.sign(b"").as_ref());

        let (header, claims) = message.split_once('.').expect("two parts");
        let other = b64(self.claims_with(json!({ "sub": "other" })));
        add("other claims under this signature".to_owned(), format!("{header}.{other}.{coded}"));
        let longer = b64(self.claims_with(json!({ "exp": self.now + 301 })));
        add("a second more under this signature".to_owned(), format!("{header}.{longer}.{coded}"));
        let reordered = b64(format!(r#"{{"kid":"{}","alg":"EdDSA","typ":"{}"}} "#, self.kid, self.kind.typ()));
        add("another header under this signature".to_owned(), format!("{reordered}.{claims}.{coded}"));
        // Moving the dot keeps the bytes and changes the parts.
        add(
            "the dot moved".to_owned(),
            format!("{}.{}{claims}.{coded}", &header[..header.len() - 4], &header[header.len() - 4..]),
        );
    }

    /// One text of base64url, without padding, white space or bits to spare.
    fn encodings(&self, add: &mut impl FnMut(String, String)) {
        let control = self.control();
        let parts: Vec<&str> = control.split('.').collect();
        let [header, claims, signature] = parts[..] else { panic!("three parts") };
        let middle = control.len() / 2;
        for (name, token) in [
            ("nothing", String::new()),
            ("a dot", ".".to_owned()),
            ("two dots", "..".to_owned()),
            ("three dots", "...".to_owned()),
            ("one part", header.to_owned()),
            ("two parts", format!("{header}.{claims}")),
            ("no header", format!(".{claims}.{signature}")),
            ("no claims", format!("{header}..{signature}")),
            ("a fourth part", format!("{control}.")),
            ("a fourth part that is one", format!("{control}.{signature}")),
            ("five parts, as JWE", format!("{header}.{claims}.{signature}.{claims}.{signature}")),
            ("a dot in front", format!(".{control}")),
            ("itself twice", format!("{control}{control}")),
            ("commas for dots", control.replace('.', ",")),
            ("full stops of another script", control.replace('.', "\u{3002}")),
            ("a signature with padding", format!("{control}==")),
            ("a signature with half its padding", format!("{control}=")),
            ("a space inside", format!("{} {}", &control[..middle], &control[middle..])),
            ("a tab inside", format!("{}\t{}", &control[..middle], &control[middle..])),
            ("a space before the signature", format!("{header}.{claims}. {signature}")),
            ("percent-coded", control.replace('.', "%2E")),
            ("quoted", format!("\"{control}\"")),
            ("a null byte, percent-coded, behind", format!("{control}%00")),
            ("two tokens", format!("{control},{control}")),
            (
                "JSON serialization",
                json!({ "protected": header, "payload": claims, "signature": signature }).to_string(),
            ),
            (
                "JSON serialization with two signatures",
                json!({ "payload": claims, "signatures": [{ "protected": header, "signature": signature }] })
                    .to_string(),
            ),
            ("hex", control.bytes().map(|byte| format!("{byte:02x}")).collect()),
            ("base64 of itself", b64(&control)),
            ("not a token", "undefined".to_owned()),
            ("a scheme of its own", format!("Bearer {control}")),
        ] {
            add(format!("written as {name}"), token);
        }
        // 64 bytes leave four bits to spare in the last character: sixteen texts for one signature, one of them canonical.
        for spare in [1, 2, 4, 8, 15] {
            add(
                format!("signature with spare bits {spare}"),
                format!("{header}.{claims}.{}", with_spare_bits(signature, spare)),
            );
        }
        // The same for header and claims, signed as they stand there.
        let header_text = uneven(self.header());
        add("header with spare bits".to_owned(), self.sign_coded(&with_spare_bits(&b64(&header_text), 1), claims));
        let claims_text = uneven(self.claims.to_string());
        add("claims with spare bits".to_owned(), self.sign_coded(header, &with_spare_bits(&b64(&claims_text), 1)));
        add("header with padding, signed".to_owned(), self.sign_coded(&URL_SAFE.encode(&header_text), claims));
        add("claims with padding, signed".to_owned(), self.sign_coded(header, &URL_SAFE.encode(&claims_text)));
        // A text whose base64 differs between the two alphabets.
        let differs = self.claims_with(json!({ "iss": "???>>>~~~" }));
        add("claims in the other alphabet".to_owned(), self.sign_coded(header, &STANDARD_NO_PAD.encode(differs)));
        let mut number = 0;
        let other_alphabet = loop {
            let claims = self.claims_with(json!({ "jti": format!("{number:032x}") }));
            let token = self.sign(self.header(), claims);
            let (message, signature) = token.rsplit_once('.').expect("signed");
            let changed = signature.replace('-', "+").replace('_', "/");
            if changed != signature {
                break format!("{message}.{changed}");
            }
            number += 1;
        };
        add("signature in the other alphabet".to_owned(), other_alphabet);
    }

    /// Length is judged first.
    fn sizes(&self, add: &mut impl FnMut(String, String)) {
        for length in [8 << 10, 16 << 10, 200 << 10] {
            let claims = self.claims_with(json!({ self.key_claim(): "k".repeat(length) }));
            add(format!("a claim of {length} bytes"), self.sign(self.header(), claims));
        }
        let header = self.header_with(json!({ "kid": "k".repeat(9 << 10) }));
        add("a header of 9 KiB".to_owned(), self.sign(header, self.claims.to_string()));
        add("a signature of 9 KiB".to_owned(), format!("{}{}", self.control(), "A".repeat(9 << 10)));
        add("9 KiB of dots".to_owned(), ".".repeat(9 << 10));
        let many: serde_json::Map<String, Value> =
            (0..400).map(|number| (format!("c{number}"), json!(number))).collect();
        add("four hundred claims".to_owned(), self.sign(self.header(), self.claims_with(Value::Object(many))));
    }
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn merged(object: &Value, changes: &Value) -> Value {
    let mut object = object.clone();
    let changes = changes.as_object().expect("an object").clone();
    object.as_object_mut().expect("an object").extend(changes);
    object
}

/// JSON text with blanks behind, so that its base64 has bits to spare.
fn uneven(mut json: String) -> String {
    while json.len() % 3 != 1 {
        json.push(' ');
    }
    json
}

/// Base64 whose last character says the same bytes in other bits.
fn with_spare_bits(coded: &str, spare: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (text, last) = coded.split_at(coded.len() - 1);
    let value = ALPHABET.iter().position(|&letter| letter == last.as_bytes()[0]).expect("base64url");
    format!("{text}{}", char::from(ALPHABET[value | spare]))
}
