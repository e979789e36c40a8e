//! Tokens that were altered, taken apart, put together otherwise, or that two readers could read differently.
//!
//! Their signatures are the issuer's own, of what was signed or of what is written: it is the form that has to be refused. Rows
//! of base64 and of JSON alike: what is not the one spelling is none.

use super::*;

#[test]
fn a_token_that_was_altered_taken_apart_or_put_together_otherwise_is_401() {
    let mut bench = Bench::start(|_| Vec::new());
    for algorithm in ALGORITHMS {
        let honest = bench.honest(algorithm);
        let parts: Vec<&str> = honest.split('.').collect();
        let (head, claims, signature) = (parts[0], parts[1], parts[2]);
        let bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        let richer = encode(with(IdentityProvider::claims(), "firm_id", json!("firm-2")).to_string());
        let other_head = encode(with(header(algorithm), "x", json!(1)).to_string());
        let mut rows = vec![
            ("modified payload", format!("{head}.{richer}.{signature}")),
            ("modified header", format!("{other_head}.{claims}.{signature}")),
            ("missing signature", format!("{head}.{claims}.")),
            ("missing signature and separator", format!("{head}.{claims}")),
            ("missing payload", format!("{head}..{signature}")),
            ("missing payload and separator", format!("{head}.{signature}")),
            ("missing header", format!(".{claims}.{signature}")),
            ("missing header and separator", format!("{claims}.{signature}")),
            ("missing header and signature", format!(".{claims}.")),
            ("payload alone", claims.to_owned()),
            ("extra empty component", format!("{honest}.")),
            ("extra component", format!("{honest}.foo")),
            ("two tokens", format!("{honest}.{honest}")),
            ("a separator before", format!(".{honest}")),
            ("parts in another order", format!("{claims}.{head}.{signature}")),
            ("signature in the place of all", format!("{signature}.{signature}.{signature}")),
            ("JSON serialization", json!({ "payload": claims, "signatures": [{ "protected": head, "signature": signature }] }).to_string()),
            ("flattened JSON serialization", json!({ "payload": claims, "protected": head, "signature": signature }).to_string()),
            ("padded signature", format!("{honest}=")),
            ("twice padded signature", format!("{honest}==")),
            ("padded header", format!("{head}=.{claims}.{signature}")),
            ("padded payload", format!("{head}.{claims}=.{signature}")),
            ("spaces before the signature", format!("{head}.{claims}.    {signature}")),
            ("spaces behind the header", format!("{head}    .{claims}.{signature}")),
            ("spaces before the payload", format!("{head}.    {claims}.{signature}")),
            ("a tab", format!("{head}.{claims}\t.{signature}")),
            ("invalid character before the signature", format!("{head}.{claims}.?{signature}")),
            ("invalid character behind the signature", format!("{honest}?")),
            ("invalid characters in the header", format!("{head}####.{claims}.{signature}")),
            ("invalid character in the payload", format!("{head}.?{claims}.{signature}")),
            ("percent-encoded separators", honest.replace('.', "%2e")),
        ];
        for place in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            rows.push(("modified signature", format!("{head}.{claims}.{}", encode(&flipped))));
        }
        for other in [
            vec![0; bytes.len()],
            vec![0xff; bytes.len()],
            bytes[1..].to_vec(),
            bytes[..bytes.len() - 1].to_vec(),
            [&bytes[..], &[0]].concat(),
            [&[0][..], &bytes].concat(),
            [&bytes[..], &bytes].concat(),
            bytes.iter().rev().copied().collect(),
            vec![0; 1],
            vec![0; 4096],
        ] {
            rows.push(("another signature", format!("{head}.{claims}.{}", encode(&other))));
        }
        let standard = STANDARD_NO_PAD.encode(&bytes);
        if standard != signature {
            rows.push(("the other alphabet of base64", format!("{head}.{claims}.{standard}")));
        }
        // Bits of the last character that no byte has (RFC 4648 section 3.5): 64 and 256 bytes leave some.
        let mut unused = signature.to_owned();
        let last = unused.pop().expect("a signature");
        let next = char::from(u8::try_from(last).expect("ASCII") + 1);
        rows.push(("unused bits in the signature", format!("{head}.{claims}.{unused}{next}")));
        for (what, token) in rows {
            bench.refuse(&format!("{algorithm}: {what}"), &token);
        }
    }
    for nothing in ["", ".", "..", "...", "null", "{}", "e30.e30.", "e30.e30.e30", "Bearer", "undefined"] {
        bench.refuse("nothing", nothing);
    }
    bench.finish();
}

