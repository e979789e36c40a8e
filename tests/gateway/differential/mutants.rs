//! Requests that are a little wrong: seeded, so that each can be made again from its seed and number.
//!
//! A good request is taken apart into lines and body, changed in one to three places, and put together again. The changes are
//! those from which smuggling is made: framing fields spelt oddly or twice, other line ends, bytes where none belong,
//! targets, hosts, versions, chunks that are nearly right. Behind every mutant comes a good request that closes the connection.

/// SplitMix64: small, good enough, and the same everywhere.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64, number: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.roll() % limit.max(1) as u64).expect("less than the limit")
    }

    pub(super) fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// A request in pieces: each line with its own end.
struct Draft {
    method: Vec<u8>,
    target: Vec<u8>,
    version: Vec<u8>,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    ends: Vec<(usize, Vec<u8>)>,
    before: Vec<u8>,
    body: Vec<u8>,
}

pub(super) const METHODS: &[&[u8]] = &[
    b"GET",
    b"POST",
    b"PUT",
    b"PATCH",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"TRACE",
    b"TRACK",
    b"CONNECT",
    b"get",
    b"GE T",
    b"PURGE",
    b"PRI",
    b"GET\t",
    b"G\0ET",
    b"",
    b"M-SEARCH",
    b"PROPFIND",
    b"GET:",
    b"\"GET\"",
    b"LONGMETHODNAMETHATNOBODYKNOWS",
];

pub(super) const TARGETS: &[&[u8]] = &[
    b"/",
    b"*",
    b"",
    b"/a/../b",
    b"/a/./b",
    b"//a",
    b"/a//b",
    b"/%2e%2e/a",
    b"/a%2fb",
    b"/a%5cb",
    b"/a\\b",
    b"/a;b/c",
    b"/a;/../b",
    b"/a?b=c",
    b"/a?b=/../c",
    b"/a??b",
    b"/a#b",
    b"/a%00b",
    b"/a%",
    b"/a%zz",
    b"/%61",
    b"/a%20b",
    b"/a b",
    b"/a\tb",
    b"/a\x7fb",
    b"/\xc3\xa9",
    b"/%c3%a9",
    b"/a%c0%afb",
    b"http://localhost/a",
    b"http://other/a",
    b"http://localhost:80/a",
    b"http://localhost",
    b"http://user@localhost/a",
    b"https://localhost/a",
    b"ftp://localhost/a",
    b"http:/a",
    b"//localhost/a",
    b"localhost/a",
    b"localhost:80",
    b"a",
    b"/a HTTP/1.1",
    b"/a\r/b",
    b"/~a",
    b"/%7Ea",
    b"/A",
    b"/a.",
    b"/a./b",
    b"/.a",
    b"/a/%2E",
    b"/a|b",
    b"/a<b>",
    b"/a\"b",
    b"/[a]",
    b"/a^b",
    b"/a`b",
    b"/{a}",
];

const VERSIONS: &[&[u8]] = &[
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1",
    b"HTTP/1.10",
    b"HTTP/01.1",
    b"HTTP/1.1 ",
    b" HTTP/1.1",
    b"http/1.1",
    b"HTTP/1,1",
    b"HTTP/1.1\0",
    b"HTTP /1.1",
    b"HTTPS/1.1",
    b"",
    b"HTTP/1.1 HTTP/1.1",
    b"HTTP/1.1\t",
    b"HTTP/1.x",
    b"HTTP/11",
];

pub(super) const HOSTS: &[&[u8]] = &[
    b"localhost",
    b"LOCALHOST",
    b"localhost:80",
    b"localhost.",
    b"other",
    b"",
    b"a,b",
    b"a b",
    b"user@localhost",
    b"localhost/x",
    b"localhost:",
    b"localhost:0",
    b"localhost:99999",
    b"localhost:8o",
    b"[::1]",
    b"[::1",
    b"127.0.0.1",
    b"localhost\t",
    b"localhost\0",
    b"localhost?a",
    b"localhost#a",
    b"loc%61lhost",
    b"localhost:80:80",
    b".localhost",
    b"localhost..",
    b"local_host",
    b"\xc3\xa9",
    b"localhost\\x",
];

