// Clients in Node that misbehave: its own http, http2 and fetch until they leave, and bare sockets where those are too polite.
//
// Usage: misbehave.mjs HOST PORT KEY. Prints a line of JSON for each case: its name, which is also the path of its requests, and what
// came of it. All cases run at once, each on a connection of its own.

import http from "node:http";
import http2 from "node:http2";
import net from "node:net";
import { once } from "node:events";
import { Readable } from "node:stream";
import { setTimeout as pause } from "node:timers/promises";

const [host, port, key] = process.argv.slice(2);
const origin = `http://${host}:${port}`;
const PATIENCE_MS = 20_000;
const cases = {};

const head = (method, path, more = "") => `${method} ${path} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: ${key}\r\n${more}\r\n`;

/** A socket, and everything that comes on it until it ends. */
function socket() {
  const wire = net.connect({ host, port, allowHalfOpen: true });
  let text = "";
  wire.setEncoding("latin1").on("data", (piece) => (text += piece));
  const ended = new Promise((resolve) => {
    wire.once("end", () => resolve("closed")).once("error", () => resolve("reset"));
    wire.setTimeout(PATIENCE_MS, () => resolve("silent"));
  });
  const statuses = () => [...text.matchAll(/HTTP\/1\.1 (\d+)/g)].map((match) => match[1]).join(",");
  return { wire, ended, statuses, text: () => text };
}

function session(settings) {
  const client = http2.connect(origin, { settings });
  client.on("error", () => {});
  return client;
}

/** What becomes of a stream of http2. */
async function fate(stream) {
  let status;
  stream.on("response", (fields) => (status = fields[":status"])).on("data", () => {});
  try {
    await Promise.race([once(stream, "close"), pause(PATIENCE_MS, undefined, { ref: false })]);
  } catch {}
  return `${status ?? "no answer"}${stream.rstCode ? ` RST_STREAM ${stream.rstCode}` : ""}`;
}

const request = (client, name, path = "ok", more = {}) => client.request({ ":path": `/${path}/${name}`, "x-api-key": key, ...more });

async function good(client, name) {
  const told = await fate(request(client, `${name}-good`));
  client.close();
  return told;
}

cases["pipelined-and-gone-behind-the-first-answer"] = async (name) => {
  const { wire, statuses } = socket();
  wire.write(head("GET", `/ok/${name}`).repeat(20));
  await once(wire, "data");
  wire.destroy();
  return statuses().split(",")[0];
};

cases["half-closed-in-the-middle-of-an-answer"] = async (name) => {
  const { wire, ended, statuses } = socket();
  wire.write(head("GET", `/begun/${name}`));
  await once(wire, "data");
  // Whoever may want the rest and whoever has gone look alike.
  wire.end();
  return `${await ended} ${statuses()}`;
};

cases["half-closed-in-the-middle-of-a-length"] = async (name) => {
  const { wire, ended, statuses } = socket();
  wire.end(`${head("POST", `/held/${name}`, "Content-Length: 100\r\n")}half`);
  return `${await ended} ${statuses()}`;
};

cases["half-closed-in-the-middle-of-a-chunk"] = async (name) => {
  const { wire, ended, statuses } = socket();
  wire.end(`${head("POST", `/held/${name}`, "Transfer-Encoding: chunked\r\n")}ff\r\nhalf`);
  return `${await ended} ${statuses()}`;
};

cases["a-body-that-stops"] = async (name) => {
  const { wire, ended, statuses } = socket();
  wire.write(`${head("POST", `/ok/${name}`, "Content-Length: 100000\r\n")}some`);
  return `${await ended} ${statuses()}`;
};

cases["expects-to-be-told-and-then-sends-nothing"] = async (name) => {
  const { wire, ended, statuses } = socket();
  wire.write(head("POST", `/ok/${name}`, "Content-Length: 100000\r\nExpect: 100-continue\r\n"));
  return `${await ended} ${statuses()}`;
};

