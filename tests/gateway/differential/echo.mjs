// An upstream with Node's parser in its lenient mode, as it is switched on for old clients.
import { createServer } from "node:http";

const server = createServer({ insecureHTTPParser: true, requireHostHeader: false }, (request, response) => {
  let length = 0;
  request.on("data", (piece) => (length += piece.length));
  request.on("error", () => {});
  request.on("end", () => {
    const saw = `node ${request.method} ${request.url} [${request.headers.host ?? ""}] ${length}`;
    // What no header may hold is in nothing that the gateway lets through, so that it is seen as a difference all the same.
    response.setHeader("X-Saw", saw.replace(/[^\t\x20-\x7e\x80-\xff]/g, "?"));
    response.end("ok");
  });
});
server.on("clientError", (_, socket) => socket.end("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"));
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 1024 });
