//! Architecture and style, as tests: each failure names the sentence that was broken and the lines that broke it.
//!
//! The sources are read as text. Test code (`#[cfg(test)]` items) and comments are left out where a rule is about what
//! runs; `rustfmt` makes that reliable, because an item ends with a brace in the column where it began.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file: style says to think at 400; beyond this nobody has.
const FILE_LINES_MAX: usize = 600;
/// Up to here a file may say in one line what it is for.
const SHORT_FILE_LINES: usize = 150;

/// A word that may stand only in some places, and the sentence that says so.
struct Confined {
    words: &'static [&'static str],
    places: &'static [&'static str],
    sentence: &'static str,
}

const TABLE: &[Confined] = &[
    Confined {
        words: &["redis::"],
        places: &["store/redis", "store/mod.rs"],
        sentence: "redis only in store/redis, which store/mod.rs names",
    },
    Confined { words: &["deadpool::"], places: &["store/redis"], sentence: "deadpool only in store/redis" },
    Confined { words: &["redb::"], places: &["store/embedded"], sentence: "redb only in store/embedded" },
    Confined { words: &["moka::"], places: &["gateway/resolve"], sentence: "moka only in gateway/resolve" },
    Confined {
        words: &["rustls::", "tokio_rustls::", "rustls_native_certs::"],
        places: &["edge/tls", "dial.rs", "signing/keys.rs"],
        sentence: "rustls only in edge/tls, dial.rs and signing/keys.rs (PEM)",
    },
    Confined { words: &["jsonwebtoken::"], places: &["admin/auth", "demo"], sentence: "jsonwebtoken only in admin/auth and demo" },
    Confined {
        words: &["aws_lc_rs::"],
        places: &["signing", "domain/key.rs", "admin/auth"],
        sentence: "the crypto crate only in signing, domain/key and admin/auth",
    },
    Confined {
        words: &["sha2::"],
        places: &["signing", "domain/key.rs", "admin", "config/reload.rs", "store/moving"],
        sentence: "digests only where a key, a page, a question or a file is known by its content: signing, domain/key, admin, config/reload, store/moving",
    },
    Confined { words: &["axum::", "utoipa::", "utoipa_axum::"], places: &["admin"], sentence: "axum and utoipa only in admin" },
    Confined { words: &["prometheus::"], places: &["metrics.rs", "ops"], sentence: "prometheus only in metrics.rs and ops" },
    Confined {
        words: &["tokio::spawn", "task::spawn", "thread::spawn", "thread::Builder", "TaskTracker", "JoinSet"],
        places: &["tasks.rs"],
        sentence: "spawning only in tasks.rs, which names every task and joins it at drain",
    },
    Confined { words: &["SystemTime", "clock_gettime", "Timestamp::now"], places: &["clock.rs"], sentence: "clocks only in clock.rs" },
    Confined {
        words: &["timeout(", "timeout_at(", "Box<Sleep>"],
        places: &["deadline.rs", "tasks.rs", "app", "audit/ship.rs", "coherence", "store", "gateway/resolve", "gateway/limit"],
        sentence: "who waits for a peer waits by a `Deadline`, which is not past because this process did not run",
    },
    Confined {
        words: &["std::env", "env::var"],
        places: &["config/load", "main.rs", "mutants.rs"],
        sentence: "std::env only in config/load and main, and in mutants, which is never shipped",
    },
    Confined { words: &["serde_yaml::"], places: &["config"], sentence: "YAML only in config" },
    Confined { words: &["clap::"], places: &["cli", "main.rs"], sentence: "clap only in cli and main" },
];

