//! A real Chromium, driven as a person would: by chromedriver, over WebDriver (W3C), with nothing between it and the page.
//!
//! Mouse: [`Browser::click`]. Keyboard alone: [`Browser::tab_to`] goes on with Tab until the element with an accessible name
//! has the focus, as a screen reader would say it, and [`Browser::press`] acts. Each browser has a profile of its own, and
//! asks nothing but the gateway. Pictures go to `target/screenshots`, or to where `ASSURE_TEST_SCREENSHOTS` says.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::eventually::found;
use super::wire::READ_TIMEOUT;
use super::{Client, Gateway, Request};

/// How long a page may take to show what is awaited, on a busy machine.
pub(crate) const SHOWN: Duration = Duration::from_secs(20);
/// Presses of Tab after which an element is called unreachable.
const TABS_MAX: usize = 80;
/// The member that names an element in WebDriver (section 12.2).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

pub(crate) const TAB: char = '\u{e004}';
pub(crate) const ENTER: char = '\u{e007}';
pub(crate) const ESCAPE: char = '\u{e00c}';

/// How a person's device shows pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) scheme: &'static str,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

pub(crate) const DESK: Look = Look { scheme: "light", width: 1280, height: 860 };
pub(crate) const DESK_AT_NIGHT: Look = Look { scheme: "dark", ..DESK };
pub(crate) const PHONE: Look = Look { scheme: "light", width: 390, height: 844 };
pub(crate) const PHONE_AT_NIGHT: Look = Look { scheme: "dark", ..PHONE };

/// A running browser; it ends with the value.
pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    url: String,
    _profile: TempDir,
}

impl Browser {
    /// Opens a browser whose relative addresses are on this gateway's admin listener.
    #[track_caller]
    pub(crate) fn open(gateway: &Gateway, look: Look) -> Self {
        Self::start(gateway.admin_url(), &[], look)
    }

    /// Opens a browser at that host, over TLS. It takes the host for this machine, and believes a certificate only by the
    /// pin of its key: SHA-256 of its public key (RFC 7469 section 2.4), in base64.
    #[track_caller]
    pub(crate) fn open_tls(gateway: &Gateway, host: &str, pin: &str, look: Look) -> Self {
        let flags = [format!("--ignore-certificate-errors-spki-list={pin}"), format!("--host-resolver-rules=MAP {host} 127.0.0.1")];
        Self::start(format!("https://{host}:{}", gateway.admin().port()), &flags, look)
    }

