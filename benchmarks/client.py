"""HTTP and event streams over asyncio with little Python per request: it costs less than the server.

Used by the soak and by the measurements of overload and of open streams.
"""

import asyncio
import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"


@dataclass(slots=True)
class Reply:
    """`status` 0: the connection ended without a whole answer. Times count from when it was to be sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    first_s: float | None = None  # to the first byte of the body
    total_s: float = 0.0

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def text(self) -> str:
        """Of a completion: the whole answer's, or its stream's put together."""
        if self.is_stream:
            return "".join(event["choices"][0]["text"] for event in self.events if event.get("choices"))
        return str(json.loads(self.body)["choices"][0]["text"])

    @property
    def events(self) -> list[dict[str, Any]]:  # Any: JSON
        blocks = self.body.decode().split("\n\n")
        data = (block.partition("data: ")[2] for block in blocks)
        return [json.loads(one) for one in data if one and one != "[DONE]"]

    @property
    def is_whole(self) -> bool:
        if self.is_stream:
            return self.body.endswith(b"data: [DONE]\n\n")
        return self.status == 200


def post(path: str, body: object, **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        "connection: close",
    ]
    lines += [f"content-length: {len(data)}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


async def open_socket(port: int, receive_bytes: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`receive_bytes`: how little this client takes at a time."""
    wire = socket.socket()
    wire.setblocking(False)
    if receive_bytes:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await asyncio.get_running_loop().sock_connect(wire, (HOST, port))
    return await asyncio.open_connection(sock=wire, limit=receive_bytes or 2**16)


async def ask(port: int, data: bytes, *, due_s: float | None = None, timeout_s: float = 120.0) -> Reply:
    """Send a request on a connection of its own, read its answer to the end."""
    began_s = time.perf_counter() if due_s is None else due_s
    reply = Reply()
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await open_socket(port)
            writer.write(data)
            await read_reply(reader, reply, began_s)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        reply.status = 0
    finally:
        if writer is not None:
            writer.close()
    reply.total_s = time.perf_counter() - began_s
    return reply


async def read_reply(reader: asyncio.StreamReader, reply: Reply, began_s: float) -> None:
    """The head, then the body as its length or its chunks say. IncompleteReadError: it was cut."""
    top = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    for line in top[1:]:
        name, _, value = line.partition(":")
        reply.headers[name.lower()] = value.strip()
    if "content-length" in reply.headers:
        reply.body = await reader.readexactly(int(reply.headers["content-length"]))
        reply.first_s = time.perf_counter() - began_s
    else:
        pieces = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            pieces.append((await reader.readexactly(size + 2))[:-2])
            if reply.first_s is None:
                reply.first_s = time.perf_counter() - began_s
        reply.body = b"".join(pieces)
    reply.status = int(top[0].split()[1])