/// Parts of the crate that never see each other; only `app` and the command line see them all.
const STRANGERS: [&str; 3] = ["edge", "gateway", "admin"];

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` whose name ends so, with its path from `folder`, in order.
fn files(folder: &Path, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && !["target", ".git", "data", "node_modules", "__pycache__"].contains(&name.as_str()) {
                waiting.push(path);
            } else if name.ends_with(ending) && path.is_file() {
                // Binary files (pictures, fonts) hold no words.
                let Ok(text) = fs::read_to_string(&path) else { continue };
                let place = path.strip_prefix(folder).expect("it is below the folder").to_string_lossy().into_owned();
                found.push((place, text));
            }
        }
    }
    found.sort();
    found
}

/// The sources of the crate, by their path below `src`.
fn sources() -> Vec<(String, String)> {
    files(&repository().join("src"), ".rs")
}

/// The sources without those that exist only for tests (`#[cfg(test)] mod trials;`).
fn production() -> Vec<(String, String)> {
    let all = sources();
    let mut tests = Vec::new();
    for (place, text) in &all {
        let folder = place.strip_suffix("mod.rs").map_or_else(|| format!("{}/", place.trim_end_matches(".rs")), str::to_owned);
        let folder = if ["lib.rs", "main.rs"].contains(&place.as_str()) { String::new() } else { folder };
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let marked = lines.windows(2).filter(|pair| pair.first() == Some(&"#[cfg(test)]")).filter_map(|pair| pair.last());
        tests.extend(marked.filter_map(|line| line.rsplit_once("mod ")?.1.strip_suffix(';')).map(|name| format!("{folder}{name}")));
    }
    let is_test = |place: &str| tests.iter().any(|test| place == format!("{test}.rs") || place.starts_with(&format!("{test}/")));
    all.into_iter().filter(|(place, _)| !is_test(place)).collect()
}

/// The numbered lines of a source that run in production: no test items, no comments.
fn running_lines(text: &str) -> Vec<(usize, &str)> {
    let written = written_lines(text).into_iter().filter(|(_, line)| !line.trim_start().starts_with("//"));
    written.map(|(number, line)| (number, line.split(" // ").next().unwrap_or(line))).collect()
}

/// The numbered lines of a source without its test items.
fn written_lines(text: &str) -> Vec<(usize, &str)> {
    let mut lines = Vec::new();
    let mut numbered = text.lines().enumerate().map(|(place, line)| (place + 1, line)).peekable();
    while let Some((number, line)) = numbered.next() {
        if line.trim_start() != "#[cfg(test)]" {
            lines.push((number, line));
            continue;
        }
        let item = numbered.by_ref().find(|(_, line)| !line.trim_start().starts_with("#[")).map_or("", |(_, line)| line);
        if item.starts_with("mod tests {") {
            // Tests come last, and may hold texts in which a brace stands in any column.
            break;
        }
        let indent = item.len() - item.trim_start().len();
        let is_whole = item.ends_with([';', '}']);
        if !is_whole {
            let close = format!("{}}}", item.get(..indent).unwrap_or_default());
            numbered.by_ref().find(|(_, line)| line.starts_with(&close));
        }
    }
    lines
}

/// Whether `word` stands in `line` as a path of its own, not as the end of a longer word.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(place, _)| !line[..place].ends_with(|before: char| before.is_alphanumeric() || before == '_'))
}

#[track_caller]
fn assert_none(sentence: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{sentence}:\n{}", broken.join("\n"));
}

#[test]
fn foreign_crates_clocks_and_spawning_stay_where_the_import_table_puts_them() {
    for rule in TABLE {
        let mut broken = Vec::new();
        for (place, text) in production() {
            if rule.places.iter().any(|allowed| place.starts_with(allowed)) {
                continue;
            }
            for (number, line) in running_lines(&text) {
                // A crate's name inside another crate's path is not an import of it.
                let line = line.replace("crypto::aws_lc_rs", "crypto");
                let is_rustls_own = text.lines().any(|line| line.starts_with("use rustls::") && line.contains("aws_lc_rs"));
                if !is_rustls_own && rule.words.iter().any(|word| names(&line, word)) {
                    broken.push(format!("src/{place}:{number}: {}", line.trim()));
                }
            }
        }
        assert_none(rule.sentence, &broken);
    }
}

#[test]
fn only_clock_rs_asks_a_monotonic_clock_but_for_tokios_own_deadlines() {
    let mut broken = Vec::new();
    for (place, text) in production().into_iter().filter(|(place, _)| place != "clock.rs") {
        let uses_tokios = text.lines().any(|line| line.starts_with("use tokio::time::") && line.contains("Instant"));
        for (number, line) in running_lines(&text) {
            if names(line, "Instant::now") && !line.contains("tokio::time::Instant::now") && !uses_tokios {
                broken.push(format!("src/{place}:{number}: {}", line.trim()));
            }
        }
    }
    assert_none("clocks only in clock.rs; tokio's Instant only for deadlines of input and output", &broken);
}