    #[track_caller]
    fn start(url: String, more: &[String], look: Look) -> Self {
        let profile = tempfile::tempdir().expect("a temporary folder");
        let (driver, address) = found(SHOWN, "chromedriver, which tests/run installs", start_driver);
        let flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-default-apps",
            "--no-proxy-server",
            "--hide-scrollbars",
            "--force-color-profile=srgb",
        ];
        let mut flags: Vec<String> = flags.map(str::to_owned).to_vec();
        flags.push(format!("--user-data-dir={}", profile.path().display()));
        flags.extend_from_slice(more);
        // Larger than any look, so that what is shown is never cut by the window.
        flags.push("--window-size=1600,1400".to_owned());
        let mut browser = Self { driver, address, session: String::new(), url, _profile: profile };
        let wanted = json!({ "browserName": "chrome", "unhandledPromptBehavior": "accept", "goog:chromeOptions": { "args": flags } });
        let made = browser.ask("POST", "/session", &json!({ "capabilities": { "alwaysMatch": wanted } }));
        browser.session = made["sessionId"].as_str().expect("a session").to_owned();
        browser.resize(look.width, look.height, 1.0);
        browser.prefer(&[("prefers-color-scheme", look.scheme)]);
        browser
    }

    /// The same, signed in to the page with a user's token.
    #[track_caller]
    pub(crate) fn signed_in(gateway: &Gateway, token: &str, look: Look) -> Self {
        let browser = Self::open(gateway, look);
        browser.sign_in(token);
        browser
    }

    /// Signs in as a program would, and opens the page.
    #[track_caller]
    pub(crate) fn sign_in(&self, token: &str) {
        self.goto("/");
        self.wait_for("#signed-out");
        let status = self.promised(
            "return fetch('/v1/session', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ token: arguments[0] }) }).then((answer) => answer.status)",
            &json!([token]),
        );
        assert_eq!(status, 200, "signed in");
        self.goto("/");
    }

    /// Sets the size of the page in CSS pixels, as a window or a zoom would.
    pub(crate) fn resize(&self, width: u32, height: u32, scale: f64) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": false });
        self.command("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Sets what media queries find.
    pub(crate) fn prefer(&self, features: &[(&str, &str)]) {
        let features: Vec<Value> = features.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        self.command("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// A command of the browser's own protocol.
    pub(crate) fn command(&self, name: &str, parameters: &Value) -> Value {
        self.call("POST", "/goog/cdp/execute", &json!({ "cmd": name, "params": parameters }))
    }

    #[track_caller]
    pub(crate) fn goto(&self, path: &str) {
        self.call("POST", "/url", &json!({ "url": format!("{}{path}", self.url) }));
    }

    /// The cookies that it would send from here, as WebDriver tells them (section 14).
    #[track_caller]
    pub(crate) fn cookies(&self) -> Vec<Value> {
        self.call("GET", "/cookie", &Value::Null).as_array().cloned().expect("a list")
    }

    /// Goes to another site.
    pub(crate) fn leave_for(&self, url: &str) {
        self.call("POST", "/url", &json!({ "url": url }));
    }

    /// Looks into a frame of the page from now on.
    #[track_caller]
    pub(crate) fn enter_frame(&self, selector: &str) {
        let frame = self.call("POST", "/element", &json!({ "using": "css selector", "value": selector }));
        self.call("POST", "/frame", &json!({ "id": frame }));
    }

    pub(crate) fn reload(&self) {
        self.call("POST", "/refresh", &json!({}));
    }

    /// Runs a script's text as a function's body.
    #[track_caller]
    pub(crate) fn run(&self, script: &str) -> Value {
        self.call("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// The same for one that answers with a promise.
    #[track_caller]
    pub(crate) fn promised(&self, script: &str, arguments: &Value) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1]; (function () {{ {script} }}).apply(null, arguments).then(done, (error) => done(String(error)))"
        );
        self.call("POST", "/execute/async", &json!({ "script": script, "args": arguments }))
    }

    /// Whether an element of this selector is shown.
    pub(crate) fn shows(&self, selector: &str) -> bool {
        let script = format!("const found = document.querySelector({}); return Boolean(found && found.checkVisibility())", json!(selector));
        self.run(&script) == true
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, selector: &str) {
        found(SHOWN, &format!("{selector} on the page"), || self.shows(selector).then_some(()));
    }

    /// What is written in an element, as it is shown.
    #[track_caller]
    pub(crate) fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({})?.innerText ?? null", json!(selector));
        self.run(&script).as_str().unwrap_or_else(|| panic!("{selector} is on the page")).to_owned()
    }

    /// Waits until an element has this text somewhere, and answers all of its text.
    #[track_caller]
    pub(crate) fn wait_text(&self, selector: &str, part: &str) -> String {
        let script = format!("return document.querySelector({})?.innerText ?? ''", json!(selector));
        found(SHOWN, &format!("“{part}” in {selector}"), || {
            self.run(&script).as_str().filter(|text| text.contains(part)).map(str::to_owned)
        })
    }

    /// Clicks with the mouse on what a selector finds, once it is there.
    #[track_caller]
    pub(crate) fn click(&self, selector: &str) {
        self.click_found("css selector", selector);
    }

    /// Clicks on the button or link with this accessible text.
    #[track_caller]
    pub(crate) fn click_named(&self, name: &str) {
        let open = "ancestor::dialog[not(@open)]";
        let path = format!("//*[self::button or self::a or self::summary][normalize-space(.)={}][not({open})]", quoted(name));
        self.click_found("xpath", &path);
    }

    /// Clicks with the mouse on a place in the window.
    pub(crate) fn click_at(&self, x: u64, y: u64) {
        let moves = json!([{ "type": "pointerMove", "x": x, "y": y }, { "type": "pointerDown", "button": 0 }, { "type": "pointerUp", "button": 0 }]);
        self.call("POST", "/actions", &json!({ "actions": [{ "type": "pointer", "id": "mouse", "actions": moves }] }));
    }

    #[track_caller]
    fn click_found(&self, way: &str, wanted: &str) {
        found(SHOWN, &format!("{wanted} to click"), || {
            let element = self.try_call("POST", "/element", &json!({ "using": way, "value": wanted })).ok()?;
            self.try_call("POST", &format!("/element/{}/click", element[ELEMENT].as_str()?), &json!({})).ok()
        });
    }

    /// Types into what has the focus.
    pub(crate) fn write(&self, text: &str) {
        let strokes: Vec<Value> = text
            .chars()
            .flat_map(|stroke| [json!({ "type": "keyDown", "value": stroke }), json!({ "type": "keyUp", "value": stroke })])
            .collect();
        self.call("POST", "/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] }));
    }

    pub(crate) fn press(&self, key: char) {
        self.write(&key.to_string());
    }

    /// Clicks on a field and types.
    #[track_caller]
    pub(crate) fn fill(&self, selector: &str, text: &str) {
        self.click(selector);
        self.write(text);
    }

    /// Chooses an option by its text.
    #[track_caller]
    pub(crate) fn choose(&self, selector: &str, option: &str) {
        self.click_found("xpath", &format!("//select[@id={}]/option[normalize-space(.)={}]", quoted(selector), quoted(option)));
    }

    /// The accessible name of what has the focus.
    pub(crate) fn focused(&self) -> String {
        let Ok(element) = self.try_call("GET", "/element/active", &Value::Null) else { return String::new() };
        let id = element[ELEMENT].as_str().expect("an element").to_owned();
        self.try_call("GET", &format!("/element/{id}/computedlabel"), &Value::Null)
            .ok()
            .and_then(|name| name.as_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// Presses Tab until the element of this accessible name has the focus.
    #[track_caller]
    pub(crate) fn tab_to(&self, name: &str) {
        let mut passed = Vec::new();
        for _ in 0..TABS_MAX {
            let focused = self.focused();
            if focused == name {
                return;
            }
            passed.push(focused);
            self.press(TAB);
        }
        panic!("“{name}” is not reached by Tab; these are: {passed:?}");
    }

    /// Waits until the element of this accessible name has the focus by itself.
    #[track_caller]
    pub(crate) fn wait_focus(&self, name: &str) {
        found(SHOWN, &format!("the focus on “{name}”"), || (self.focused() == name).then_some(()));
    }

    /// Everything that a later script could find on the page: the markup, all fields, the address, the history, storage.
    pub(crate) fn everything(&self) -> String {
        let script = "return [document.documentElement.outerHTML, ...[...document.querySelectorAll('input, textarea')].map((field) => field.value), \
                      location.href, JSON.stringify(history.state), JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.cookie, \
                      window.name, ...Object.keys(window).map(String)].join('\\n')";
        self.run(script).as_str().expect("a text").to_owned()
    }

    /// Keeps a picture of the whole page.
    pub(crate) fn picture(&self, name: &str) {
        let folder = std::env::var_os("ASSURE_TEST_SCREENSHOTS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots"), PathBuf::from);
        fs::create_dir_all(&folder).expect("a folder for pictures");
        // What moves is shown where it comes to rest.
        self.run("document.getAnimations().forEach((animation) => animation.finish())");
        let shot = self.call("GET", "/screenshot", &Value::Null);
        let bytes = STANDARD.decode(shot.as_str().expect("base64")).expect("base64");
        fs::write(folder.join(format!("{name}.png")), bytes).expect("the folder takes files");
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body).unwrap_or_else(|error| panic!("{method} {path} {body}: {error}"))
    }

    fn try_call(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let answer = self.try_ask(method, &format!("/session/{}{path}", self.session), body)?;
        if answer["error"].is_string() { Err(answer["message"].as_str().unwrap_or_default().to_owned()) } else { Ok(answer) }
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.try_ask(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        assert!(!answer["error"].is_string(), "{answer}");
        answer
    }

    fn try_ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let mut client = Client::try_connect(self.address).map_err(|error| error.to_string())?;
        client.wait_at_most(3 * READ_TIMEOUT);
        let request = if method == "POST" { Request::json(method, path, body) } else { Request::new(method, path) };
        let answer = client.exchange(&Request { host: self.address.to_string(), ..request }).map_err(|broken| format!("{broken:?}"))?;
        let mut answer: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
        Ok(answer["value"].take())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.session.is_empty() {
            self.picture(&format!("failed-{}", std::thread::current().name().unwrap_or("test").replace("::", "-")));
        }
        // Ends the browser; a driver that is killed would leave it behind.
        self.try_ask("DELETE", &format!("/session/{}", self.session), &Value::Null).ok();
        self.driver.kill().ok();
        self.driver.wait().ok();
    }
}

/// A driver and its address; none where another process took the port that it had found free.
fn start_driver() -> Option<(Child, SocketAddr)> {
    let mut command = Command::new("chromedriver");
    let mut driver = command.args(["--port=0", "--log-level=SEVERE"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let mut lines = BufReader::new(driver.stdout.take()?).lines();
    let port = lines.find_map(|line| line.ok()?.split_once("successfully on port ")?.1.trim_end_matches('.').parse::<u16>().ok());
    if port.is_none() {
        driver.wait().ok();
    }
    Some((driver, SocketAddr::from(([127, 0, 0, 1], port?))))
}

/// A text within XPath, which has no escapes.
fn quoted(text: &str) -> String {
    if text.contains('\'') { format!("\"{text}\"") } else { format!("'{text}'") }
}
