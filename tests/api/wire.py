"""Bytes on a socket, and a strict reader of event streams: what polite clients would never send or miss."""

import json
import socket
import struct
import time
from typing import Any

CHAT = {"model": "penstock-tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "seed": 1}
TEXT = {"model": "penstock-tiny", "prompt": "def f(", "max_tokens": 4, "seed": 1}


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def head(method: str, path: str, **headers: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [
        f"{name.replace('_', '-')}: {value}" for name, value in ({"host": "localhost"} | headers).items()
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def post(path: str, body: Any, **headers: object) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content_type": "application/json", "content_length": len(data)} | headers
    return head("POST", path, **fields) + data


def exchange(port: int, data: bytes, *, until_closed: bool = False) -> bytes:
    """Send, then read one answer (or everything until the server closes). b"": closed without an answer."""
    with connect(port) as wire:
        wire.sendall(data)
        return read_all(wire) if until_closed else read_answer(wire, has_body=not data.startswith(b"HEAD"))


def read_all(wire: socket.socket) -> bytes:
    got = b""
    try:
        while piece := wire.recv(65536):
            got += piece
    except ConnectionResetError:
        pass
    return got


def read_answer(wire: socket.socket, *, has_body: bool = True) -> bytes:
    got = b""
    while b"\r\n\r\n" not in got:
        try:
            piece = wire.recv(65536)
        except ConnectionResetError:
            return got
        if not piece:
            return got
        got += piece
    top, _, body = got.partition(b"\r\n\r\n")
    for line in top.split(b"\r\n") if has_body else ():
        if line.lower().startswith(b"content-length:"):
            while len(body) < int(line.partition(b":")[2]):
                body += wire.recv(65536)
    return top + b"\r\n\r\n" + body


def status(answer: bytes) -> int:
    """0: closed without an answer."""
    return int(answer.split(b" ", 2)[1]) if answer else 0


def reset(wire: socket.socket) -> None:
    """Close with RST."""
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


def events_of(text: str) -> list[Any]:
    """The JSON of every event of a stream; "[DONE]" as itself. AssertionError where it is no event stream."""
    assert text.endswith("\n\n"), "a stream ends with a whole event"
    events: list[Any] = []
    for block in text[:-2].split("\n\n"):
        lines = block.split("\n")
        data = [line for line in lines if line.startswith("data: ")]
        assert len(data) == 1, block
        assert all(line.startswith(("data: ", "event: ")) for line in lines), block
        events.append(data[0][6:] if data[0] == "data: [DONE]" else json.loads(data[0][6:]))
    return events


def wait_until(condition: Any, timeout_s: float = 10.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.005)