pub(super) const LENGTHS: &[&[u8]] = &[
    b"0",
    b"5",
    b"4",
    b"6",
    b"05",
    b"+5",
    b"-5",
    b"0x5",
    b"5 ",
    b" 5",
    b"5, 5",
    b"5,6",
    b"5;",
    b"5.0",
    b"5e0",
    b"",
    b"5\t",
    b"\x0b5",
    b"5\0",
    b"99999999999999999999",
    b"18446744073709551621",
    b"4294967301",
    b"5 5",
    b"\"5\"",
    b"five",
    b"5_0",
    b"\xd9\xa5",
];

pub(super) const CODINGS: &[&[u8]] = &[
    b"chunked",
    b"Chunked",
    b"CHUNKED",
    b"chunked ",
    b" chunked",
    b"\tchunked",
    b"chunked\t",
    b"\x0bchunked",
    b"\x0cchunked",
    b"chunked\x0b",
    b"\"chunked\"",
    b"'chunked'",
    b"chunked, chunked",
    b"chunked,",
    b",chunked",
    b"chunked;q=1",
    b"chunked;",
    b"gzip, chunked",
    b"chunked, gzip",
    b"identity",
    b"identity, chunked",
    b"chunked, identity",
    b"xchunked",
    b"chunkedx",
    b"chunk",
    b"chun ked",
    b"chunked\0",
    b"\xa0chunked",
    b"chunked\xa0",
    b"\x85chunked",
    b"chunked\r",
    b"gzip",
    b"",
    b"cow",
    b"chunked\x01",
    b"deflate",
    b"chunKed",
    b"c\xc4\xb1hunked",
];

/// Whole lines that are put in somewhere.
const LINES: &[&[u8]] = &[
    b"Transfer-Encoding: chunked",
    b"Transfer_Encoding: chunked",
    b"Transfer-Encoding : chunked",
    b" Transfer-Encoding: chunked",
    b"Transfer-Encoding\t: chunked",
    b"Transfer-Encoding:chunked",
    b"transfer-encoding: chunked",
    b"Transfer-\rEncoding: chunked",
    b"Transfer\xe2\x80\x90Encoding: chunked",
    b"Transfer-Encoding\0: chunked",
    b"X: y\rTransfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"X: y\n\rTransfer-Encoding: chunked",
    b"Transfer.Encoding: chunked",
    b"TransferEncoding: chunked",
    b"Content-Encoding: chunked",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content_Length: 5",
    b"Content-Length : 5",
    b"Content-Length\x0b: 5",
    b"Content-Length:5",
    b"content-length: 6",
    b"X-Content-Length: 5",
    b"\tContent-Length: 5",
    b"Content-Length",
    b"Content-Length;5",
    b"X: y\rContent-Length: 5",
    b"Host: localhost",
    b"Host: other",
    b"host: localhost",
    b"Host : localhost",
    b" Host: other",
    b"X-Forwarded-Host: other",
    b"X-Host: other",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: Content-Length",
    b"Connection: Transfer-Encoding",
    b"Connection: Host",
    b"Connection: Authorization",
    b"Connection: X-Request-Id",
    b"Connection: upgrade",
    b"Upgrade: h2c",
    b"Upgrade: websocket",
    b"Keep-Alive: timeout=5",
    b"HTTP2-Settings: AAMAAABkAAQAAP__",
    b"Expect: 100-continue",
    b"Expect: 100-Continue",
    b"Expect: x",
    b"TE: trailers",
    b"TE: chunked",
    b"Trailer: X",
    b"Proxy-Connection: close",
    b"X-Original-URL: /b",
    b"X-Rewrite-URL: /b",
    b"X-HTTP-Method-Override: DELETE",
    b"Range: bytes=0-",
    b"GET /b HTTP/1.1",
    b"X",
    b": x",
    b"X:",
    b"X: \x01",
    b"X: \x7f",
    b"X: \xff",
    b"X:\t\t",
    b"X-Assure-Jwt-Assertion: x",
    b"X_Assure_Jwt_Assertion: x",
    b"\0X: y",
    b"X\0: y",
    b"X: y\0",
    b"X\x80: y",
    b"(X): y",
    b"X/Y: z",
    b"X\"Y: z",
    b"X[0]: z",
    b"X: y\r",
    b"X y: z",
    b"Cookie: a=b",
    b"",
];

