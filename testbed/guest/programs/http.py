"""A small web server on port 80: which host serves the page, and how often it was asked (RFC 9110, RFC 9112).

    GET, HEAD  /            a page that names the host and counts requests
    GET, HEAD  /counter     the same as JSON
    POST       any of them  the body is taken and counted: JSON

HTTP/1.1 and 1.0, keep-alive, pipelining, `Expect: 100-continue`. A request waits in the inbox until it is
whole, so it can be half received on one host and answered on the other.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import Any

from testbed.guest.connections import Connection
from testbed.guest.program import Program

HEAD_LIMIT_BYTES = 16 << 10
BODY_LIMIT_BYTES = 256 << 10
BATCH = 16
"""Requests answered in one step."""

REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
}
ALLOWED = ("GET", "HEAD", "POST")
PATHS = ("/", "/counter")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Refused(Exception):
    """The request is answered with an error, and the connection is closed: where the next one begins is not
    known.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    keep_alive: bool
    body_bytes: int
    expects_continue: bool


def parse_head(head: bytes) -> Request:
    """The request whose head (without the empty line) is `head`. Raises Refused. Pure."""
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or parts[2] not in ("HTTP/1.0", "HTTP/1.1"):
        raise Refused(400, "the request line is not METHOD target HTTP/1.1")
    method, target, version = parts
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise Refused(400, "a header line is not name: value")
        name, value = name.lower(), value.strip(" \t")
        if name in ("content-length", "host") and fields.get(name, value) != value:
            raise Refused(400, f"{name} is given twice")
        fields[name] = value
    if version == "HTTP/1.1" and "host" not in fields:
        raise Refused(400, "a request of HTTP/1.1 has a Host")
    if "transfer-encoding" in fields:
        raise Refused(411, "a body needs a Content-Length")
    length = fields.get("content-length")
    if length is None and method == "POST":
        raise Refused(411, "a POST needs a Content-Length")
    if length is not None and not (length.isascii() and length.isdigit()):
        raise Refused(400, "the Content-Length is not a number")
    if length is not None and (len(length) > 18 or int(length) > BODY_LIMIT_BYTES):
        raise Refused(413, f"a body has at most {BODY_LIMIT_BYTES} bytes")
    options = [option.strip() for option in fields.get("connection", "").lower().split(",")]
    keep_alive = "keep-alive" in options if version == "HTTP/1.0" else "close" not in options
    expects = version == "HTTP/1.1" and fields.get("expect", "").lower() == "100-continue"
    return Request(method, target.partition("?")[0], keep_alive, int(length or 0), expects)


class Http(Program):
    port = 80
    connection_state_bytes = 8  # 1 when "100 Continue" was sent for the request in the inbox

    def attach(self) -> None:
        self.requests = self.memory.counter("http.requests")
        self.errors = self.memory.counter("http.errors")
        self.body_bytes = self.memory.counter("http.body-bytes")

    def received(self, connection: Connection) -> None:
        if connection.congested:
            return
        for _ in range(BATCH):
            if not self._one(connection):
                return
        connection.again()

    def stats(self) -> dict[str, Any]:
        return {
            "requests": self.requests.value,
            "errors": self.errors.value,
            "body_bytes": self.body_bytes.value,
        }

    def _one(self, connection: Connection) -> bool:
        """Answer the first request of the inbox. False when it is not whole yet, or was the last."""
        start = bytes(connection.inbox[:HEAD_LIMIT_BYTES])
        blank = len(start) - len(start.lstrip(b"\r\n"))
        if blank:  # empty lines before a request are skipped: RFC 9112, 2.2
            connection.consume(blank)
            start = start[blank:]
        end = start.find(b"\r\n\r\n")
        try:
            if end < 0:
                if len(start) + blank >= HEAD_LIMIT_BYTES:
                    raise Refused(431, f"the head of a request has at most {HEAD_LIMIT_BYTES} bytes")
                return False
            request = parse_head(start[:end])
        except Refused as refused:
            self.requests.add()
            self._answer(connection, refused.status, f"{refused}\n".encode(), keep_alive=False)
            return False
        whole = end + 4 + request.body_bytes
        if len(connection.inbox) < whole:
            if request.expects_continue and not connection.state[0]:
                connection.state[0] = 1
                connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            return False
        connection.state[0] = 0
        connection.consume(whole)
        self._serve(connection, request)
        return request.keep_alive and not connection.congested and len(connection.inbox) > 0

    def _serve(self, connection: Connection, request: Request) -> None:
        count = self.requests.add()
        status, kind = 200, "text/plain; charset=utf-8"
        if request.method not in ALLOWED:
            status, body = 405, f"{request.method} is not one of {', '.join(ALLOWED)}\n".encode()
        elif request.path not in PATHS:
            status, body = 404, f"no {request.path} here: {', '.join(PATHS)}\n".encode()
        elif request.method == "POST" or request.path == "/counter":
            self.body_bytes.add(request.body_bytes)
            facts = {"host": self.host, "requests": count, "body_bytes": request.body_bytes}
            kind, body = "application/json", json.dumps(facts).encode() + b"\n"
        else:
            kind, body = "text/html; charset=utf-8", self._page(count)
        self._answer(
            connection,
            status,
            body,
            kind=kind,
            keep_alive=request.keep_alive,
            head_only=request.method == "HEAD",
        )

    def _page(self, count: int) -> bytes:
        """The empty icon keeps a browser from asking for /favicon.ico, which would count, and as an error."""
        host = html.escape(self.host or "an unnamed host")
        return (
            f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{host}</title>\n"
            f"<link rel=icon href='data:,'>\n"
            f"<h1>Served by {host}</h1>\n<p>{count} requests so far, wherever they were served.</p>\n"
            "</html>\n"
        ).encode()

    def _answer(
        self,
        connection: Connection,
        status: int,
        body: bytes,
        *,
        keep_alive: bool,
        kind: str = "text/plain; charset=utf-8",
        head_only: bool = False,
    ) -> None:
        if status != 200:
            self.errors.add()
        allow = f"Allow: {', '.join(ALLOWED)}\r\n" if status == 405 else ""
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"{allow}Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
        )
        connection.send(head.encode() + (b"" if head_only else body))
        if not keep_alive:
            connection.close()
