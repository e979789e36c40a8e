//! Tokens that are signed by nobody, by another algorithm or key, with numbers that are none, or by a key that is not for it.
//!
//! Their form is right in all: what they say of their own key or algorithm is believed nowhere, and what the issuer
//! publishes beside good keys makes nothing weaker.

use super::*;

/// The order of the group of P-256 (FIPS 186-4 appendix D.1.2.3), big-endian.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84,
    0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

#[test]
fn a_token_by_no_algorithm_another_one_or_a_key_that_it_brings_along_is_401() {
    let mut bench = Bench::start(|_| Vec::new());
    let (stranger, claims) = (Ed25519KeyPair::generate().expect("a key"), IdentityProvider::claims().to_string());
    let point = bench.p256().public_key().as_ref().to_vec();
    let modulus = bench.rsa.public_key().modulus().big_endian_without_leading_zero().to_vec();
    let der = bench.rsa.public_key().as_ref().to_vec();
    let pem = format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n", STANDARD_NO_PAD.encode(&der));
    let ed25519 = bench.ed25519.public_key().as_ref().to_vec();
    for (id, secret) in [
        ("ES256", point.clone()),
        ("ES256", point[1..].to_vec()),
        ("ES256", point[1..33].to_vec()),
        ("RS256", der),
        ("RS256", modulus.clone()),
        ("RS256", pem.into_bytes()),
        ("RS256", rsa_jwk(&bench.rsa, "RS256").to_string().into_bytes()),
        ("RS256", encode(&modulus).into_bytes()),
        ("EdDSA", ed25519.clone()),
        ("EdDSA", encode(&ed25519).into_bytes()),
        ("EdDSA", Vec::new()),
        ("EdDSA", b"secret".to_vec()),
    ] {
        bench.refuse(&format!("symmetry confusion by {id}"), &by_shared_secret(id, &secret));
    }
    for algorithm in ALGORITHMS {
        for none in ["none", "None", "NONE", "nOnE", "none ", "", "null", "HS256", "HS384", "HS512", "RS1", "ES256K", "EdDSA\0", "dir"] {
            let changed = with(header(algorithm), "alg", json!(none));
            bench.refuse(&format!("{algorithm}: alg {none:?} and no signature"), &format!("{}.", message(changed.to_string(), &claims)));
            bench.refuse(&format!("{algorithm}: alg {none:?}, signed"), &bench.sign(algorithm, changed.to_string(), &claims));
        }
        // The right key, and what another primitive makes with it.
        for other in ["EdDSA", "ES256", "RS256", "RS384", "RS512", "PS256", "PS384"] {
            if other != algorithm {
                bench.refuse(&format!("{algorithm}: signed as {other}"), &bench.sign(other, header(algorithm).to_string(), &claims));
                let says_so = with(header(algorithm), "alg", json!(other));
                bench.refuse(&format!("{algorithm}: signed as {other}, and says so"), &bench.sign(other, says_so.to_string(), &claims));
            }
        }
        for (name, value) in [
            ("jwk", json!({ "kty": "OKP", "crv": "Ed25519", "kid": algorithm, "x": encode(stranger.public_key()) })),
            ("jku", json!("https://attacker.test/jwks")),
            ("jku", json!("file:///dev/stdin")),
            ("x5u", json!("https://attacker.test/x.pem")),
            ("x5c", json!(["MIIB"])),
            ("x5t#S256", json!(encode([0; 32]))),
        ] {
            for alg in [algorithm, "EdDSA"] {
                let changed = with(with(header(algorithm), name, value.clone()), "alg", json!(alg));
                let message = message(changed.to_string(), &claims);
                bench.refuse(&format!("{algorithm}: {name}"), &format!("{message}.{}", encode(stranger.sign(message.as_bytes()))));
            }
            // Of no account where the issuer's own key has signed.
            bench.check(
                &format!("{algorithm}: {name}, honestly"),
                &bench.sign(algorithm, with(header(algorithm), name, value).to_string(), &claims),
                200,
            );
        }
        for id in
            [json!("none"), json!(""), json!(null), json!(0), json!(["EdDSA"]), json!({}), json!("../../dev/null"), json!("' OR 1=1 --")]
        {
            bench
                .refuse(&format!("{algorithm}: kid {id}"), &bench.sign(algorithm, with(header(algorithm), "kid", id).to_string(), &claims));
        }
    }
    bench.finish();
}