#[test]
fn a_header_or_claims_that_two_readers_could_read_differently_are_401() {
    let mut bench = Bench::start(|_| Vec::new());
    let (good_header, good_claims) = (header("EdDSA").to_string(), IdentityProvider::claims().to_string());
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let in_front = |text: &str, member: &str| text.replacen('{', &format!("{{{member},"), 1);
    let behind = |text: &str, member: &str| format!("{},{member}}}", text.strip_suffix('}').expect("an object"));
    let headers: Vec<Vec<u8>> = [
        in_front(&good_header, r#""alg":"none""#),
        behind(&good_header, r#""alg":"none""#),
        behind(&good_header, r#""alg":"EdDSA""#),
        behind(&good_header, r#""\u0061lg":"none""#),
        behind(&good_header, r#""kid":"RS256""#),
        behind(&good_header, r#""crit":["exp"]"#),
        behind(&good_header, r#""crit":[]"#),
        behind(&good_header, r#""crit":null"#),
        behind(&good_header, r#""b64":false"#),
        behind(&good_header, r#""b64":true"#),
        format!("{good_header} x"),
        format!("{good_header}{good_header}"),
        format!("[{good_header}]"),
        format!("\u{feff}{good_header}"),
        good_header.replace("\"JWT\"", "\"JWE\""),
        good_header.replace("\"JWT\"", "[]"),
        behind(&good_header, &format!(r#""x":{}"#, nested(5_000))),
        "null".into(),
        "\"EdDSA\"".into(),
    ]
    .map(String::into_bytes)
    .into_iter()
    .chain([[good_header.as_bytes(), b"\0"].concat(), good_header.replace("JWT", "J\0T").into_bytes(), b"\xff\xfe{}".to_vec()])
    .collect();
    for changed in headers {
        bench.refuse(&format!("header {}", changed.escape_ascii()), &bench.sign("EdDSA", &changed, &good_claims));
    }
    let number = |name: &str, value: &str| {
        let mut claims = IdentityProvider::claims();
        claims.as_object_mut().expect("an object").remove(name);
        behind(&claims.to_string(), &format!(r#""{name}":{value}"#))
    };
    let mut claims: Vec<Vec<u8>> = [
        in_front(&good_claims, r#""firm_id":"firm-2""#),
        behind(&good_claims, r#""firm_id":"firm-2""#),
        behind(&good_claims, r#""firm\u005fid":"firm-2""#),
        behind(&good_claims, r#""exp":9999999999"#),
        behind(&good_claims, r#""permissions":[]"#),
        behind(&good_claims, r#""x":{"y":1,"y":2}"#),
        behind(&good_claims, &format!(r#""x":{}"#, nested(5_000))),
        format!("{good_claims}{{}}"),
        format!("\u{feff}{good_claims}"),
        good_claims.replace("firm-1", "firm-1\\u0000"),
        good_claims.replace("firm-1", "firm-1\\ud800"),
        good_claims.replace("firm-1", "firm-1\\u202e"),
        "[]".into(),
        "null".into(),
    ]
    .map(String::into_bytes)
    .into();
    for value in [
        "1e400",
        "1e308",
        "-1e308",
        "99999999999999999999999",
        "-1",
        "0",
        "null",
        "true",
        "\"9999999999\"",
        "[9999999999]",
        "{}",
        "NaN",
        "0x7fffffff",
        "1e-400",
    ] {
        claims.push(number("exp", value).into_bytes());
    }
    for value in ["1e308", "99999999999999999999999", "null", "\"0\"", "[0]", "Infinity"] {
        claims.push(number("nbf", value).into_bytes());
    }
    claims.push(good_claims.replace("firm-1", "firm-\u{e9}").chars().map(|character| character as u8).collect());
    for changed in claims {
        let shown: String = changed.escape_ascii().to_string().chars().take(400).collect();
        bench.refuse(&format!("claims {shown}"), &bench.sign("EdDSA", &good_header, &changed));
    }
    // White space is nobody's business.
    bench.check(
        "white space",
        &bench.sign(
            "EdDSA",
            good_header.replace(
                "\":", "\" :
	",
            ),
            good_claims.replace("\":", "\" : "),
        ),
        200,
    );
    bench.finish();
}
