//! K1 with the tools that people use: curl, Python's requests and httpx, over HTTP/1.1 and HTTP/2.

use std::process::Command;

use serde_json::Value;

use crate::support::{Gateway, Key, program};

fn curl(gateway: &Gateway, key: &Key, words: &[&str]) -> (u16, String) {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20", "--write-out", "\n%{http_code} %{http_version}"]);
    command.args(words).arg("--header").arg(format!("Authorization: Bearer {}", key.secret)).arg(gateway.edge_url("/curl"));
    let output = program::output_of(&mut command);
    let (body, last) = output.rsplit_once('\n').expect("a status after the body");
    let (status, version) = last.split_once(' ').expect("two words");
    (status.parse().expect("a status"), format!("{version} {body}"))
}

#[test]
fn curl_works_with_both_protocols_and_every_method() {
    let gateway = Gateway::start();
    let key = gateway.key();
    assert_eq!(curl(&gateway, &key, &["--http1.1"]), (200, "1.1 ok".into()));
    assert_eq!(curl(&gateway, &key, &["--http2-prior-knowledge"]), (200, "2 ok".into()));
    assert_eq!(curl(&gateway, &key, &["--http2"]).0, 200, "an offered upgrade to h2c is ignored");
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        assert_eq!(curl(&gateway, &key, &["--request", method, "--data", "a=1"]).0, 200, "{method}");
        let seen = gateway.upstream.last("/curl");
        assert_eq!((seen.method.as_str(), seen.body_bytes), (method, 3));
    }
    assert_eq!(curl(&gateway, &key, &["--head"]).0, 200);
    assert!(gateway.upstream.violations().is_empty());
}

#[test]
fn curl_reads_the_413_of_a_large_upload() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let file = gateway.folder().join("large.bin");
    std::fs::write(&file, vec![b'x'; 12 * 1024 * 1024]).expect("our folder");
    let upload = format!("@{}", file.display());
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for extra in [&["--header", "Expect:"][..], &[], &["--header", "Transfer-Encoding: chunked"]] {
            let words = [&[version, "--data-binary", upload.as_str()], extra].concat();
            // HTTP/2 has no Transfer-Encoding; curl leaves the length out there by itself.
            let (status, body) = curl(&gateway, &key, &words);
            assert!(status == 413 && body.contains("request_too_large"), "{version} {extra:?}: {status} {body}");
        }
    }
    assert!(gateway.upstream.seen().iter().all(|seen| !seen.complete));
}

#[test]
fn requests_and_httpx_work_and_read_their_refusals() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let output = program::output_of(program::python("http_clients.py").arg(gateway.edge_url("")).arg(&key.secret));
    let results: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert_eq!(results.len(), 15, "three clients, five calls each: {output}");
    for result in &results {
        assert_eq!(result["status"], result["expected"], "{result}");
    }
    assert!(results.iter().any(|result| result["version"] == "HTTP/2"));
    assert!(gateway.upstream.violations().is_empty());
}
