//! Targets, hosts, credentials and the admin listener under attack: rows of raw bytes with an exact outcome.
//!
//! Framing is `desync`'s, what a deny rule covers is `policy`'s, tokens are `tokens`'. Each row names an RFC's section or a
//! class of attack, and is tried alone, in pieces and pipelined (see `rows`).

use serde_json::json;

use crate::support::rows::{Bench, MALFORMED, Outcome, replace};
use crate::support::{Client, End, Gateway, Request};

#[test]
fn a_target_that_two_programs_could_read_differently_is_refused() {
    let mut bench = Bench::start();
    let rows: &[(&str, &[&[u8]])] = &[
        ("dot segments, RFC 3986 5.2.4", &[b"/a/..", b"/..", b"/.", b"/a/./b", b"/a/../b", b"/../../etc/passwd", b"/a/.../../b"]),
        (
            "dot segments, encoded",
            &[b"/%2e%2e/b", b"/a/.%2E/b", b"/a/%2e./b", b"/%2e", b"/a/%2e%2e", b"/%252e%252e/b", b"/a/%252e/b", b"/%25252e%25252e/b"],
        ),
        ("dot segments behind parameters", &[b"/a/..;/b", b"/a/..;x=y/b", b"/a/.;/b", b"/..;", b"/a/%2e%2e;/b", b"/a/..%3b/b"]),
        ("slashes, RFC 3986 3.3", &[b"//a", b"//a/b", b"/a//b", b"/a///", b"//", b"/a/;/b", b"///a"]),
        ("slashes, encoded", &[b"/a%2fb", b"/a%2Fb", b"/%2f", b"/a%252fb", b"/a%2f..%2fb", b"/%2e%2e%2fb"]),
        ("backslashes", &[b"/a\\b", b"/\\a", b"\\a", b"/a%5cb", b"/a%5C..%5Cb", b"/a%255cb"]),
        (
            "control bytes",
            &[
                b"/a%00b",
                b"/a%00",
                b"/a%0ab",
                b"/a%0d%0ab",
                b"/a%1fb",
                b"/a%7fb",
                b"/a%c2%85b",
                b"/a%C2%9Fb",
                b"/a%09b",
                b"/a\x01b",
                b"/a\x7fb",
                b"/a\0b",
            ],
        ),
        ("escapes, RFC 3986 2.1", &[b"/%", b"/a%", b"/a%1", b"/a%zz", b"/a%u002e", b"/a%%32e", b"/%g0", b"/a%-1"]),
        (
            "overlong UTF-8",
            &[b"/a%c0%afb", b"/a%c0%aeb", b"/a%e0%80%afb", b"/a%f0%80%80%afb", b"/%c1%9cb", b"/a%ffb", b"/a%c3", b"/a%ed%a0%80"],
        ),
        ("bytes that must be escaped", &[b"/\xc3\xa9", b"/a\xffb", b"/a\xa0b"]),
        ("fragments, RFC 9112 3.2", &[b"/a#b", b"/#", b"#", b"/a?b#c", b"/a%23b#"]),
        ("no slash, RFC 9112 3.2.1", &[b"a", b"a/b", b"?a", b".", b"../a", b"localhost/a", b"localhost:80/a", b"%2fa", b";a"]),
        ("asterisk, RFC 9112 3.2.4", &[b"*", b"*a", b"/*/..", b"**"]),
        (
            "absolute form, RFC 9112 3.2.2",
            &[
                b"http://other/a",
                b"http://localhost:81/a",
                b"http://user@localhost/a",
                b"http://user:pass@localhost/a",
                b"http://localhost@other/a",
                b"http://localhost\\@other/a",
                b"http:///a",
                b"http:/a",
                b"http:a",
                b"http://localhost?a",
                b"ftp://localhost/a",
                b"file:///etc/passwd",
                b"javascript://localhost/a",
                b"http://localhost/../a",
                b"http://[::1/a",
                b"http://localhost.evil/a",
                b"http://127.0.0.1/a",
                b"https://other/a",
            ],
        ),
    ];
    for (class, targets) in rows {
        for target in *targets {
            bench.check(class, &[&b"GET "[..], target, b" HTTP/1.1\r\n{H}{A}\r\n"].concat(), MALFORMED);
        }
    }
    let long = |length: usize| [b"GET /", &b"a".repeat(length)[..], b" HTTP/1.1\r\n{H}{A}\r\n"].concat();
    bench.check("length, RFC 9110 4.1", &long(8_192), Outcome::Refused(414, "target_too_long"));
    bench.check("length, RFC 9110 4.1", &long(20_000), Outcome::Refused(414, "target_too_long"));
    bench.check("length, RFC 9110 4.1", &long(8_170), Outcome::Forwarded);
    for target in [
        &b"/x"[..],
        b"/x?a=/../b",
        b"/x;y=z",
        b"/x/",
        b"/x?",
        b"/x%20y",
        b"/x/%C3%A9",
        b"/x/~",
        b"/x.",
        b"/x/..a",
        b"/x/a..",
        b"http://LOCALHOST:80/x",
        b"/x?%",
    ] {
        bench.check("RFC 3986", &[b"GET ", target, b" HTTP/1.1\r\n{H}{A}Connection: close\r\n\r\n"].concat(), Outcome::Forwarded);
    }
    bench.finish();
}

