//! Reads the audit stream from Redis as a foreign consumer would: page by page, over RESP2, without the gateway's code.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::journal::Record;

/// Entries of one page.
const PAGE: usize = 1_000;

/// A reply, as far as XRANGE needs it.
enum Reply {
    Text(String),
    List(Vec<Reply>),
}

impl Reply {
    fn text(self) -> String {
        if let Self::Text(text) = self { text } else { panic!("a text was expected") }
    }

    fn list(self) -> Vec<Self> {
        if let Self::List(list) = self { list } else { panic!("a list was expected") }
    }
}

/// Every entry of the streams of so many partitions, each in its order.
///
/// # Panics
/// When Redis does not answer, or not as RESP2 says.
pub(super) fn records(address: SocketAddr, partitions: u16) -> Vec<Record> {
    let name = |partition| if partition == 0 { "assure:audit".to_owned() } else { format!("assure:audit:{partition}") };
    (0..partitions).flat_map(|partition| entries(address, &name(partition))).collect()
}

fn entries(address: SocketAddr, stream: &str) -> Vec<Record> {
    let socket = TcpStream::connect(address).expect("Redis listens");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    let (mut input, mut output) = (BufReader::new(socket.try_clone().expect("a socket")), socket);
    let (mut records, mut from) = (Vec::new(), "-".to_owned());
    loop {
        let words = ["XRANGE", stream, &from, "+", "COUNT", &PAGE.to_string()].map(|word| format!("${}\r\n{word}\r\n", word.len()));
        output.write_all(format!("*{}\r\n{}", words.len(), words.concat()).as_bytes()).expect("Redis takes it");
        let page = read(&mut input).list();
        let is_last = page.len() < PAGE;
        for entry in page {
            let mut entry = entry.list().into_iter();
            let (id, fields) = (entry.next().expect("an id").text(), entry.next().expect("fields").list());
            from = format!("({id}");
            records.push(record(fields.into_iter().map(Reply::text).collect()));
        }
        if is_last {
            return records;
        }
    }
}

fn record(flat: Vec<String>) -> Record {
    let mut fields: HashMap<String, String> = flat.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
    let mut take = |name: &str| fields.remove(name);
    let number = |text: Option<String>| text.map(|text| text.parse::<u64>().expect("a number"));
    Record {
        event_id: take("event_id").expect("every record has an event_id"),
        action: take("action").expect("every record has an action"),
        outcome: take("outcome").expect("every record has an outcome"),
        key: take("key_id").expect("every record has a key_id"),
        request_id: take("request_id"),
        path: take("path").unwrap_or_default(),
        status: number(take("status")).and_then(|status| status.try_into().ok()),
        replica: take("replica").expect("every record has a replica"),
        sequence: number(take("sequence")),
        count: number(take("count")).unwrap_or(1),
    }
}

fn read(input: &mut impl BufRead) -> Reply {
    let mut line = String::new();
    input.read_line(&mut line).expect("Redis answers");
    let (kind, rest) = line.trim_end().split_at(1);
    let count = || rest.parse::<usize>().expect("a count");
    match kind {
        "$" => {
            let mut bytes = vec![0; count() + 2];
            input.read_exact(&mut bytes).expect("the whole text comes");
            bytes.truncate(count());
            Reply::Text(String::from_utf8(bytes).expect("records are text"))
        }
        "*" => Reply::List((0..count()).map(|_| read(input)).collect()),
        _ => panic!("Redis answered {line:?}"),
    }
}

#[test]
fn an_entry_is_read_as_a_record() {
    let wire = b"*1\r\n*2\r\n$3\r\n1-0\r\n*4\r\n$5\r\ncount\r\n$1\r\n7\r\n$6\r\nstatus\r\n$3\r\n429\r\n";
    let entry = read(&mut BufReader::new(&wire[..])).list().remove(0).list().remove(1).list();
    let mut fields: Vec<String> = entry.into_iter().map(Reply::text).collect();
    for name in ["event_id", "action", "outcome", "key_id", "replica"] {
        fields.extend([name.to_owned(), "x".to_owned()]);
    }
    let record = record(fields);
    assert_eq!((record.count, record.status, record.request_id), (7, Some(429), None));
}
