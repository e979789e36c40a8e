//! Disks that are full, read-only, or give back something else than they were given. A caller is told to come back,
//! nothing is forwarded that cannot be recorded, nothing that was recorded is lost, and nothing is begun on a store or a
//! spool that is not what it was: the operator decides.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::crowd::Crowd;
use crate::support::disk::Disk;
use crate::support::eventually::{eventually, found};
use crate::support::{Gateway, Key, Request, SOON};

/// A start on a busy machine in a debug build.
const START: Duration = Duration::from_secs(30);

fn count(uses: &[Value]) -> usize {
    uses.iter().map(|record| record["count"].as_str().map_or(1, |count| count.parse().expect("a number"))).sum()
}

/// Uses the key until it is refused; each answer is a use that happened or a 503 that blames nobody.
fn use_until_refused(gateway: &Gateway, key: &Key, accepted: &mut usize) -> String {
    found(Duration::from_secs(60), "a refusal on a full disk", || {
        let target = format!("/use/{}/{}", *accepted, "x".repeat(900));
        let answer = gateway.get(key, &target);
        if answer.status == 200 {
            *accepted += 1;
            return None;
        }
        let code = answer.code();
        assert_eq!((answer.status, answer.fields.one("retry-after")), (503, Some("1")), "{code}");
        assert_eq!(gateway.upstream.count(&target), 0, "what is refused was not forwarded");
        Some(code)
    })
}

#[test]
fn a_spool_on_a_full_disk_is_503_before_anything_is_forwarded_while_create_and_revoke_go_on() {
    let Some(disk) = Disk::mount(4) else { return };
    let gateway = Gateway::with(|config| {
        Crowd::configure(config);
        config["audit"]["spool"]["path"] = json!(disk.path().join("spool"));
    });
    let (editor, key) = (gateway.editor(), gateway.key());
    disk.fill();
    let crowd = Crowd::fill(&gateway, &key);
    gateway.get(&key, "/refused").expect_problem(503, "audit_unavailable");
    let second = gateway.create_key(&editor, "made on a full disk");
    gateway.revoke(&editor, &second);
    eventually!(SOON, gateway.log().contains("the audit spool is full"), "the operator can read why");

    // No use has ended: what comes back is the disk's room.
    disk.free();
    eventually!(SOON, gateway.get(&key, "/after").status == 200, "room comes back by itself");
    let (_, answered) = crowd.end();
    assert_eq!(gateway.upstream.targets().len(), answered + 1);
    let allowed = |record: &Value| record["action"] == "key.use" && record["outcome"] == "allowed";
    eventually!(SOON, gateway.activity(&editor).into_iter().filter(allowed).count() == answered + 1, "each use is recorded once");
    assert_eq!(gateway.metric("assure_gateway_audit_dropped_total"), 0.0);
}

#[test]
fn a_store_and_a_spool_on_one_full_disk_are_503_lose_nothing_and_mend_themselves() {
    let Some(disk) = Disk::mount(12) else { return };
    let mut gateway = Gateway::with(|config| {
        config["audit"]["spool"] = json!({ "path": disk.path().join("spool"), "size_max": "4MiB" });
        config["store"]["embedded"]["path"] = json!(disk.path().join("store"));
        config["limits"]["requests_per_minute"] = json!(100_000);
    });
    let (editor, key) = (gateway.editor(), gateway.key());
    let leaked = gateway.create_key(&editor, "leaked");
    gateway.get(&key, "/before").expect(200);
    gateway.get(&leaked, "/before").expect(200);
    disk.fill();
    let mut accepted = 2;
    let code = use_until_refused(&gateway, &key, &mut accepted);
    assert!(["audit_unavailable", "store_unavailable"].contains(&code.as_str()), "{code}");
    // Whether there is room for one more change is the disk's affair; that its answer is the truth is ours.
    let created = gateway.try_create(&editor, &json!({ "name": "made on a full disk" }));
    let revoked = gateway.ask_admin(&Request::json("POST", &format!("/v1/keys/{}/revoke", leaked.id), &json!({})).bearer(&editor));
    assert!([201, 503].contains(&created.status), "{}", created.text());
    assert!([200, 503].contains(&revoked.status), "{}", revoked.text());
    let late = gateway.get(&leaked, "/late");
    assert!([401, 503].contains(&late.status) || revoked.status == 503, "{}: what was revoked is not accepted", late.status);
    accepted += usize::from(late.status == 200);
    gateway.ops_get("/metrics").expect(200);
    assert!(gateway.is_running());
    disk.free();
    eventually!(SOON, gateway.get(&key, "/after").status == 200, "uses go on by themselves");
    accepted += 1;
    if revoked.status == 503 {
        eventually!(
            SOON,
            gateway.ask_admin(&Request::json("POST", &format!("/v1/keys/{}/revoke", leaked.id), &json!({})).bearer(&editor)).status == 200,
            "a revocation that is tried again holds"
        );
    }
    gateway.get(&leaked, "/revoked").expect_problem(401, "invalid_key");
    let names: Vec<String> = {
        let keys = gateway.admin_get(&editor, "/v1/keys").expect(200).json();
        keys["keys"].as_array().expect("keys").iter().map(|key| key["name"].as_str().expect("a name").to_owned()).collect()
    };
    if created.status == 201 {
        assert!(names.contains(&"made on a full disk".to_owned()), "what was answered is there: {names:?}");
    }
    assert_eq!(gateway.upstream.targets().len(), accepted);
    gateway.restart();
    gateway.get(&leaked, "/revoked").expect_problem(401, "invalid_key");
    let allowed = |record: &&Value| record["action"] == "key.use" && record["outcome"] == "allowed";
    eventually!(
        SOON,
        count(&gateway.activity(&editor).iter().filter(allowed).cloned().collect::<Vec<_>>()) == accepted,
        "each use is recorded once"
    );
    assert_eq!(gateway.metric("assure_gateway_audit_dropped_total"), 0.0);
}

