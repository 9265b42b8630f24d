"""What passes between a prover of grammars and its worker, framed by its length."""

import struct
from typing import BinaryIO

import msgspec

from penstock.request import GrammarSpec

LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 256 << 20


class Vocabulary(msgspec.Struct, frozen=True):
    """`tokens[id]`: its bytes, empty for an id without text. `eos_ids` end a text; specials are no text."""

    tokens: tuple[bytes, ...]
    special_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]


class Verdict(msgspec.Struct, frozen=True):
    """`refusal` is empty for a grammar that compiles. `is_limit`: it costs too much."""

    refusal: str = ""
    is_limit: bool = False


def read_frame(stream: BinaryIO) -> bytes | None:
    """None: nobody writes any more."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    frame = stream.read(size) if size <= MAX_FRAME_BYTES else b""
    return frame if len(frame) == size else None


def frame_of(value: Vocabulary | GrammarSpec | Verdict) -> bytes:
    body = msgspec.msgpack.encode(value)
    return LENGTH.pack(len(body)) + body