#[test]
fn a_host_that_two_programs_could_read_differently_is_refused() {
    let mut bench = Bench::start();
    let rows: &[(&str, &[&[u8]])] = &[
        ("no Host, RFC 9112 3.2", &[b"", b"X-Host: localhost\r\n", b"Hos\x74 : localhost\r\n"]),
        (
            "several Hosts, RFC 9112 3.2",
            &[
                b"Host: localhost\r\nHost: localhost\r\n",
                b"Host: localhost\r\nHost: other\r\n",
                b"Host: localhost\r\nhost: other\r\n",
                b"Host: localhost\r\nX: y\r\nHOST:\r\n",
                b"Host: localhost\r\n Host: other\r\n",
            ],
        ),
        (
            "Host that is no name, RFC 9110 7.2",
            &[
                b"Host:\r\n",
                b"Host: \t\r\n",
                b"Host: a,b\r\n",
                b"Host: a b\r\n",
                b"Host: localhost other\r\n",
                b"Host: user@localhost\r\n",
                b"Host: localhost@other\r\n",
                b"Host: localhost/x\r\n",
                b"Host: localhost\\x\r\n",
                b"Host: localhost?x\r\n",
                b"Host: localhost#x\r\n",
                b"Host: localhost;x\r\n",
                b"Host: 'localhost'\r\n",
                b"Host: \"localhost\"\r\n",
                b"Host: <localhost>\r\n",
                b"Host: loc%61lhost\r\n",
                b"Host: localhost%00.other\r\n",
                b"Host: localhost\0\r\n",
                b"Host: localhost\x0b\r\n",
                b"Host: \xc3\xa9\r\n",
                b"Host: localhost\xa0\r\n",
                b"Host: .localhost\r\n",
                b"Host: localhost..\r\n",
                b"Host: local..host\r\n",
                b"Host: .\r\n",
                b"Host: http://localhost\r\n",
                b"Host: //localhost\r\n",
                b"Host: *\r\n",
                b"Host: ${jndi:ldap://x}\r\n",
            ],
        ),
        (
            "port, RFC 3986 3.2.3",
            &[
                b"Host: localhost:\r\n",
                b"Host: localhost:x\r\n",
                b"Host: localhost:8o\r\n",
                b"Host: localhost:99999\r\n",
                b"Host: localhost:65536\r\n",
                b"Host: localhost:-1\r\n",
                b"Host: localhost:+80\r\n",
                b"Host: localhost:80:80\r\n",
                b"Host: localhost:80 \0\r\n",
                b"Host: localhost:000000080\r\n",
                b"Host: :80\r\n",
            ],
        ),
        (
            "IPv6, RFC 3986 3.2.2",
            &[
                b"Host: [::1\r\n",
                b"Host: ::1\r\n",
                b"Host: [::1]x\r\n",
                b"Host: [localhost]\r\n",
                b"Host: [::1%25eth0]\r\n",
                b"Host: []\r\n",
                b"Host: [::1]]\r\n",
            ],
        ),
    ];
    for (class, lines) in rows {
        for lines in *lines {
            bench.check(class, &[&b"GET /x HTTP/1.1\r\n"[..], lines, b"{A}\r\n"].concat(), MALFORMED);
        }
    }
    bench.check("too long", &[b"GET /x HTTP/1.1\r\nHost: ", &b"a".repeat(300)[..], b"\r\n{A}\r\n"].concat(), MALFORMED);
    for host in
        [&b"localhost"[..], b"LOCALHOST", b"localhost.", b"localhost:8080", b"127.0.0.1", b"[::1]:443", b"a-b.c_d.example", b" localhost "]
    {
        bench.check("RFC 9110 7.2", &[b"GET /x HTTP/1.1\r\nHost: ", host, b"\r\n{A}\r\n"].concat(), Outcome::Forwarded);
    }
    bench.finish();
}

