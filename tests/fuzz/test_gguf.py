"""Every byte of a small GGUF header, changed in every simple way: a typed error, or tensors of the file."""

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ModelLoadError
from penstock.weights.gguf_file import read_gguf
from penstock.weights.readers.gguf import checkpoint_of


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


KEYS = [
    key("general.architecture", 8, text("llama")),
    key("general.alignment", 4, struct.pack("<I", 32)),
    key("llama.attention.head_count", 4, struct.pack("<I", 2)),
    key("tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
    key("scores", 9, struct.pack("<IQ2f", 6, 2, 0.5, 1.5)),
]
TENSORS = [
    text("blk.0.attn_q.weight") + struct.pack("<IQQIQ", 2, 32, 4, 2, 0),  # Q4_0, 4 rows of 18 bytes
    text("output_norm.weight") + struct.pack("<IQIQ", 1, 8, 0, 96),
]
HEAD = b"GGUF" + struct.pack("<IQQ", 3, len(TENSORS), len(KEYS)) + b"".join(KEYS) + b"".join(TENSORS)
START = -(-len(HEAD) // 32) * 32
WHOLE = HEAD + bytes(START - len(HEAD)) + bytes(range(72)) + bytes(24) + bytes(32)


def check(path: Path, content: bytes) -> bool:
    """Whether it was read; anything but that or a typed error fails the test."""
    path.write_bytes(content)
    try:
        file = read_gguf(path)
        tensors = checkpoint_of({path: file}).tensors
    except ModelLoadError as error:
        assert str(error).isprintable()
        return False
    assert sum(tensor.blocks.nbytes for tensor in file.tensors.values()) <= len(content)
    for tensor in tensors.values():
        if hasattr(tensor, "decode"):
            tensor.decode(slice(0, tensor.shape[0]))
    return True


@pytest.mark.slow
def test_any_changed_byte_is_refused_or_read_within_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    assert check(path, WHOLE)
    num_read = 0
    for at in range(START):
        for byte in (0x00, 0xFF, *(WHOLE[at] ^ (1 << bit) for bit in range(8))):
            num_read += check(path, WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :])

    assert 0 < num_read < START * 10


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for length in range(len(WHOLE)):
        assert not check(path, WHOLE[:length]), length


@settings(max_examples=300, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, START - 1), st.integers(0, 255)), min_size=2, max_size=12))
def test_many_changed_bytes_at_once(tmp_path_factory: pytest.TempPathFactory, edits) -> None:
    content = bytearray(WHOLE)
    for at, byte in edits:
        content[at] = byte
    check(tmp_path_factory.getbasetemp() / "many.gguf", bytes(content))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300))
def test_noise_after_the_magic(tmp_path_factory: pytest.TempPathFactory, content) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.gguf"
    check(path, b"GGUF" + struct.pack("<I", 3) + content)
