"""Clients over HTTP/2 that misbehave, each on a connection of its own, all at once.

Usage: misbehave.py HOST PORT KEY. h2 speaks where a client keeps to the protocol until it leaves; where it does not keep to
it, hyperframe's frames and hpack's blocks are put together by hand, because h2 refuses to. Prints a line of JSON for each
case: its name, which is also the path of its requests, and what came of it. `-good` behind a name is another request on the same
connection.
"""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import h2.connection
import h2.events
import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

HOST, PORT, KEY = sys.argv[1], int(sys.argv[2]), sys.argv[3]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CANCEL = 8
PATIENCE_SECONDS = 20
CASES = {}


def case(run):
    CASES[run.__name__.replace("_", "-")] = run
    return run


def fields(name, method, path):
    return [(":method", method), (":scheme", "http"), (":path", f"/{path}/{name}"), (":authority", "localhost"), ("x-api-key", KEY)]


class Wire:
    """A connection that sends any frame."""

    def __init__(self, name, settings=None):
        self.name = name
        self.socket = socket.create_connection((HOST, PORT), PATIENCE_SECONDS)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.statuses, self.data, self.ended = {}, {}, set()
        self.socket.sendall(PREFACE + SettingsFrame(0, settings=settings or {}).serialize())

    def send(self, *frames):
        self.socket.sendall(b"".join(frame if isinstance(frame, bytes) else frame.serialize() for frame in frames))

    def headers(self, stream=1, method="GET", path="ok", flags=("END_HEADERS", "END_STREAM"), more=(), name=None):
        block = self.encoder.encode(fields(name or self.name, method, path) + list(more))
        return HeadersFrame(stream, data=block, flags=flags)

    def good(self, stream):
        """Another request on the same connection, and its status."""
        self.send(self.headers(stream, name=f"{self.name}-good"))
        return self.fate(stream)

    def exactly(self, count):
        piece = b""
        while len(piece) < count:
            came = self.socket.recv(count - len(piece))
            if not came:
                raise EOFError
            piece += came
        return piece

    def frame(self):
        """The next frame, noted if it belongs to an answer; a word when the connection ends."""
        try:
            frame, length = Frame.parse_frame_header(memoryview(self.exactly(9)))
            frame.parse_body(memoryview(self.exactly(length)))
        except EOFError:
            return "closed"
        except TimeoutError:
            return "silent"
        except OSError:
            return "reset"
        if isinstance(frame, HeadersFrame):
            self.statuses.setdefault(frame.stream_id, dict(self.decoder.decode(frame.data)).get(":status"))
        if isinstance(frame, DataFrame):
            self.data[frame.stream_id] = self.data.get(frame.stream_id, b"") + frame.data
        if "END_STREAM" in frame.flags:
            self.ended.add(frame.stream_id)
        return frame

    def fate(self, stream=1):
        """What becomes of a stream: its status once it has ended, how it was reset, or how the connection ended."""
        while not isinstance(frame := self.frame(), str):
            if isinstance(frame, GoAwayFrame) and frame.error_code:
                return f"GOAWAY {frame.error_code}"
            if isinstance(frame, RstStreamFrame) and frame.stream_id == stream:
                return f"RST_STREAM {frame.error_code}"
            if frame.stream_id == stream and "END_STREAM" in frame.flags:
                return self.statuses[stream]
        return frame

    def begin(self):
        """A request whose answer has begun and does not end."""
        self.send(self.headers(path="begun"))
        self.until(DataFrame, 1)

    def until(self, kind, stream):
        while not isinstance(frame := self.frame(), str):
            if isinstance(frame, kind) and frame.stream_id == stream:
                return frame
        raise ConnectionError(frame)


