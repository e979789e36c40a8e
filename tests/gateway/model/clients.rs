//! Those who use the system: tools that send requests, admins who create and revoke.
//!
//! Each stamps the clock before the first byte leaves and after the last has come, and writes down everything, answered
//! or not. A client that goes on waiting for a frozen gateway is one of the things that happen.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;

use super::journal::{Answered, Attempt, Creation, Revocation, path_of};
use super::schedule::{Dice, REPLICAS};
use super::world::{OwnKey, Place, World};
use crate::support::{Client, Request};

pub(super) const FIRMS: [&str; 2] = ["firm-1", "firm-2"];
const CREATORS: usize = 3;
/// Longest wait for an answer: more than any freeze of the schedule.
const PATIENCE: Duration = Duration::from_secs(4);
/// For an admin: a revocation waits for a term, a lost Redis for its time-out.
const ADMIN_PATIENCE: Duration = Duration::from_secs(12);
/// For the requests that follow a revocation: who is frozen answers later, and the upstream tells.
const VOLLEY_PATIENCE: Duration = Duration::from_millis(500);

/// A request that has been sent.
struct Sent {
    attempt: Attempt,
    client: Client,
}

/// A tool with a connection to each replica.
pub(super) struct Tool<'a> {
    world: &'a World,
    connections: HashMap<usize, (u32, Client)>,
}

impl<'a> Tool<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        Self { world, connections: HashMap::new() }
    }

    /// One request; its status, if it was answered.
    pub(super) fn ask(&mut self, key: &OwnKey, replica: usize, is_denied: bool) -> Option<u16> {
        let sent = self.send(key, replica, is_denied)?;
        self.receive(sent, PATIENCE)
    }

    /// Opens the connection, so that the next request leaves at once.
    fn connect(&mut self, replica: usize) -> Option<(Place, Client)> {
        let place = self.world.place(replica)?;
        let known = self.connections.remove(&replica).filter(|(life, _)| *life == place.life);
        let client = match known {
            Some((_, client)) => client,
            None => Client::try_connect(place.edge).ok()?,
        };
        Some((place, client))
    }

    fn send(&mut self, key: &OwnKey, replica: usize, is_denied: bool) -> Option<Sent> {
        let (place, mut client) = self.connect(replica)?;
        let marker = self.world.fresh_marker();
        let request = Request::get(&path_of(marker, is_denied)).bearer(&key.secret).head();
        let sent = self.world.journal.now();
        let attempt = Attempt { marker, key: key.id.clone(), replica, life: place.life, sent, answer: None };
        match client.send(request) {
            Ok(()) => Some(Sent { attempt, client }),
            Err(_) => {
                self.world.journal.story().attempts.push(attempt);
                None
            }
        }
    }

    fn receive(&mut self, sent: Sent, patience: Duration) -> Option<u16> {
        let Sent { mut attempt, mut client } = sent;
        client.wait_at_most(patience);
        if let Some(answer) = client.answer().ok().filter(|answer| answer.complete) {
            let request_id = answer.fields.one("x-request-id").map(str::to_owned);
            attempt.answer = Some(Answered { at: self.world.journal.now(), status: answer.status, request_id });
            if answer.fields.one("connection") != Some("close") {
                self.connections.insert(attempt.replica, (attempt.life, client));
            }
        }
        let status = attempt.answer.as_ref().map(|answer| answer.status);
        self.world.journal.story().attempts.push(attempt);
        status
    }

    /// One request to every replica at the same moment.
    pub(super) fn volley(&mut self, key: &OwnKey) {
        let sent: Vec<Sent> = (0..REPLICAS).filter_map(|replica| self.send(key, replica, false)).collect();
        for sent in sent {
            self.receive(sent, VOLLEY_PATIENCE);
        }
    }

    /// Uses keys until the run is over: steadily, in bursts that reach the window's end, and keys that were revoked.
    pub(super) fn work(&mut self, mut dice: Dice) {
        while self.world.pause(dice.between_ms(5, 90)) {
            let Some(key) = self.choose(&mut dice) else { continue };
            let count = if dice.one_in(25) { 20 + dice.below(50) } else { 1 };
            for _ in 0..count {
                self.ask(&key, dice.below(REPLICAS), dice.one_in(20));
            }
        }
    }

    fn choose(&self, dice: &mut Dice) -> Option<OwnKey> {
        let keys = self.world.keys();
        let (doomed, live): (Vec<&OwnKey>, Vec<&OwnKey>) = keys.iter().partition(|key| key.is_doomed);
        let newest = &doomed[doomed.len().saturating_sub(4)..];
        let from = if dice.one_in(4) { newest } else { &live };
        from.get(dice.below(from.len())).map(|key| (*key).clone())
    }
}

/// Somebody who creates and revokes keys.
pub(super) struct Admin<'a> {
    world: &'a World,
    tool: Tool<'a>,
    /// Somebody else takes part in its crowds.
    number: usize,
}

impl<'a> Admin<'a> {
    pub(super) fn new(world: &'a World, number: usize) -> Self {
        Self { world, tool: Tool::new(world), number }
    }

