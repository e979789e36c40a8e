"""An upstream over TLS (OpenSSL's) that says how each connection ended; the first word is the protocol, `http/1.1` or `h2`.

Takes the protocol and a file with certificate and key; prints its port, and then a line for each end: `clean` when TLS was
ended before the connection was (close_notify, RFC 8446 section 6.1), `torn` when it was not. It never closes one itself.
"""

import socket
import ssl
import sys
import threading

from h2.connection import H2Connection
from h2.config import H2Configuration
from h2.events import StreamEnded

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n%s\r\nok"


class Http1:
    def __init__(self):
        self.read = b""

    def receive(self, piece: bytes) -> bytes:
        self.read += piece
        answers = b""
        while b"\r\n\r\n" in self.read:
            head, _, self.read = self.read.partition(b"\r\n\r\n")
            answers += ANSWER % (b"Connection: close\r\n" if b"/last" in head else b"")
        return answers


class Http2:
    def __init__(self):
        self.connection = H2Connection(H2Configuration(client_side=False))
        self.connection.initiate_connection()

    def receive(self, piece: bytes) -> bytes:
        for event in self.connection.receive_data(piece):
            if isinstance(event, StreamEnded):
                self.connection.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
        return self.connection.data_to_send()


def serve(connection: socket.socket, context: ssl.SSLContext) -> None:
    try:
        stream = context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=False)
        speaker = Http2() if stream.selected_alpn_protocol() == "h2" else Http1()
        while piece := stream.recv(16384):
            stream.sendall(speaker.receive(piece))
        print("clean", flush=True)
    except OSError as error:
        print("torn", error, flush=True)


def main() -> None:
    protocol, certificate = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols([protocol])
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, context), daemon=True).start()


main()