class Polite:
    """A connection that h2 leads."""

    def __init__(self, name):
        self.name = name
        self.socket = socket.create_connection((HOST, PORT), PATIENCE_SECONDS)
        self.h2, self.came = h2.connection.H2Connection(), []
        self.h2.initiate_connection()
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def request(self, stream, path="ok", method="GET", name=None, ends=True):
        self.h2.send_headers(stream, fields(name or self.name, method, path), end_stream=ends)
        self.flush()

    def wait_for(self, kind, stream):
        """The first event of a kind on a stream; those before it are passed over."""
        for event in self.events():
            if isinstance(event, kind) and event.stream_id == stream:
                return event
        raise ConnectionError("closed")

    def events(self):
        """What comes, until the connection ends; who stops in between finds the rest the next time."""
        while True:
            while self.came:
                yield self.came.pop(0)
            if not (piece := self.socket.recv(65536)):
                return
            self.came += self.h2.receive_data(piece)
            self.flush()

    def good(self, stream):
        self.request(stream, name=f"{self.name}-good")
        event = self.wait_for(h2.events.ResponseReceived, stream)
        return dict(event.headers)[b":status"].decode()


# Frames in an order that there is not.


@case
def data_before_headers(name):
    wire = Wire(name)
    wire.send(DataFrame(1, data=b"early", flags=("END_STREAM",)))
    return wire.fate()


@case
def data_behind_the_end(name):
    wire = Wire(name)
    wire.begin()
    wire.send(DataFrame(1, data=b"late"))
    return wire.fate()


@case
def ping_within_a_header_block(name):
    wire = Wire(name)
    wire.send(wire.headers(flags=("END_STREAM",)), PingFrame(0, opaque_data=b"whatever"))
    return wire.fate()


@case
def trailers_that_do_not_end_the_stream(name):
    wire = Wire(name)
    wire.send(wire.headers(method="POST", path="held", flags=("END_HEADERS",)), DataFrame(1, data=b"half"))
    wire.send(HeadersFrame(1, data=wire.encoder.encode([("x-trailer", "1")]), flags=("END_HEADERS",)))
    return wire.fate()


@case
def streams_that_go_backwards(name):
    wire = Wire(name)
    wire.send(wire.headers(stream=7, path="begun"))
    wire.until(DataFrame, 7)
    wire.send(wire.headers(stream=5, name=f"{name}-back"))
    return wire.fate(7)


@case
def a_block_that_names_what_no_table_holds(name):
    wire = Wire(name)
    wire.send(HeadersFrame(1, data=wire.encoder.encode(fields(name, "GET", "ok")) + b"\xfe", flags=("END_HEADERS", "END_STREAM")))
    return wire.fate()


@case
def a_header_block_without_end_and_then_silence(name):
    wire = Wire(name)
    wire.send(wire.headers(flags=("END_STREAM",)), ContinuationFrame(1, data=wire.encoder.encode([("x-more", "1")])))
    wire.socket.settimeout(1)
    fate = wire.fate()
    wire.socket.close()
    return fate


@case
def half_a_frame_and_the_end(name):
    wire = Wire(name)
    wire.send(wire.headers().serialize()[:-4])
    wire.socket.shutdown(socket.SHUT_WR)
    return wire.fate()


# Windows.


@case
def a_window_that_opens_by_single_bytes(name):
    wire = Wire(name, {SettingsFrame.INITIAL_WINDOW_SIZE: 0})
    wire.send(wire.headers())
    while len(wire.data.get(1, b"")) < 2:
        wire.send(WindowUpdateFrame(1, window_increment=1))
        wire.until(DataFrame, 1)
    return f"{wire.statuses[1]} {wire.data[1].decode()}"


@case
def a_window_beyond_its_maximum(name):
    wire = Wire(name)
    wire.begin()
    wire.send(*[WindowUpdateFrame(1, window_increment=2**31 - 1)] * 2)
    return f"{wire.fate()} {wire.good(3)}"


@case
def a_window_that_grows_by_nothing(name):
    wire = Wire(name)
    wire.begin()
    # hyperframe makes none such.
    wire.send(WindowUpdateFrame(1, window_increment=1).serialize()[:-4] + bytes(4))
    return wire.fate()


@case
def more_than_the_window_holds(name):
    wire = Wire(name)
    wire.send(wire.headers(method="POST", path="held", flags=("END_HEADERS",)))
    wire.send(*[DataFrame(1, data=b"x" * 16384)] * 20)
    # FLOW_CONTROL_ERROR of the stream or of the connection: RFC 9113 section 6.9.1 leaves it to the receiver.
    return wire.fate().split(" ")[-1]


