//! Few file descriptors: strangers' connections use up the edge's share and never what admins, the store and the
//! upstreams need; accepting pauses and nothing else does.

use std::fs;
use std::net::TcpStream;

use crate::support::eventually::eventually;
use crate::support::{Client, Gateway, Request, SOON};

const LIMIT: usize = 256;
const STRANGERS: usize = 400;

fn open(gateway: &Gateway) -> usize {
    fs::read_dir(format!("/proc/{}/fd", gateway.process_id())).expect("our process").count()
}

/// The processor time that the process has used, in hundredths of a second.
fn worked(gateway: &Gateway) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", gateway.process_id())).expect("our process");
    let fields: Vec<u64> = stat.rsplit(") ").next().expect("a name").split(' ').map(|field| field.parse().unwrap_or(0)).collect();
    fields[11] + fields[12]
}

#[test]
fn more_connections_than_descriptors_pause_the_edge_alone_and_it_recovers() {
    let mut gateway = Gateway::under(&["prlimit", &format!("--nofile={LIMIT}:{LIMIT}")], |_| {});
    let (editor, key) = (gateway.editor(), gateway.key());
    assert!(gateway.log().contains("too few file descriptors"), "the operator is told at the start");
    let request = Request::get("/ok").bearer(&key.secret);
    let mut early = Client::connect(gateway.edge());
    early.exchange(&request).expect("an answer").expect(200);

    // The kernel takes connections that nobody has accepted yet.
    let strangers: Vec<TcpStream> = (0..STRANGERS).map(|_| TcpStream::connect(gateway.edge()).expect("a backlog")).collect();
    eventually!(SOON, gateway.metric("assure_gateway_connections{listener=\"edge\"}") >= (LIMIT / 2) as f64, "the edge's share is used up");
    let before = worked(&gateway);
    for turn in 0..20 {
        early.exchange(&request).expect("who is connected is served").expect(200);
        let made = gateway.create_key(&editor, &format!("made in need {turn}"));
        gateway.revoke(&editor, &made);
        gateway.ops_get("/metrics").expect(200);
        assert!(open(&gateway) < LIMIT, "descriptors are left");
    }
    assert!(worked(&gateway) - before < 1_000, "nobody spins");
    assert!(gateway.log().matches("accepting pauses").count() <= 1, "waiting is not told again and again");

    drop(strangers);
    eventually!(SOON, request.send_if_up(gateway.edge()) == Some(200), "there is room again");
    eventually!(SOON, open(&gateway) < 100, "descriptors are given back");
    gateway.assert_alive(&key);
}

#[test]
fn a_process_without_any_descriptor_left_accepts_again_when_there_are_some() {
    let gateway = Gateway::start();
    let key = gateway.key();
    let request = Request::get("/ok").bearer(&key.secret);
    let mut early = Client::connect(gateway.edge());
    early.exchange(&request).expect("an answer").expect(200);
    // As if something else in the process had taken them all.
    let limit = |descriptors: usize| {
        let id = i32::try_from(gateway.process_id()).ok().and_then(rustix::process::Pid::from_raw);
        let descriptors = Some(u64::try_from(descriptors).expect("small"));
        let limit = rustix::process::Rlimit { current: descriptors, ..rustix::process::getrlimit(rustix::process::Resource::Nofile) };
        rustix::process::prlimit(id, rustix::process::Resource::Nofile, limit).expect("our process");
    };
    limit(open(&gateway));
    let waiting: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(gateway.edge()).expect("a backlog")).collect();
    eventually!(SOON, gateway.log().contains("accepting pauses until there is room again"), "the operator is told");
    early.exchange(&request).expect("who is connected is served").expect(200);
    limit(1_024);
    eventually!(SOON, request.send_if_up(gateway.edge()) == Some(200), "accepting goes on by itself");
    drop(waiting);
}