#[test]
fn edge_gateway_and_admin_never_import_each_other() {
    let mut broken = Vec::new();
    for (place, text) in production() {
        let Some(own) = STRANGERS.iter().find(|part| place.starts_with(&format!("{part}/"))) else { continue };
        for (number, line) in running_lines(&text) {
            for other in STRANGERS.iter().filter(|part| *part != own) {
                let is_grouped = line.contains("crate::{") && names(line, &format!("{other}::"));
                if names(line, &format!("crate::{other}")) || is_grouped {
                    broken.push(format!("src/{place}:{number}: {}", line.trim()));
                }
            }
        }
    }
    assert_none("edge, gateway and admin never see each other; only app sees them all", &broken);
}

#[test]
fn the_domain_points_to_nothing_and_does_no_input_or_output() {
    let mut broken = Vec::new();
    for (place, text) in production().into_iter().filter(|(place, _)| place.starts_with("domain/")) {
        for (number, line) in running_lines(&text) {
            let leaves = names(line, "crate::") && !names(line, "crate::domain");
            let acts = ["tokio::", "hyper::", "http::", "std::fs", "std::net", "std::io", "async fn", "std::thread"]
                .iter()
                .any(|word| names(line, word));
            if leaves || acts {
                broken.push(format!("src/{place}:{number}: {}", line.trim()));
            }
        }
    }
    assert_none("domain is pure: arrows point to it and none out; no input, no output, no async", &broken);
}

#[test]
fn each_rejection_is_constructed_in_exactly_one_place() {
    let (_, table) = sources().into_iter().find(|(place, _)| place == "domain/rejection.rs").expect("domain/rejection.rs");
    let variants = variants_of(&table);
    assert!(variants.len() > 20, "the variants were found: {variants:?}");
    let mut places: BTreeMap<&str, Vec<String>> = variants.iter().map(|variant| (variant.as_str(), Vec::new())).collect();
    for (place, text) in production() {
        for (number, line) in running_lines(&text) {
            for (at, found) in line.match_indices("Rejection::") {
                let name: String = line[at + found.len()..].chars().take_while(char::is_ascii_alphanumeric).collect();
                if let Some(list) = places.get_mut(name.as_str()).filter(|_| !is_pattern(line, at)) {
                    list.push(format!("src/{place}:{number}"));
                }
            }
        }
    }
    let broken: Vec<String> =
        places.iter().filter(|(_, list)| list.len() != 1).map(|(variant, list)| format!("{variant}: {list:?}")).collect();
    assert_none("each Rejection variant is constructed in exactly one place, the step that checks", &broken);
}

/// The variants of `pub enum Rejection`, which rustfmt puts four columns in.
fn variants_of(text: &str) -> Vec<String> {
    let lines = text.lines().skip_while(|line| !line.starts_with("pub enum Rejection")).skip(1).take_while(|line| *line != "}");
    let starts = lines.filter(|line| line.starts_with("    ") && line[4..].starts_with(|first: char| first.is_ascii_uppercase()));
    starts.map(|line| line.trim().chars().take_while(char::is_ascii_alphanumeric).collect()).collect()
}

/// Whether what stands at `place` is matched against rather than made.
fn is_pattern(line: &str, place: usize) -> bool {
    let (before, after) = line.split_at(place);
    after.contains("=>") || ["matches!(", "if let ", "while let ", "let Err(", "assert"].iter().any(|word| before.contains(word))
}

#[test]
fn every_source_says_at_its_top_what_it_is_for() {
    let mut broken = Vec::new();
    let tests = files(&repository().join("tests"), ".rs").into_iter().map(|(place, text)| (format!("tests/{place}"), text));
    for (place, text) in sources().into_iter().map(|(place, text)| (format!("src/{place}"), text)).chain(tests) {
        let header = prose_lines(&text);
        // What is told in one sentence, as a small file's purpose may be, is not stretched.
        let least = if text.lines().count() > SHORT_FILE_LINES { 3 } else { 1 };
        if !(least..=15).contains(&header) {
            broken.push(format!("{place}: {header} lines"));
        }
    }
    assert_none(
        "a //! header of 3 to 15 lines opens each file (a short file may do with 1): purpose, promises, what it leaves to others",
        &broken,
    );
}