#[test]
fn a_signature_of_ecdsa_or_rsa_outside_its_numbers_is_401() {
    let mut bench = Bench::start(|_| Vec::new());
    let message = message(header("ES256").to_string(), IdentityProvider::claims().to_string());
    let signature = bench.signature("ES256", &message);
    let (r, s) = signature.split_at(32);
    let (zero, mut one) = ([0; 32], [0; 32]);
    one[31] = 1;
    let (mut less, mut more) = (ORDER, ORDER);
    less[31] -= 1;
    more[31] += 1;
    let numbers = [zero, one, less, ORDER, more, [0xff; 32]];
    for first in numbers {
        for second in numbers {
            bench.refuse("ES256: r and s at the ends", &format!("{message}.{}", encode([first, second].concat())));
        }
        bench.refuse("ES256: r at the ends", &format!("{message}.{}", encode([&first[..], s].concat())));
        bench.refuse("ES256: s at the ends", &format!("{message}.{}", encode([r, &first].concat())));
    }
    let asn1 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &bench.p256).expect("our key");
    let asn1 = asn1.sign(&SystemRandom::new(), message.as_bytes()).expect("signed");
    for (what, other) in [
        ("ASN.1", asn1.as_ref().to_vec()),
        ("too long", [&[0][..], r, &[0], s].concat()),
        ("trailing zeros", [r, &[0], s, &[0]].concat()),
        ("one too long", [&[1][..], r, &[0], s].concat()),
        ("much too long", [&[0; 300][..], r, &[0; 300], s].concat()),
        ("halves exchanged", [s, r].concat()),
        ("r alone", r.to_vec()),
    ] {
        bench.refuse(&format!("ES256: {what}"), &format!("{message}.{}", encode(other)));
    }

    let message = self::message(header("RS256").to_string(), IdentityProvider::claims().to_string());
    let modulus = bench.rsa.public_key().modulus().big_endian_without_leading_zero().to_vec();
    let hash = digest(&SHA256, message.as_bytes());
    // What a signature would hold, unsigned (RFC 8017 section 9.2); and 0, 1 and the modulus, which are their own powers.
    let info = [&b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"[..], hash.as_ref()].concat();
    let padded = [&[0, 1][..], &vec![0xff; modulus.len() - 3 - info.len()], &[0], &info].concat();
    let mut one = vec![0; modulus.len()];
    one[modulus.len() - 1] = 1;
    for (what, other) in
        [("the padded hash", padded), ("one", one), ("the modulus", modulus.clone()), ("beyond the modulus", vec![0xff; modulus.len()])]
    {
        bench.refuse(&format!("RS256: {what}"), &format!("{message}.{}", encode(other)));
    }
    bench.finish();
}

#[test]
fn a_key_of_the_issuer_that_is_not_for_signatures_or_too_weak_verifies_nothing() {
    let small = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).expect("a key");
    let secret = [7_u8; 32];
    let mut bench = Bench::start(|rsa| {
        let named = |id: &str, changes: Value| {
            let mut key = rsa_jwk(rsa, "RS256");
            key["kid"] = json!(id);
            for (name, value) in changes.as_object().expect("an object") {
                if value.is_null() { key.as_object_mut().map(|key| key.remove(name)).map_or((), drop) } else { key[name] = value.clone() }
            }
            key
        };
        vec![
            json!({ "kty": "oct", "kid": "shared", "k": encode(secret), "alg": "HS256", "use": "sig" }),
            json!({ "kty": "oct", "kid": "unnamed", "k": encode(secret) }),
            named("for-encryption", json!({ "use": "enc" })),
            named("for-wrapping", json!({ "alg": "RSA-OAEP" })),
            named("to-encrypt", json!({ "key_ops": ["encrypt"], "use": null })),
            named("for-nothing", json!({ "key_ops": [], "use": null })),
            named("by-sha-1", json!({ "alg": "RS1" })),
            named("by-none", json!({ "alg": "none" })),
            named("exponent-one", json!({ "e": "AQ" })),
            named("no-exponent", json!({ "e": "" })),
            // A good key under the id of another, which came first.
            with(rsa_jwk(&small, "RS256"), "kid", json!("RS256")),
        ]
    });
    let claims = IdentityProvider::claims().to_string();
    for id in ["for-encryption", "for-wrapping", "to-encrypt", "for-nothing", "by-sha-1", "by-none", "no-exponent"] {
        bench.refuse(id, &bench.sign("RS256", with(header("RS256"), "kid", json!(id)).to_string(), &claims));
    }
    for id in ["shared", "unnamed"] {
        bench.refuse(id, &by_shared_secret(id, &secret));
    }
    // With an exponent of one a signature is what it signs.
    let message = message(with(header("RS256"), "kid", json!("exponent-one")).to_string(), &claims);
    let info = [
        &b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"[..],
        digest(&SHA256, message.as_bytes()).as_ref(),
    ]
    .concat();
    let padded = [&[0, 1][..], &vec![0xff; 256 - 3 - info.len()], &[0], &info].concat();
    bench.refuse("exponent-one", &format!("{message}.{}", encode(padded)));
    let signed = self::message(header("RS256").to_string(), &claims);
    let mut second = vec![0; small.public_modulus_len()];
    small.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut second).expect("signed");
    bench.refuse("a second key under one id", &format!("{signed}.{}", encode(second)));
    bench.finish();
}
