//! The activity log as owners read it: in plain words, filtered, page by page, as it grows, and as a file.
//!
//! The records are made by real uses; the hundred thousand of the last test are brought in as a store that is moved, because
//! no key makes so many in a test's time. What a file holds is asked for by the page's own links, with the page's session.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::browser::{DESK, DESK_AT_NIGHT, ENTER};
use crate::support::eventually::eventually;
use crate::support::{Browser, Client, EDIT, FIRM, Gateway, Key, Request, SOON, USER, VIEW, program};

/// Uses a key so often, on one connection.
fn use_often(gateway: &Gateway, key: &Key, times: usize) {
    let mut client = Client::connect(gateway.edge());
    let request = Request::get("/v1/clients").bearer(&key.secret).with("User-Agent", "claude-mcp/1.2");
    (0..times).for_each(|_| drop(client.exchange(&request).expect("an answer")));
}

#[test]
fn the_log_is_filtered_paged_and_said_in_plain_words() {
    let gateway = Gateway::start();
    let editor = gateway.token(FIRM, USER, &[VIEW, EDIT, "View clients"]);
    let (busy, quiet) = (gateway.create_key(&editor, "Busy"), gateway.create_key(&editor, "Quiet"));
    use_often(&gateway, &busy, 120);
    gateway.get(&quiet, "/v1/session/new").expect(403);
    gateway.get(&quiet, "/v1/firms/other/books").expect(403);
    gateway.revoke(&editor, &quiet);
    gateway.get(&quiet, "/ok").expect(401);
    gateway.uses(&editor, 123);
    let browser = Browser::signed_in(&gateway, &editor, DESK);
    browser.click_named("Activity");
    let page = browser.wait_text("#records", "Stopped everywhere: rotated");
    for words in [
        "Refused: keys may not do this",
        "Refused: another firm’s data",
        "Refused: the key is revoked",
        "GET /v1/firms/other/books",
        "127.0.0.1",
    ] {
        assert!(page.contains(words), "{words} in {page}");
    }
    let rows = || browser.run("return document.querySelectorAll('#records tr').length").as_u64().expect("a number");
    assert_eq!((rows(), browser.text("#page-number")), (50, "Page 1".into()));
    assert!(browser.text("#plot").contains("120 uses"), "{}", browser.text("#plot"));
    browser.picture("activity");
    browser.click_named("Older");
    browser.wait_text("#page-number", "Page 2");
    browser.click_named("Older");
    browser.wait_text("#page-number", "Page 3");
    assert_eq!((rows(), browser.run("return document.getElementById('older').disabled")), (26, true.into()));
    browser.click_named("Newer");
    browser.wait_text("#page-number", "Page 2");
    browser.choose("of-action", "Created");
    eventually!(SOON, rows() == 2);
    browser.choose("of-key", "Quiet (revoked)");
    eventually!(SOON, rows() == 1);
    browser.choose("of-action", "Everything");
    eventually!(SOON, rows() == 5);
    browser.choose("of-time", "The last hour");
    eventually!(SOON, rows() == 5);
    // From the list of keys a link leads to one key's part of the log.
    browser.goto("/#keys");
    browser.click_named("120 uses of “Busy”: show its activity");
    eventually!(SOON, browser.text("#records").contains("Worked (200)") && !browser.text("#records").contains("Quiet"));
    assert!(browser.text("#plot").contains("of “Busy”, last 24 hours: 120 uses, at most"));
}

#[test]
fn the_log_is_followed_as_it_grows_by_keyboard_alone() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let browser = Browser::signed_in(&gateway, &gateway.editor(), DESK_AT_NIGHT);
    browser.wait_text("#key-list", "MCP server");
    browser.tab_to("Activity");
    browser.press(ENTER);
    browser.wait_text("#records", "Created");
    browser.tab_to("Follow live");
    browser.press(ENTER);
    browser.wait_text("#activity-state", "Following");
    gateway.get(&key, "/v1/while-watched").expect(200);
    browser.wait_text("#records", "GET /v1/while-watched");
    browser.wait_text("#activity-state", "new entr");
    browser.picture("activity-live");
    browser.press(ENTER);
    browser.wait_text("#activity-state", "Following has stopped.");
    gateway.get(&key, "/v1/unwatched").expect(200);
    gateway.uses(&gateway.editor(), 2);
    assert!(!browser.text("#records").contains("/v1/unwatched"));
}

