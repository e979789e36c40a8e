//! A key is in the one answer that creates it and nowhere else: not in a log at its most talkative, a metric, a record, a
//! file, another answer, the store, or what the system shows of the process; nor is a user's token or an assertion.
//!
//! The tour (`tour.rs`) does everything that a credential can be part of, also everything that people do by mistake; then
//! every place is searched (`places.rs`). That the search can find something is shown by planting a secret.

mod places;
mod tour;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::json;

use crate::support::eventually::eventually;
use crate::support::gateway::binary;
use crate::support::redis::Redis;
use crate::support::{Gateway, Request, SOON, program};

use places::{Monitor, Place, findings};
use tour::Tour;

/// What the process tells and keeps: its log, its metrics and pages, its files, and what the system shows of it.
fn kept_by(gateway: &Gateway) -> Vec<Place> {
    let process =
        |name: &str| (format!("/proc/PID/{name}"), fs::read(format!("/proc/{}/{name}", gateway.process_id())).expect("our process"));
    let ops = |target: &str| (format!("ops {target}"), gateway.ops_get(target).body);
    let files = gateway.files().into_iter().map(|(path, bytes)| (path.display().to_string(), bytes));
    let told = [("the log".into(), gateway.log().into_bytes()), process("environ"), process("cmdline"), process("comm")];
    let pages = ["/metrics", "/readyz", "/healthz", "/.well-known/jwks.json"].map(ops);
    told.into_iter().chain(pages).chain(files).collect()
}

/// The tour was one: its traces, records and refusals are in the places that are searched.
fn assert_covers(places: &[Place], words: &[&str]) {
    for word in words {
        assert!(
            places.iter().any(|(place, bytes)| place.contains(word) || memmem(bytes, word.as_bytes())),
            "{word} is in no place that was searched"
        );
    }
}