const LINE_ENDS: &[&[u8]] = &[
    b"\n",
    b"\r",
    b"\r\r\n",
    b"\n\r",
    b"\r\n ",
    b"\r\n\t",
    b" \r\n",
    b"\t\r\n",
    b"\x0b\r\n",
    b"\0\r\n",
    b"",
    b"\n\n",
    b"\r\n\r\n",
    b"\r\n\n",
    b"\n\r\n",
    b"\x0c\r\n",
    b"\x85",
    b"\xe2\x80\xa8",
];

/// Bytes that some readers see and others do not.
pub(super) const BYTES: &[u8] =
    &[0, 1, 8, 9, 10, 11, 12, 13, 31, 32, 34, 35, 37, 39, 44, 45, 46, 47, 58, 59, 61, 64, 92, 95, 127, 128, 0x85, 0xa0, 0xad, 0xff];

const CHUNKS: &[&[u8]] = &[
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a=b\r\nhello\r\n0\r\n\r\n",
    b"05\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\rhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhelloo\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n",
    b"5\r\nhello\r\n0\n\n",
    b"5\r\nhello\r\n0\r\n\n",
    b"5\r\nhello\r\n00\r\n\r\n",
    b"5;\r\nhello\r\n0\r\n\r\n",
    b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    b"5;a\0\r\nhello\r\n0\r\n\r\n",
    b"5,5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"5\r\nhello\r\n0\r\nContent-Length: 7\r\n\r\n",
    b"5\r\nhello\r\n0\r\nHost: other\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX: y\nZ: w\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX\r\n\r\n",
    b"5\r\nhello\r\n0\r\n X: y\r\n\r\n",
    b"5\r\nhello\r\n-0\r\n\r\n",
    b"5\r\nhello\r\n0;a=b\r\n\r\n",
    b"FFFFFFFFFFFFFFFF5\r\nhello\r\n0\r\n\r\n",
    b"100000005\r\nhello\r\n0\r\n\r\n",
    b"0000000000000000000000005\r\nhello\r\n0\r\n\r\n",
    b"\r\n5\r\nhello\r\n0\r\n\r\n",
    b"5\r\n\r\nhello\r\n0\r\n\r\n",
    b"5\x0b\r\nhello\r\n0\r\n\r\n",
    b"5\t;x\r\nhello\r\n0\r\n\r\n",
    b"a\r\n0123456789\r\n0\r\n\r\n",
    b"A\r\n0123456789\r\n0\r\n\r\n",
    b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\nTransfer-Encoding: x\r\n\r\n",
    b"g\r\nhello\r\n0\r\n\r\n",
];

impl Draft {
    fn good(dice: &mut Dice, credential: &str, number: u64) -> Self {
        let fields = |more: &[(&str, &str)]| {
            let usual = [("Host", "localhost"), ("Authorization", credential), ("User-Agent", "mutant")];
            let all = usual.iter().chain(more);
            all.map(|(name, value)| (format!("{name}: ").into_bytes(), value.as_bytes().to_vec())).collect()
        };
        let (method, fields, body): (&str, Vec<_>, &[u8]) = match dice.below(6) {
            0 => ("GET", fields(&[]), b""),
            1 => ("POST", fields(&[("Content-Length", "5")]), b"hello"),
            2 | 3 => ("POST", fields(&[("Transfer-Encoding", "chunked")]), b"5\r\nhello\r\n0\r\n\r\n"),
            4 => ("PUT", fields(&[("Content-Type", "text/plain"), ("Content-Length", "5"), ("Accept", "*/*")]), b"hello"),
            _ => ("DELETE", fields(&[("Connection", "keep-alive")]), b""),
        };
        let (method, target) = (method.as_bytes().to_vec(), format!("/m/{number}").into_bytes());
        Self { method, target, version: b"HTTP/1.1".to_vec(), fields, ends: Vec::new(), before: Vec::new(), body: body.to_vec() }
    }