@case
def an_answer_of_which_little_is_taken(name):
    wire = Wire(name)
    wire.send(wire.headers(path="large"))
    wire.until(DataFrame, 1)
    wire.send(RstStreamFrame(1, error_code=CANCEL), WindowUpdateFrame(0, window_increment=65535))
    return wire.good(3)


# Settings.


@case
def settings_that_change_in_the_middle(name):
    wire = Wire(name)
    wire.send(wire.headers(path="large"))
    for turn in range(200):
        wire.send(
            SettingsFrame(
                0,
                settings={
                    SettingsFrame.INITIAL_WINDOW_SIZE: [0, 65535, 2**31 - 1, 1][turn % 4],
                    SettingsFrame.HEADER_TABLE_SIZE: [0, 4096, 2**32 - 1][turn % 3],
                    SettingsFrame.MAX_FRAME_SIZE: [16384, 2**24 - 1][turn % 2],
                },
            )
        )
    wire.send(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 2**20}), WindowUpdateFrame(0, window_increment=2**20))
    return f"{wire.fate()} {len(wire.data[1])}"


@case
def settings_that_are_none(name):
    wire = Wire(name)
    wire.begin()
    # Unknown ones are nobody's concern; a frame size that may not be is.
    wire.send(SettingsFrame(0, settings={0xF000 + place: place for place in range(100)}))
    wire.send(SettingsFrame(0, settings={SettingsFrame.MAX_FRAME_SIZE: 1}))
    return wire.fate()


@case
def settings_that_are_never_acknowledged(name):
    wire = Wire(name)
    wire.send(*[wire.headers(stream) for stream in range(1, 100, 2)])
    answered = {wire.fate(stream) for stream in range(1, 100, 2) if stream not in wire.ended}
    return f"{' '.join(answered)} {wire.good(101)}"


# Leaving.


@case
def reset_in_the_middle_of_an_upload(name):
    polite = Polite(name)
    polite.request(1, "held", "POST", ends=False)
    polite.h2.send_data(1, b"half")
    polite.flush()
    polite.h2.reset_stream(1, CANCEL)
    polite.flush()
    return polite.good(3)


@case
def reset_in_the_middle_of_an_answer(name):
    polite = Polite(name)
    polite.request(1, "large")
    polite.wait_for(h2.events.DataReceived, 1)
    polite.h2.reset_stream(1, CANCEL)
    polite.flush()
    return polite.good(3)


@case
def goaway_in_the_middle_of_an_answer(name):
    polite = Polite(name)
    polite.request(1, "large")
    first = polite.wait_for(h2.events.DataReceived, 1)
    polite.h2.acknowledge_received_data(first.flow_controlled_length, 1)
    # Whoever says goodbye still gets what has begun.
    polite.socket.sendall(GoAwayFrame(0, last_stream_id=0).serialize())
    polite.flush()
    total = len(first.data)
    for event in polite.events():
        if isinstance(event, h2.events.DataReceived):
            total += len(event.data)
            polite.h2.acknowledge_received_data(event.flow_controlled_length, 1)
            polite.flush()
        if isinstance(event, h2.events.StreamEnded):
            return f"whole {total}"
    return f"broken {total}"


@case
def gone_in_the_middle_of_an_answer(name):
    polite = Polite(name)
    polite.request(1, "large")
    polite.wait_for(h2.events.DataReceived, 1)
    polite.socket.close()
    return "gone"


@case
def a_connection_half_closed_behind_a_request(name):
    wire = Wire(name)
    wire.begin()
    # By HTTP/2 that is a client who has gone: it could not acknowledge anything any more.
    wire.socket.shutdown(socket.SHUT_WR)
    return wire.fate()


@case
def an_upload_that_stops(name):
    wire = Wire(name)
    wire.send(wire.headers(method="POST", flags=("END_HEADERS",), more=[("content-length", "100000")]))
    wire.send(DataFrame(1, data=b"some"))
    return f"{wire.fate()} {wire.good(3)}"


def told(name):
    try:
        return {"case": name, "fate": CASES[name](name)}
    except Exception as error:  # What the script did not expect is for the test to see.
        return {"case": name, "fate": f"{type(error).__name__}: {error}"}


with ThreadPoolExecutor(len(CASES)) as pool:
    for line in pool.map(told, CASES):
        print(json.dumps(line), flush=True)