/// Lines of the header, drawings not counted.
fn prose_lines(text: &str) -> usize {
    let mut is_drawing = false;
    let header = text.lines().take_while(|line| line.starts_with("//!"));
    header
        .filter(|line| {
            let is_fence = line.starts_with("//! ```");
            is_drawing ^= is_fence;
            !is_fence && !is_drawing
        })
        .count()
}

#[test]
fn no_source_is_longer_than_a_reader_bears() {
    let mut broken = Vec::new();
    for (place, text) in production() {
        let lines = written_lines(&text).len();
        if lines > FILE_LINES_MAX {
            broken.push(format!("src/{place}: {lines} lines without its tests"));
        }
    }
    for (place, text) in files(&repository().join("tests"), ".rs") {
        if text.lines().count() > FILE_LINES_MAX {
            broken.push(format!("tests/{place}: {} lines", text.lines().count()));
        }
    }
    assert_none("files aim at 150 lines and never pass 600", &broken);
}

#[test]
fn nothing_that_can_panic_by_habit_runs_in_production() {
    let mut broken = Vec::new();
    let words = [".unwrap()", "todo!(", "unimplemented!(", "dbg!(", "println!(\"debug"];
    for (place, text) in production() {
        for (number, line) in running_lines(&text) {
            if words.iter().any(|word| line.contains(word)) {
                broken.push(format!("src/{place}:{number}: {}", line.trim()));
            }
        }
    }
    assert_none("no unwrap and no placeholder outside tests; expect() states its invariant", &broken);
}

#[test]
fn nothing_is_left_for_later_and_nothing_names_the_machine_it_was_written_on() {
    // In pieces, so that this file does not find itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/tm", "p/w"),
        concat!("\"resol", "ved\":"),
        concat!("--index", "-url"),
        concat!("registry", "="),
    ];
    let mut broken = Vec::new();
    for (place, text) in files(&repository(), "") {
        for (number, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                broken.push(format!("{place}:{}: {}", number + 1, line.trim().chars().take(120).collect::<String>()));
            }
        }
    }
    assert_none("dead notes, paths of a machine and hosts of a registry have no place in the repository", &broken);
}

#[test]
fn tests_wait_for_conditions_and_never_just_sleep() {
    let mut broken = Vec::new();
    for (place, text) in files(&repository().join("tests/gateway"), ".rs").into_iter().filter(|(place, _)| place != "support/eventually.rs")
    {
        broken.extend(
            text.lines()
                .enumerate()
                .filter(|(_, line)| line.contains("sleep("))
                .map(|(number, _)| format!("tests/gateway/{place}:{}", number + 1)),
        );
    }
    assert_none("never sleep in a test to wait for something; use eventually!", &broken);
}

#[test]
fn every_test_file_is_part_of_the_one_integration_binary() {
    let folder = repository().join("tests/gateway");
    let main = fs::read_to_string(folder.join("main.rs")).expect("main.rs");
    let broken: Vec<String> = files(&folder, ".rs")
        .into_iter()
        .filter_map(|(place, _)| place.strip_suffix(".rs").map(str::to_owned))
        .filter(|name| !name.contains('/') && name != "main" && !main.contains(&format!("mod {name};")))
        .collect();
    assert_none("a test file that main.rs does not name is never run", &broken);
}

#[test]
fn the_fuzz_workspaces_lock_knows_every_dependency() {
    let read = |name: &str| fs::read_to_string(repository().join(name)).expect("it is there");
    let (manifest, lock) = (read("Cargo.toml"), read("tests/fuzz/Cargo.lock"));
    let section = manifest.split("\n[").find_map(|section| section.strip_prefix("dependencies]")).expect("there are dependencies");
    let locked = lock.split("[[package]]").find(|package| package.contains("name = \"assure-gateway\"")).expect("it is locked");
    let lines = section.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
    // A renamed crate is locked by its own name.
    let crates = lines.map(|(name, value)| value.split("package = \"").nth(1).and_then(|own| own.split('"').next()).unwrap_or(name));
    let missing = crates.filter(|name| !locked.contains(&format!("\"{name}\"")) && !locked.contains(&format!("\"{name} ")));
    assert_none(
        "tests/fuzz/Cargo.lock is held to (cargo metadata there brings it up to date)",
        &missing.map(str::to_owned).collect::<Vec<_>>(),
    );
}