#[test]
fn a_credential_is_found_in_two_places_only_and_never_guessed() {
    let mut bench = Bench::start();
    let secret = bench.key.secret.clone();
    let other = bench.gateway.create_key(&bench.gateway.editor(), "other").secret;
    let token = bench.gateway.editor();
    let fill = |text: &str| {
        let text = replace(text.as_bytes(), b"{K}", secret.as_bytes());
        let text = replace(&text, b"{O}", other.as_bytes());
        replace(&text, b"{T}", token.as_bytes())
    };
    let (missing, invalid) = (Outcome::Told(401, "missing_key"), Outcome::Told(401, "invalid_key"));
    let conflict = MALFORMED;
    let rows: &[(&str, &str, Outcome)] = &[
        ("none", "", missing),
        ("none, RFC 6750 2.1", "Authorization:\r\n", missing),
        ("none, RFC 6750 2.1", "Authorization: Bearer\r\n", missing),
        ("none, RFC 6750 2.1", "Authorization: Bearer    \r\n", missing),
        ("none", "X-Api-Key:\r\n", missing),
        ("another scheme, RFC 9110 11.4", "Authorization: Basic {K}\r\n", missing),
        ("another scheme, RFC 9110 11.4", "Authorization: {K}\r\n", missing),
        ("another scheme, RFC 9110 11.4", "Authorization: BearerX {K}\r\n", missing),
        ("another scheme, RFC 9110 11.4", "Authorization: Token {K}\r\n", missing),
        ("another scheme, RFC 9110 11.4", "Authorization: Bearer={K}\r\n", missing),
        ("another scheme, RFC 9110 11.4", "Authorization: Bearer\t{K}\r\n", missing),
        ("another place", "Cookie: api_key={K}\r\n", missing),
        ("another place", "Proxy-Authorization: Bearer {K}\r\n", missing),
        ("another place", "X-Auth-Token: {K}\r\n", missing),
        ("another place", "Authorization_: Bearer {K}\r\n", missing),
        ("another place", "X_Api_Key: {K}\r\n", missing),
        ("another place", "Api-Key: {K}\r\n", missing),
        ("a list", "Authorization: Bearer {K}, Bearer {K}\r\n", invalid),
        ("a list", "Authorization: Bearer {K} {K}\r\n", invalid),
        ("a list", "X-Api-Key: {K},{K}\r\n", invalid),
        ("a list", "X-Api-Key: {K} {O}\r\n", invalid),
        ("not the key", "X-Api-Key: {K}x\r\n", invalid),
        ("not the key", "X-Api-Key: x{K}\r\n", invalid),
        ("not the key", "X-Api-Key: \"{K}\"\r\n", invalid),
        ("not the key", "X-Api-Key: assure_\r\n", invalid),
        ("not the key", "X-Api-Key: Bearer {K}\r\n", invalid),
        ("not the key", "X-Api-Key: \u{e9}\r\n", invalid),
        ("not the key", "Authorization: Bearer ' OR 1=1 --\r\n", invalid),
        ("not the key", "Authorization: Bearer ${jndi:ldap://x}\r\n", invalid),
        ("not the key", "Authorization: Bearer ../../etc/passwd\r\n", invalid),
        ("a user's token", "Authorization: Bearer {T}\r\n", invalid),
        ("two keys", "Authorization: Bearer {K}\r\nAuthorization: Bearer {O}\r\n", conflict),
        ("two keys", "Authorization: Bearer {K}\r\nX-Api-Key: {O}\r\n", conflict),
        ("two keys", "X-Api-Key: {K}\r\nX-Api-Key: {O}\r\n", conflict),
        ("two keys", "X-Api-Key: {O}\r\nAuthorization: bearer {K}\r\n", conflict),
        ("two keys", "Authorization: Bearer {K}\r\nX-Api-Key: x\r\n", conflict),
        ("a key and a token", "Authorization: Bearer {T}\r\nX-Api-Key: {K}\r\n", conflict),
        ("one key twice", "Authorization: Bearer {K}\r\nAuthorization: Bearer {K}\r\n", Outcome::Forwarded),
        ("one key twice", "Authorization: Bearer {K}\r\nX-Api-Key: {K}\r\n", Outcome::Forwarded),
        ("another scheme beside a key", "Authorization: Basic eDp5\r\nX-Api-Key: {K}\r\n", Outcome::Forwarded),
        ("RFC 9110 11.1", "authorization: bEaReR   {K}\r\n", Outcome::Forwarded),
        ("RFC 9110 5.6.3", "X-API-KEY: \t{K} \t\r\n", Outcome::Forwarded),
        ("hop by hop", "Authorization: Bearer {K}\r\nConnection: Authorization\r\n", Outcome::Forwarded),
    ];
    for (class, lines, outcome) in rows {
        bench.check(class, &[b"GET /x HTTP/1.1\r\n{H}", &fill(lines)[..], b"\r\n"].concat(), *outcome);
    }
    for query in ["api_key={K}", "access_token={K}", "key={K}", "authorization=Bearer%20{K}"] {
        bench.check("the query, RFC 6750 2.3", &[b"GET /x?", &fill(query)[..], b" HTTP/1.1\r\n{H}\r\n"].concat(), missing);
    }
    let log = bench.gateway.log();
    assert!(!log.contains(&secret) && !log.contains(&other) && !log.contains(&token), "no credential is in the log");
    bench.finish();
}

