// An upstream with Node's parser in its lenient mode, as it is switched on for old clients.
import { createServer } from "node:http";

const server = createServer({ insecureHTTPParser: true, requireHostHeader: false }, (request, response) => {
  let length = 0;
  request.on("data", (piece) => (length += piece.length));
  request.on("error", () => {});
  request.on("end", () => {
    const saw = `node ${request.method} ${request.url} [${request.headers.host ?? ""}] ${length}`;
    response.setHeader("X-Saw", Buffer.from(saw, "latin1").toString("latin1"));
    response.end("ok");
  });
});
server.on("clientError", (_, socket) => socket.end("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"));
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 1024 });