    fn change(&mut self, dice: &mut Dice) {
        let any = dice.below(self.fields.len().max(1));
        match dice.below(20) {
            0 => self.method = dice.pick(METHODS).to_vec(),
            1 => self.target = dice.pick(TARGETS).to_vec(),
            2 => self.version = dice.pick(VERSIONS).to_vec(),
            3 => self.fill("host", dice.pick(HOSTS)),
            4 => self.fill("content-length", dice.pick(LENGTHS)),
            5 | 6 => self.fill("transfer-encoding", dice.pick(CODINGS)),
            7 | 8 => {
                let line = dice.pick(LINES).to_vec();
                self.fields.insert(any, (line, Vec::new()));
            }
            9 => {
                let twin = self.fields[any].clone();
                self.fields.push(twin);
            }
            10 => drop(self.fields.remove(any)),
            // One more than the fields: the blank line's end too.
            11 => {
                let line = dice.below(self.fields.len() + 2);
                self.ends.push((line, dice.pick(LINE_ENDS).to_vec()));
            }
            12 => {
                let name = &mut self.fields[any].0;
                let place = dice.below(name.len().max(1));
                name.insert(place, BYTES[dice.below(BYTES.len())]);
            }
            13 => {
                let value = &mut self.fields[any].1;
                let place = dice.below(value.len() + 1);
                value.insert(place, BYTES[dice.below(BYTES.len())]);
            }
            14 => self.body = dice.pick(CHUNKS).to_vec(),
            15 => {
                let place = dice.below(self.target.len() + 1);
                self.target.insert(place, BYTES[dice.below(BYTES.len())]);
            }
            16 => {
                let name = &mut self.fields[any].0;
                let change = dice.below(2);
                name.iter_mut().for_each(|byte| *byte = if change == 0 { byte.to_ascii_lowercase() } else { byte.to_ascii_uppercase() });
            }
            17 => {
                let spaces = dice.pick::<[u8]>(&[b" ", b"\t", b"  ", b" \t "]);
                let (name, value) = &mut self.fields[any];
                let grown = if dice.below(2) == 0 { name } else { value };
                grown.extend_from_slice(spaces);
            }
            18 => {
                let other = dice.below(self.fields.len());
                self.fields.swap(any, other);
            }
            _ => self.before = dice.pick::<[u8]>(&[b"\r\n", b"\n", b"\r", b" ", b"\r\n\r\n", b"\0", b"\t\r\n", b"\xef\xbb\xbf"]).to_vec(),
        }
    }

    /// Gives the fields of this name another value, or adds one.
    fn fill(&mut self, name: &str, value: &[u8]) {
        let is_meant = |field: &(Vec<u8>, Vec<u8>)| field.0.to_ascii_lowercase().starts_with(name.as_bytes());
        match self.fields.iter_mut().find(|field| is_meant(field)) {
            Some(field) => field.1 = value.to_vec(),
            None => self.fields.push((format!("{name}: ").into_bytes(), value.to_vec())),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let end = |line: usize| self.ends.iter().find(|(place, _)| *place == line).map_or(&b"\r\n"[..], |(_, end)| end);
        let mut bytes = [&self.before[..], &self.method, b" ", &self.target, b" ", &self.version, end(0)].concat();
        for (place, (name, value)) in self.fields.iter().enumerate() {
            bytes.extend_from_slice(&[&name[..], value, end(place + 1)].concat());
        }
        bytes.extend_from_slice(end(self.fields.len() + 1));
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// The mutant of this number, and the good request behind it.
pub(super) fn mutant(seed: u64, number: u64, secret: &str) -> Vec<u8> {
    let mut dice = Dice::new(seed, number);
    let credential = format!("Bearer {secret}");
    let mut draft = Draft::good(&mut dice, &credential, number);
    let changes = [1, 1, 1, 1, 1, 2, 2, 3][dice.below(8)];
    for _ in 0..changes {
        if !draft.fields.is_empty() {
            draft.change(&mut dice);
        }
    }
    let mut bytes = draft.bytes();
    if dice.below(10) == 0 {
        match (dice.below(3), dice.below(bytes.len().max(1))) {
            (0, place) => bytes.insert(place, BYTES[dice.below(BYTES.len())]),
            (1, place) => bytes[place] = BYTES[dice.below(BYTES.len())],
            (_, place) => drop(bytes.remove(place)),
        }
    }
    let tail = format!("GET /tail/{number} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {credential}\r\nConnection: close\r\n\r\n");
    [&bytes[..], tail.as_bytes()].concat()
}