#[test]
fn a_read_only_disk_ends_the_start_with_the_path_in_the_reason() {
    let Some(disk) = Disk::mount(1) else { return };
    disk.make_read_only();
    let (store, spool) = (disk.path().join("store"), disk.path().join("spool"));
    for (path, change) in [
        (&store, json!({ "store": { "embedded": { "path": store } } })),
        (&spool, json!({ "audit": { "spool": { "path": spool, "size_max": "4MiB" } } })),
    ] {
        let (code, said) = Gateway::refused(|config| {
            change.as_object().expect("an object").iter().for_each(|(name, value)| config[name] = value.clone());
        });
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("Read-only file system") && said.contains(&path.display().to_string()), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn a_store_that_is_gone_is_begun_anew_only_when_the_operator_says_so() {
    let Left { mut gateway, editor, key, .. } = left();
    fs::remove_file(gateway.folder().join("store/store.redb")).expect("our file");
    for _ in 0..2 {
        let said = start_again(&mut gateway).expect_err("a store without keys would call every key wrong");
        assert!(said.contains("store/store.redb is gone or empty") && said.contains("remove") && said.contains("store/made"), "{said}");
        assert!(!gateway.folder().join("store/store.redb").exists(), "nothing is made in its place");
    }
    fs::remove_file(gateway.folder().join("store/made")).expect("it says that there was a store");
    gateway.restart();
    gateway.get(&key, "/again").expect_problem(401, "invalid_key");
    let fresh = gateway.create_key(&editor, "fresh");
    gateway.restart();
    gateway.get(&fresh, "/again").expect(200);
}

/// A gateway that was used and ended in order, and what it left.
struct Left {
    gateway: Gateway,
    editor: String,
    key: Key,
    revoked: Key,
}

fn left() -> Left {
    let mut gateway = Gateway::start();
    let editor = gateway.editor();
    let (key, revoked) = (gateway.create_key(&editor, "kept"), gateway.create_key(&editor, "revoked"));
    for turn in 0..20 {
        gateway.get(&key, &format!("/use/{turn}")).expect(200);
    }
    gateway.revoke(&editor, &revoked);
    gateway.uses(&editor, 20);
    gateway.terminate();
    gateway.wait_exit(SOON);
    Left { gateway, editor, key, revoked }
}

/// The files below a folder of the gateway's whose names end so.
fn files(gateway: &Gateway, folder: &str, ending: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(gateway.folder().join(folder)).expect("our folder").flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = all.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    found.sort();
    assert!(!found.is_empty(), "{folder} has no file that ends with {ending}");
    found
}

/// Starts it again on what is there; what it says if it does not start.
fn start_again(gateway: &mut Gateway) -> Result<(), String> {
    gateway.spawn_again();
    found(START, "a start or a refusal", || {
        if !gateway.is_running() {
            let status = gateway.wait_exit(SOON);
            eventually!(SOON, gateway.log().contains("did not start"), "it says why");
            let log = gateway.log();
            assert_eq!(status.code(), Some(1), "{log}");
            return Some(Err(log.lines().filter(|line| line.contains("did not start")).collect()));
        }
        (gateway.has_come_up() && gateway.is_ready()).then_some(Ok(()))
    })
}

/// What is done to a file or to what it holds, and in words.
type FileDamage = (&'static str, Box<dyn Fn(&Path)>);
type BytesDamage = (&'static str, Box<dyn Fn(&mut Vec<u8>)>);

#[test]
fn a_store_file_that_is_damaged_is_named_and_never_makes_a_key_wrong() {
    let cut = |parts: u64| {
        move |path: &Path| {
            let file = fs::File::options().write(true).open(path).expect("our file");
            let length = file.metadata().expect("our file").len();
            file.set_len(length * parts / 4).expect("our file");
        }
    };
    let write = |bytes: Vec<u8>| move |path: &Path| fs::write(path, &bytes).expect("our file");
    let flip = |at: usize| {
        move |path: &Path| {
            let mut bytes = fs::read(path).expect("our file");
            (at..at + 64).for_each(|place| bytes[place] ^= 0x55);
            fs::write(path, bytes).expect("our file");
        }
    };
    let damages: Vec<FileDamage> = vec![
        ("emptied", Box::new(cut(0))),
        ("cut to a quarter", Box::new(cut(1))),
        ("cut to three quarters", Box::new(cut(3))),
        ("garbage", Box::new(write(vec![b'x'; 65_536]))),
        ("another program's", Box::new(write(b"SQLite format 3\0".repeat(4_096)))),
        ("a damaged first page", Box::new(flip(0))),
        ("a damaged header", Box::new(flip(64))),
        ("gone", Box::new(|path: &Path| fs::remove_file(path).expect("our file"))),
    ];
    for (what, damage) in damages {
        let Left { mut gateway, editor, key, revoked } = left();
        let file = files(&gateway, "store", "store.redb").remove(0);
        damage(&file);
        match start_again(&mut gateway) {
            Err(said) => assert!(said.contains("store"), "{what}: {said}"),
            Ok(()) => {
                // It may have been mended from what it holds twice; then nothing is different. Or it is refused, to all.
                let (good, bad) = (gateway.get(&key, "/again"), gateway.get(&revoked, "/again"));
                if good.status == 200 {
                    bad.expect_problem(401, "invalid_key");
                    assert_eq!(gateway.activity(&editor).iter().filter(|record| record["action"] == "key.create").count(), 2, "{what}");
                } else {
                    assert_eq!((good.status, good.code().as_str()), (503, "store_unavailable"), "{what}");
                    assert_ne!(bad.status, 200, "{what}");
                }
            }
        }
        assert!(!gateway.log().contains("panicked"), "{what}: {}", gateway.log());
    }
}

#[test]
fn a_spool_that_is_damaged_is_named_or_read_as_far_as_it_goes_and_nothing_is_recorded_twice() {
    let damages: Vec<BytesDamage> = vec![
        ("emptied", Box::new(|bytes| bytes.clear())),
        ("cut in the middle of an entry", Box::new(|bytes| bytes.truncate(bytes.len() / 2 + 3))),
        ("garbage behind its end", Box::new(|bytes| bytes.extend(b"\x13garbage".repeat(1_000)))),
        ("garbage alone", Box::new(|bytes| bytes.fill(b'x'))),
        ("a bit that changed", Box::new(|bytes| bytes[200] ^= 1)),
        (
            "zeros from the middle on",
            Box::new(|bytes| {
                let middle = bytes.len() / 2;
                bytes[middle..].fill(0);
            }),
        ),
    ];
    for (what, damage) in damages {
        let Left { mut gateway, editor, key, .. } = left();
        let last =
            files(&gateway, "spool", "").into_iter().rfind(|path| path.is_file() && fs::metadata(path).expect("our file").len() > 1_000);
        let last = last.expect("a segment");
        let mut bytes = fs::read(&last).expect("our file");
        damage(&mut bytes);
        fs::write(&last, bytes).expect("our file");
        match start_again(&mut gateway) {
            Err(said) => assert!(said.contains(&last.display().to_string()) || said.contains("spool"), "{what}: {said}"),
            Ok(()) => {
                gateway.get(&key, "/again").expect(200);
                let ids = || -> Vec<String> {
                    let uses = gateway.activity(&editor).into_iter().filter(|record| record["action"] == "key.use");
                    uses.map(|record| record["request_id"].as_str().expect("an id").to_owned()).collect()
                };
                eventually!(SOON, ids().len() >= 21, "{what}: what was shipped is still there, and the new use too");
                let mut unique = ids();
                unique.sort();
                unique.dedup();
                assert_eq!((unique.len(), ids().len()), (21, 21), "{what}: each once");
            }
        }
        assert!(!gateway.log().contains("panicked"), "{what}: {}", gateway.log());
    }
}
