"""An upstream as people write them with Python's own server: believes what `int` and the library believe."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # As servers in production do: unanswered bytes of a bad connection are not waited for.
    timeout = 5

    def chunks(self):
        length = 0
        while size := int(self.rfile.readline().split(b";")[0], 16):
            length += len(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return length

    def answer(self):
        try:
            if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
                length = self.chunks()
            else:
                length = len(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        except ValueError:
            self.close_connection = True
            return self.send_error(400)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        host = self.headers.get("Host", "")
        saw = f"python {self.command} {self.path} [{host}] {length}"
        self.send_header("X-Saw", saw.replace("\r", "%0D").replace("\n", "%0A"))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"ok")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, *_):
        pass


Server(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