/// Raw requests to the admin listener: what a stranger's page or a confused proxy could make a browser send.
#[test]
fn the_admin_listener_refuses_foreign_hosts_and_sites_and_odd_framing() {
    let gateway = Gateway::start();
    let editor = gateway.editor();
    let port = gateway.admin().port();
    let body = br#"{"name":"forged"}"#;
    let create = |lines: &str| {
        let head = format!(
            "POST /v1/keys HTTP/1.1\r\nAuthorization: Bearer {editor}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{lines}\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    let host = format!("Host: 127.0.0.1:{port}\r\n");
    let with = |more: &str| create(&format!("{host}{more}"));
    let rows: Vec<(&str, Vec<u8>, u16)> = vec![
        ("DNS rebinding", create(&format!("Host: attacker.test:{port}\r\n")), 421),
        ("DNS rebinding", create("Host: localhost.attacker.test\r\n"), 421),
        ("DNS rebinding", create("Host: 127.0.0.1.nip.test\r\n"), 421),
        ("DNS rebinding", create("Host: 192.0.2.1\r\n"), 421),
        ("no Host, RFC 9112 3.2", create(""), 400),
        ("two Hosts, RFC 9112 3.2", with("Host: localhost\r\n"), 400),
        ("two Hosts, RFC 9112 3.2", with("Host: attacker.test\r\n"), 400),
        ("no name", create("Host: 127.0.0.1, attacker.test\r\n"), 400),
        ("no name", create("Host: user@127.0.0.1\r\n"), 400),
        ("no name", create("Host:\r\n"), 400),
        ("cross-site, Fetch metadata", with("Sec-Fetch-Site: cross-site\r\n"), 403),
        ("cross-site, Fetch metadata", with("Sec-Fetch-Site: same-site\r\n"), 403),
        ("cross-site, Fetch metadata", with("Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site\r\n"), 403),
        ("cross-site, RFC 6454 7", with("Origin: http://attacker.test\r\n"), 403),
        ("cross-site, RFC 6454 7", with("Origin: null\r\n"), 403),
        ("cross-site, RFC 6454 7", with(&format!("Origin: http://127.0.0.1:{port}.attacker.test\r\n")), 403),
        ("cross-site, RFC 6454 7", with(&format!("Origin: http://127.0.0.1:{}\r\n", port - 1)), 403),
        ("cross-site, RFC 6454 7", with(&format!("Origin: http://127.0.0.1:{port}\r\nOrigin: http://attacker.test\r\n")), 403),
        ("TE and CL, RFC 9112 6.3", with("Transfer-Encoding: chunked\r\n"), 400),
        ("CL.CL", with("Content-Length: 5\r\n"), 400),
        ("CL.CL", with(&format!("Content-Length: {}\r\n", body.len())), 400),
        ("bare LF, RFC 9112 2.2", with("X: y\nZ: w\r\n"), 400),
        ("obs-fold, RFC 9112 5.2", with("X: y\r\n z\r\n"), 400),
        ("method override", replace(&with("X-HTTP-Method-Override: GET\r\n"), b"POST ", b"PUT "), 405),
    ];
    for (class, bytes, status) in rows {
        let mut client = Client::connect(gateway.admin());
        client.send(&bytes).expect("sent");
        let answer = client.answer().unwrap_or_else(|broken| panic!("[{class}] {broken:?}\n{}", bytes.escape_ascii()));
        assert_eq!(answer.status, status, "[{class}] {}", bytes.escape_ascii());
        let is_framing = ["TE and CL", "CL.CL", "bare LF", "obs-fold"].iter().any(|name| class.starts_with(name));
        assert!(!is_framing || client.end() == End::Closed, "[{class}] closed: {}", bytes.escape_ascii());
    }
    let names = |token: &str| gateway.admin_get(token, "/v1/keys?status=all").json()["keys"].as_array().map(Vec::len);
    assert_eq!(names(&editor), Some(0), "nothing was created");
    let mut client = Client::connect(gateway.admin());
    client.send(with(&format!("Origin: http://127.0.0.1:{port}\r\nSec-Fetch-Site: same-origin\r\n"))).expect("sent");
    client.answer().expect("an answer").expect(201);
}

#[test]
fn what_a_client_says_about_identity_address_method_or_target_never_arrives() {
    let gateway = Gateway::with(|config| config["limits"]["requests_per_minute"] = json!(1_000_000));
    let key = gateway.key();
    let mark = "forged-by-the-client";
    let names = [
        ("identity", "X-Assure-Jwt-Assertion"),
        ("identity", "x-assure-jwt-assertion"),
        ("identity", "X-ASSURE-ANYTHING"),
        ("identity, underscores", "X_Assure_Jwt_Assertion"),
        ("identity, underscores", "X-Assure_Jwt-Assertion"),
        ("identity, other bytes", "X.Assure.Jwt.Assertion"),
        ("identity, other bytes", "X-Assure--Jwt--Assertion"),
        ("identity, other bytes", "X~Assure~Firm"),
        ("address, RFC 7239", "Forwarded"),
        ("address", "X-Forwarded-For"),
        ("address", "X_Forwarded_For"),
        ("address", "X-Forwarded-Host"),
        ("address", "X-Forwarded-Proto"),
        ("address", "X-Forwarded-Port"),
        ("address", "X-Forwarded-Uri"),
        ("address", "X-Forwarded-Prefix"),
        ("address", "X-Forwarded-Server"),
        ("address", "X-Forwarded"),
        ("address", "X-Real-IP"),
        ("address", "X_Real_IP"),
        ("address", "X-Client-IP"),
        ("address", "True-Client-IP"),
        ("address", "CF-Connecting-IP"),
        ("address", "X-Cluster-Client-IP"),
        ("hops, RFC 9110 7.6.3", "Via"),
        ("target", "X-Original-URL"),
        ("target", "X_Original_URL"),
        ("target", "X-Rewrite-URL"),
        ("target", "X-Original-Host"),
        ("target", "X-Host"),
        ("method", "X-HTTP-Method-Override"),
        ("method", "X-HTTP-Method"),
        ("method", "X-Method-Override"),
        ("CGI, httpoxy", "Proxy"),
        ("hop by hop, RFC 9110 7.6.1", "Keep-Alive"),
        ("hop by hop, RFC 9110 7.6.1", "Proxy-Authorization"),
        ("hop by hop, RFC 9110 7.6.1", "Proxy-Connection"),
        ("the gateway's own", "X-Request-Id"),
        ("the gateway's own", "X_Request_Id"),
    ];
    let mut wrong = Vec::new();
    let http2 = crate::support::Http2::connect(gateway.edge());
    for (class, name) in names {
        let request = Request::get("/x").bearer(&key.secret).with(name, mark);
        let statuses = [
            Ok(request.clone().with("Connection", name).send_to(gateway.edge()).status),
            Ok(request.send_to(gateway.edge()).status),
            // A client of HTTP/2 cannot send fields of the connection.
            if ["Keep-Alive", "Proxy-Connection"].contains(&name) { Ok(200) } else { http2.exchange(&request).map(|answer| answer.status) },
        ];
        let seen = gateway.upstream.seen();
        let arrived = seen.iter().filter(|seen| String::from_utf8_lossy(&seen.raw_head).contains(mark)).count();
        let identities = seen.iter().filter(|seen| seen.fields.all("x-assure-jwt-assertion").len() != 1).count();
        if statuses != [Ok(200), Ok(200), Ok(200)] || arrived > 0 || identities > 0 {
            wrong.push(format!("[{class}] {name}: {statuses:?}, arrived {arrived} times, {identities} without one identity"));
        }
        gateway.upstream.forget();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The same in trailers, and what may never be one (RFC 9110 section 6.5.1).
    for name in names.map(|(_, name)| name).into_iter().chain([
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Authorization",
        "X-Api-Key",
        "Cookie",
        "TE",
    ]) {
        let head = Request::new("POST", "/x").bearer(&key.secret).with("Transfer-Encoding", "chunked").with("Trailer", name).head();
        let mut client = Client::connect(gateway.edge());
        client.send([&head[..], format!("5\r\nhello\r\n0\r\n{name}: {mark}\r\nX-Kept: yes\r\n\r\n").as_bytes()].concat()).expect("sent");
        client.answer().expect("an answer").expect(200);
        let seen = gateway.upstream.last("/x");
        assert!(seen.trailers.0.iter().all(|(_, value)| value != mark), "{name} arrived as a trailer: {:?}", seen.trailers);
    }
    assert_eq!(gateway.upstream.violations(), Vec::<String>::new());
}