cases["a-head-that-stops"] = async (name) => {
  const { wire, ended, statuses } = socket();
  wire.write(head("GET", `/ok/${name}`).slice(0, -2));
  return `${await ended} ${statuses()}`;
};

cases["one-request-in-single-bytes"] = async (name) => {
  const { wire, ended, statuses } = socket();
  for (const byte of head("GET", `/ok/${name}`, "Connection: close\r\n")) {
    wire.write(byte);
    await new Promise(setImmediate);
  }
  return `${await ended} ${statuses()}`;
};

cases["an-answer-read-slowly-and-left"] = async (name) => {
  const { wire } = socket();
  wire.write(head("GET", `/large/${name}`));
  await once(wire, "data");
  wire.pause();
  await pause(200);
  wire.resetAndDestroy();
  return "gone";
};

cases["fetch-aborted-in-the-middle-of-an-upload"] = async (name) => {
  const abort = new AbortController();
  const body = Readable.toWeb(
    Readable.from(
      (async function* () {
        yield Buffer.alloc(1000);
        await pause(200);
        abort.abort();
        yield Buffer.alloc(1000);
      })(),
    ),
  );
  const call = fetch(`${origin}/held/${name}`, { method: "POST", headers: { "x-api-key": key }, body, duplex: "half", signal: abort.signal });
  return call.then((answer) => `answered ${answer.status}`).catch((error) => error.name);
};

cases["http-destroyed-in-the-middle-of-an-answer"] = (name) =>
  new Promise((resolve) => {
    const call = http.get(`${origin}/large/${name}`, { headers: { "x-api-key": key }, agent: false }, (answer) => {
      answer.once("data", () => call.destroy());
      answer.once("close", () => resolve(answer.complete ? "whole" : "broken"));
      answer.on("error", () => {});
    });
    call.on("error", () => {});
  });

cases["http2-cancelled-in-the-middle-of-an-upload"] = async (name) => {
  const client = session();
  const stream = request(client, name, "held", { ":method": "POST" });
  stream.write("half");
  await pause(200);
  // Node ends the stream first, so this is a whole upload by the letter.
  stream.close(http2.constants.NGHTTP2_CANCEL);
  return `${await fate(stream)}, ${await good(client, name)}`;
};

cases["http2-destroyed-while-it-waits"] = async (name) => {
  const client = session();
  const streams = Array.from({ length: 10 }, () => request(client, name, "begun"));
  await Promise.all(streams.map((stream) => once(stream, "response")));
  client.destroy();
  await Promise.all(streams.map(fate));
  return "gone";
};

cases["http2-with-a-shut-window-and-gone"] = async (name) => {
  const client = session({ initialWindowSize: 0 });
  const stream = request(client, name, "large");
  await once(stream, "response");
  await pause(200);
  client.destroy();
  return "gone";
};

cases["http2-settings-and-pings-in-the-middle"] = async (name) => {
  const client = session();
  const stream = request(client, name, "large");
  const told = fate(stream);
  for (let turn = 0; turn < 50; turn += 1) {
    // Node itself ends a session with too many of these unanswered.
    await new Promise((resolve) => client.settings({ initialWindowSize: 65_535 + turn, headerTableSize: turn * 64 }, resolve));
    await new Promise((resolve) => client.ping(resolve));
  }
  return `${await told}, ${await good(client, name)}`;
};

cases["http2-says-goodbye-and-asks-again"] = async (name) => {
  const client = session();
  const stream = request(client, name);
  client.goaway(http2.constants.NGHTTP2_NO_ERROR);
  const told = await fate(stream);
  client.destroy();
  return told;
};

const told = async ([name, run]) => {
  const outcome = await run(name).catch((error) => `${error.name}: ${error.message}`);
  console.log(JSON.stringify({ case: name, fate: outcome }));
};
await Promise.all(Object.entries(cases).map(told));
process.exit(0);