fn memmem(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

#[test]
fn no_key_token_or_assertion_is_left_anywhere_by_a_whole_tour_on_the_embedded_store() {
    let gateway = Gateway::with(tour::talkative);
    let mut tour = Tour::on(&gateway);
    tour.go();
    let mut places = kept_by(&gateway);
    // A store and a spool that were closed in order hold what was in memory before.
    let (answers, secrets) = tour.end();
    let mut gateway = gateway;
    gateway.terminate();
    gateway.wait_exit(SOON);
    places.extend(gateway.files().into_iter().map(|(path, bytes)| (format!("after the end: {}", path.display()), bytes)));
    places.push(("the log at the end".into(), gateway.log().into_bytes()));
    places.extend(answers);
    assert!(secrets.len() >= 8, "keys, tokens and assertions: {}", secrets.len());
    assert_covers(&places, &["TRACE", "invalid_key", "key.revoke", "store.redb", "rate_limit_decisions_total", "pasted"]);
    assert_eq!(findings(&places, &secrets), Vec::<String>::new());
}

#[test]
fn no_key_token_or_assertion_is_left_anywhere_by_a_whole_tour_on_redis() {
    let redis = Redis::start();
    redis.tell(&["CONFIG", "SET", "rdbcompression", "no"]);
    let monitor = Monitor::start(redis.address());
    let gateway = Gateway::with(|config| {
        tour::talkative(config);
        config["store"] = redis.store("1s");
    });
    let mut tour = Tour::on(&gateway);
    tour.go();
    let shipped = || redis.streamed("action").iter().filter(|action| *action == "key.revoke").count() >= 2;
    eventually!(SOON, shipped(), "the records have been shipped");
    redis.tell(&["SAVE"]);
    let mut places = kept_by(&gateway);
    for entry in walk(redis.folder()) {
        places.push((format!("Redis on disk: {}", entry.display()), fs::read(&entry).expect("its file")));
    }
    assert!(places.iter().any(|(place, _)| place.ends_with(".rdb")) && places.iter().any(|(place, _)| place.ends_with(".aof")));
    places.push(("every command that Redis was sent".into(), monitor.heard()));
    let (answers, secrets) = tour.end();
    places.extend(answers);
    assert_covers(&places, &["TRACE", "invalid_key", "key.revoke", "EVALSHA", "XADD", "pasted"]);
    assert_eq!(findings(&places, &secrets), Vec::<String>::new());
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).expect("our folder").flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn the_command_line_shows_a_key_once_and_a_look_up_and_a_process_list_not_at_all() {
    let gateway = Gateway::with(tour::talkative);
    let editor = gateway.editor();
    let as_editor = |words: &[&str]| {
        let mut command = gateway.command(words);
        command.args(["--admin", &gateway.admin_url()]).env("ASSURE_ADMIN_TOKEN", &editor);
        command
    };
    let created = program::output_of(&mut as_editor(&["keys", "create", "Zapier", "--json"]));
    let created: serde_json::Value = serde_json::from_str(&created).expect("JSON");
    let (id, secret) = (created["id"].as_str().expect("an id").to_owned(), created["key"].as_str().expect("the key").to_owned());
    let mut look_up =
        as_editor(&["keys", "whoami"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let shown = fs::read(format!("/proc/{}/cmdline", look_up.id())).expect("our process");
    writeln!(look_up.stdin.take().expect("piped"), "{secret}").expect("it reads");
    let output = look_up.wait_with_output().expect("it ends");
    let mut places =
        vec![("whoami's arguments".into(), shown), ("whoami".into(), output.stdout), ("whoami's errors".into(), output.stderr)];
    for words in
        [&["keys", "list"][..], &["keys", "list", "--json"], &["keys", "show", &id], &["keys", "revoke", &id, "--yes"], &["activity"]]
    {
        places.push((format!("{words:?}"), program::output_of(&mut as_editor(words)).into_bytes()));
    }
    places.extend(kept_by(&gateway));
    assert_covers(&places, &["Zapier", "key.create"]);
    assert_eq!(findings(&places, &[secret, editor]), Vec::<String>::new());
}

#[test]
fn a_password_in_a_configuration_with_mistakes_is_printed_by_nobody() {
    const PASSWORD: &str = "hunter2-very-secret-word";
    let folder = tempfile::tempdir().expect("a folder");
    let urls = [
        format!("redis://user:{PASSWORD}@127.0.0.1:1/0"),
        format!("redis://:{PASSWORD}@127.0.0.1:1/not-a-number"),
        format!("http://:{PASSWORD}@127.0.0.1:1/0"),
        format!(":{PASSWORD}@nowhere"),
        format!("redis://user:{PASSWORD}@[::1"),
        format!("redis://user:{PASSWORD}/with@slash@127.0.0.1:1/0?unknown=1"),
        "${TEST_REDIS_URL}".to_owned(),
    ];
    let mut places: Vec<Place> = Vec::new();
    for (row, url) in urls.iter().enumerate() {
        // A good one is taken; each is beside a mistake, so that lines around it are shown.
        let text = format!("store:\n  redis:\n    url: \"{url}\"\n    coherence_lease: never\nnot_a_field: 1\n");
        fs::write(folder.path().join("gateway.yaml"), text).expect("our folder");
        for word in ["check", "run"] {
            let mut command = binary(folder.path());
            command.args([word, "--config", "gateway.yaml"]).env("TEST_REDIS_URL", format!("http://:{PASSWORD}@host"));
            let output = program::run(&mut command);
            assert_eq!(output.status.code(), Some(2), "row {row}: {word}");
            places.push((format!("row {row}: {word}"), [output.stdout, output.stderr].concat()));
        }
    }
    assert_covers(&places, &["not_a_field", "coherence_lease"]);
    assert_eq!(findings(&places, &[PASSWORD.to_owned()]), Vec::<String>::new());
}

#[test]
fn a_redis_password_is_in_no_log_and_on_no_page_while_redis_refuses_it_or_is_away() {
    const PASSWORD: &str = "hunter2-very-secret-word";
    let redis = Redis::stopped();
    let url = format!("redis://gateway:{PASSWORD}@{}/0", redis.address());
    let waiting = Gateway::waiting(|config| {
        tour::talkative(config);
        config["store"] = json!({ "redis": { "url": url, "coherence_lease": "1s" } });
    });
    eventually!(SOON, !waiting.readiness("store").0, "Redis is away");
    redis.spawn(&["--requirepass", "another-word"]);
    eventually!(SOON, waiting.readiness("store").1.contains("password is wrong"), "Redis refuses the password");
    let mut places = kept_by(&waiting);
    // What the operator wrote down is where the operator wrote it.
    places.retain(|(place, _)| !place.ends_with("gateway.yaml"));
    assert_covers(&places, &["password is wrong", "waiting for Redis"]);
    assert_eq!(findings(&places, &[PASSWORD.to_owned()]), Vec::<String>::new());
}

#[test]
fn the_search_finds_a_secret_in_every_form_in_which_it_could_be_left() {
    let secret = "assure_Ab3dk9QzAb3dk9QzAb3dk9QzAb3dk9QzAb3d0aB1cD".to_owned();
    let bytes = secret.as_bytes();
    let decimal = format!("{bytes:?}");
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let spoken = |text: &str| vec![("here".to_owned(), text.as_bytes().to_vec())];
    for text in
        [&secret, &format!("x{}", &secret[15..]), &decimal, &hex, &hex.to_uppercase(), &places::base64(&[b"Bearer ", bytes].concat())]
    {
        assert_eq!(findings(&spoken(text), std::slice::from_ref(&secret)).len(), 1, "{text}");
    }
    for text in [&secret[..15], "", "assure_", &secret[..14]] {
        assert_eq!(findings(&spoken(text), std::slice::from_ref(&secret)).len(), 0, "{text}");
    }
    let request = Request::get("/").bearer(&secret);
    assert!(memmem(&request.head(), bytes));
}