#[test]
fn what_is_exported_is_whole_and_no_cell_is_a_formula() {
    let gateway = Gateway::start();
    let editor = gateway.token(FIRM, USER, &[VIEW, EDIT, "View clients"]);
    let key = gateway.create_key(&editor, "=HYPERLINK(\"http://x.test\";\"a\")");
    use_often(&gateway, &key, 130);
    gateway.uses(&editor, 130);
    let browser = Browser::signed_in(&gateway, &editor, DESK);
    browser.click_named("Activity");
    browser.wait_text("#records", "HYPERLINK");
    let file = |id: &str| {
        let script = format!(
            "const link = document.getElementById('{id}'); return fetch(link.href).then(async (answer) => [answer.headers.get('content-type'), answer.headers.get('content-disposition'), await answer.text()].join('\\u0000'))"
        );
        let told = browser.promised(&script, &json!([])).as_str().expect("a file").to_owned();
        let parts: Vec<String> = told.split('\0').map(str::to_owned).collect();
        (parts[0].clone(), parts[1].clone(), parts[2].clone())
    };
    let (kind, disposition, csv) = file("csv");
    assert!(
        kind == "text/csv" && disposition.starts_with("attachment; filename=\"assure-pro-activity-20") && disposition.ends_with(".csv\"")
    );
    assert_eq!(csv.lines().count(), 132, "the head, a creation, every use");
    assert!(csv.lines().skip(1).all(|line| line.contains("\"'=HYPERLINK(\"\"http://x.test\"\";\"\"a\"\")\"")), "{csv}");
    gateway.admin_get(&editor, "/v1/activity?format=xml").expect_problem(400, "malformed_request");
    let (kind, _, lines) = file("ndjson");
    assert!(kind == "application/x-ndjson" && lines.lines().count() == 131);
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|record| record["key_id"] == key.id)));
    let stranger = gateway.token("firm-2", "x", &[VIEW]);
    assert_eq!(
        gateway.admin_get(&stranger, "/v1/activity?format=csv").expect(200).text().lines().count(),
        1,
        "another firm's file holds its head only"
    );
}

/// How many records a firm of some years has.
const MANY: u64 = 100_000;
/// How long a page of them may take to come, on a busy machine in a debug build.
const PAGE_WAIT_MAX: Duration = Duration::from_secs(8);

/// A gateway with as many uses of one key in its log, of some hours ago, brought in as a store that is moved.
fn with_many_records() -> Gateway {
    let mut gateway = Gateway::start();
    let key = gateway.key();
    let store = |gateway: &Gateway, what: &str| {
        let mut command = gateway.command(&["store", what, "--config"]);
        command.arg(gateway.config_file());
        command
    };
    gateway.terminate();
    gateway.wait_exit(SOON);
    let exported = program::output_of(store(&gateway, "export").args(["--output", "-"]));
    let mut lines: Vec<&str> = exported.lines().collect();
    let mut trailer: Value = lines.pop().and_then(|line| serde_json::from_str(line).ok()).expect("a trailer");
    let created = lines.iter().position(|line| line.contains("\"kind\":\"activity\"")).expect("the creation");
    let template: Value = serde_json::from_str(lines[created]).expect("JSON");
    let begun = crate::support::identity::now() - 6 * 3600;
    let arrival: u64 = template["arrival"].as_str().and_then(|text| text.parse().ok()).expect("a number");
    let uses = (1..=MANY).map(|number| {
        let mut line = template.clone();
        line["arrival"] = json!((arrival + number).to_string());
        let moment = jiff::Timestamp::from_second((begun + number / 10) as i64).expect("a moment");
        let record = line["record"].as_object_mut().expect("a record");
        for (name, value) in [
            ("event_id", uuid::Uuid::from_u128(u128::from(number)).to_string()),
            ("time", moment.to_string()),
            ("action", "key.use".into()),
            ("actor", key.id.clone()),
            ("method", "GET".into()),
            ("path", format!("/v1/clients/{number}")),
            ("status", "200".into()),
            ("user_agent", "zapier/1".into()),
        ] {
            record.insert(name.into(), json!(value));
        }
        line.to_string()
    });
    let mut text: String = lines.iter().flat_map(|line| [*line, "\n"]).collect();
    let (before, after) = text.split_at(lines[..=created].iter().map(|line| line.len() + 1).sum());
    text = [before, &uses.flat_map(|line| [line, "\n".to_owned()]).collect::<String>(), after].concat();
    trailer["records"] = json!(trailer["records"].as_u64().expect("a count") + MANY);
    trailer["sha256"] = json!(Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let file = gateway.folder().join("many.jsonl");
    fs::write(&file, format!("{text}{trailer}\n")).expect("our folder");
    gateway.rewrite_config(|config| config["store"]["embedded"]["path"] = json!("many"));
    program::output_of(store(&gateway, "import").arg("--input").arg(&file));
    gateway.restart();
    gateway
}

#[test]
fn a_log_of_a_hundred_thousand_entries_is_read_as_easily_as_a_short_one() {
    let gateway = with_many_records();
    let editor = gateway.editor();
    let browser = Browser::signed_in(&gateway, &editor, DESK);
    browser.wait_text("#key-list", "MCP server");
    let timed = |what: &str, act: &dyn Fn()| {
        let began = Instant::now();
        act();
        assert!(began.elapsed() < PAGE_WAIT_MAX, "{what} took {:?}", began.elapsed());
    };
    timed("the first page", &|| {
        browser.click_named("Activity");
        browser.wait_text("#records", "/v1/clients/100000");
    });
    timed("the second page", &|| {
        browser.click_named("Older");
        browser.wait_text("#records", "/v1/clients/99950");
    });
    timed("a rare action", &|| {
        browser.choose("of-action", "Created");
        browser.wait_text("#records", "Done");
    });
    timed("one key", &|| {
        browser.choose("of-action", "Everything");
        browser.choose("of-key", "MCP server");
        browser.wait_text("#records", "/v1/clients/100000");
    });
    assert!(browser.run("return document.querySelectorAll('*').length").as_u64().is_some_and(|count| count < 1_500), "a page holds a page");
    let csv = gateway.admin_get(&editor, "/v1/activity?format=csv").expect(200).text();
    assert_eq!(csv.lines().count() as u64, MANY + 2, "the head, the creation, every use");
}