#[test]
fn examples_in_the_readme_stand_in_the_files_that_tests_run() {
    let readme = fs::read_to_string(repository().join("README.md")).expect("the README");
    let mut examples = readme.split("<!-- from ").skip(1);
    let mut count = 0;
    let broken: Vec<String> = examples
        .by_ref()
        .filter_map(|rest| {
            let (file, rest) = rest.split_once(" -->").expect("a comment ends");
            let example = rest.split("```").nth(1).and_then(|block| block.split_once('\n')).expect("a block follows").1;
            let text = fs::read_to_string(repository().join(file)).unwrap_or_default();
            let squeezed = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join("\n");
            count += 1;
            (!squeezed(&text).contains(squeezed(example).trim())).then(|| format!("the example from {file} is not in it"))
        })
        .collect();
    assert_none("an example in the README is a piece of a file that tests run", &broken);
    assert_eq!(count, 3, "Python, Node and Rust");
}

#[test]
fn every_promise_of_the_readme_names_tests_that_exist() {
    let readme = fs::read_to_string(repository().join("README.md")).expect("README.md");
    let rows: Vec<&str> = readme.lines().filter(|line| line.starts_with("| K")).collect();
    let mut broken = Vec::new();
    for promise in (1..=19).map(|number| format!("| K{number} |")) {
        match rows.iter().find(|row| row.starts_with(&promise)) {
            None => broken.push(format!("{promise} has no row")),
            Some(row) if tests_named(row).is_empty() && !row.contains("not kept yet") => broken.push(format!("{promise} names no test")),
            Some(_) => {}
        }
    }
    let security = fs::read_to_string(repository().join("SECURITY.md")).expect("SECURITY.md");
    for (module, test) in readme.lines().chain(security.lines()).flat_map(tests_named) {
        let path = module.replace("::", "/");
        let files = [format!("tests/gateway/{path}.rs"), format!("tests/gateway/{path}/mod.rs")];
        let has_it = |file: &String| fs::read_to_string(repository().join(file)).is_ok_and(|text| text.contains(&format!("fn {test}()")));
        if !files.iter().any(has_it) {
            broken.push(format!("`{module}::{test}` does not exist"));
        }
    }
    assert_none("each promise in the README, and each row of SECURITY.md, names the test that shows it", &broken);
}

/// The `module::test` names between backticks.
fn tests_named(row: &str) -> Vec<(String, String)> {
    let quoted = row.split('`').skip(1).step_by(2);
    quoted.filter_map(|name| name.rsplit_once("::")).map(|(module, test)| (module.to_owned(), test.to_owned())).collect()
}

#[test]
fn the_reader_of_sources_leaves_out_tests_and_comments() {
    let text = "//! x\nfn a() {} // y\n#[cfg(test)]\nimpl B {\n    fn c() {}\n}\nfn d() {}\n#[cfg(test)]\nmod e;\nfn f() {}\n";
    let kept: Vec<&str> = running_lines(text).into_iter().map(|(_, line)| line).collect();
    assert_eq!(kept, ["fn a() {}", "fn d() {}", "fn f() {}"]);
    assert!(names("use moka::x;", "moka::") && !names("use remoka::x;", "moka::"));
    assert!(is_pattern("Rejection::A => 1,", 0) && !is_pattern("None => Rejection::A,", 8));
    assert_eq!(variants_of("pub enum Rejection {\n    /// A.\n    A,\n    B {\n        c: u8,\n    },\n    D(u8),\n}\n"), ["A", "B", "D"]);
    assert_eq!(tests_named("| K1 | x | `a::b`, `c` |"), [("a".to_owned(), "b".to_owned())]);
}