    /// Creates and revokes until the run is over.
    pub(super) fn work(&mut self, mut dice: Dice) {
        while self.world.pause(dice.between_ms(50, 500)) {
            let replica = dice.below(REPLICAS);
            match dice.below(10) {
                0..4 => drop(self.create(&mut dice, replica)),
                4 => self.create_at_once(&mut dice),
                5 => self.clear_lost(&mut dice, replica),
                _ => drop(self.revoke_one(&mut dice, replica)),
            }
        }
    }

    /// Asks for a key; takes over what is answered 201.
    pub(super) fn create(&self, dice: &mut Dice, replica: usize) -> Option<OwnKey> {
        let (firm, creator) = (FIRMS[dice.below(FIRMS.len())], format!("user-{}", dice.below(CREATORS)));
        create(self.world, replica, firm, &creator)
    }

    /// More creations at the same moment than one creator may have keys.
    fn create_at_once(&self, dice: &mut Dice) {
        let (firm, creator) = (FIRMS[dice.below(FIRMS.len())], format!("user-{}", dice.below(CREATORS)));
        std::thread::scope(|scope| {
            for number in 0..6 {
                let (world, creator) = (self.world, &creator);
                scope.spawn(move || create(world, number % REPLICAS, firm, creator));
            }
        });
    }

    /// Revokes one of the keys; once the answer has come, asks every replica at once whether it knows.
    pub(super) fn revoke_one(&mut self, dice: &mut Dice, replica: usize) -> Option<u16> {
        let key = {
            let mut keys = self.world.keys();
            // Some are revoked twice, by several at once.
            let again = dice.one_in(6);
            let mut candidates: Vec<&mut OwnKey> = keys.iter_mut().filter(|key| again || !key.is_doomed).collect();
            // The newest ones, or in a long run all would be long dead.
            let newest = candidates.len().saturating_sub(12);
            let place = newest + dice.below(candidates.len() - newest);
            let key = candidates.get_mut(place)?;
            key.is_doomed = true;
            (*key).clone()
        };
        let status = self.revoke(&key, replica);
        if status == Some(200) {
            self.tool.volley(&key);
        }
        status
    }

    pub(super) fn revoke(&self, key: &OwnKey, replica: usize) -> Option<u16> {
        let token = self.world.token(&key.firm, &key.creator);
        let target = format!("/v1/keys/{}/revoke", key.id);
        let request = Request::json("POST", &target, &json!({ "reason": "rotated" })).bearer(&token);
        let sent = self.world.journal.now();
        // Written down before, because from now on the key may be refused.
        let place = {
            let mut story = self.world.journal.story();
            story.revocations.push(Revocation { key: key.id.clone(), sent, answered: None });
            story.revocations.len() - 1
        };
        let status = self.world.ask_admin(replica, request, ADMIN_PATIENCE)?.0;
        let now = self.world.journal.now();
        self.world.journal.story().revocations[place].answered = Some((now, status));
        Some(status)
    }

    /// Revokes live keys whose creation was never answered: nobody has them, and they take places.
    fn clear_lost(&self, dice: &mut Dice, replica: usize) {
        if self.number > 0 {
            return;
        }
        let firm = FIRMS[dice.below(FIRMS.len())];
        let token = self.world.token(firm, "user-0");
        let Some((200, list)) = self.world.ask_admin(replica, Request::get("/v1/keys?status=active").bearer(&token), ADMIN_PATIENCE) else {
            return;
        };
        let listed: Vec<String> =
            list["keys"].as_array().into_iter().flatten().filter_map(|key| Some(key["id"].as_str()?.to_owned())).collect();
        let known: Vec<String> = self.world.keys().iter().map(|key| key.id.clone()).collect();
        // Of two that are unknown one may be on its way to its creator; its revocation is written down all the same.
        if let Some(id) = listed.into_iter().find(|id| !known.contains(id)) {
            let lost = OwnKey { id, secret: String::new(), firm: firm.to_owned(), creator: "user-0".to_owned(), is_doomed: true };
            self.revoke(&lost, replica);
        }
    }
}

/// Asks for a key of this firm and creator; takes over what is answered 201.
pub(super) fn create(world: &World, replica: usize, firm: &str, creator: &str) -> Option<OwnKey> {
    let token = world.token(firm, creator);
    let request = Request::json("POST", "/v1/keys", &json!({ "name": "model" })).bearer(&token);
    let (status, created) = world.ask_admin(replica, request, ADMIN_PATIENCE)?;
    let answered = world.journal.now();
    let text = |member: &str| created[member].as_str().map(str::to_owned);
    let (id, secret) = (text("id")?, text("key")?);
    assert_eq!(status, 201, "{created}");
    world.journal.story().creations.push(Creation { key: id.clone(), firm: firm.into(), creator: creator.into(), answered });
    let mut keys = world.keys();
    // Whoever clears up may have met it before its creator heard of it.
    let is_doomed = world.journal.story().revocations.iter().any(|revocation| revocation.key == id);
    let key = OwnKey { id, secret, firm: firm.into(), creator: creator.into(), is_doomed };
    keys.push(key.clone());
    Some(key)
}
