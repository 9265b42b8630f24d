"""GGUF headers: what is read, and every hostile one refused with its code, in one line."""

import struct
from pathlib import Path

import pytest

from penstock.errors import ModelLoadError
from penstock.weights.gguf_file import read_gguf
from penstock.weights.gguf_splits import read_splits

U8, U32, FLOAT, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
F32, Q4_0, Q2_K = 0, 2, 10


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: bytes | str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: bytes | str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(
    keys: list[bytes],
    tensors: list[bytes],
    data: bytes,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    count = len(tensors) if num_tensors is None else num_tensors
    head = magic + struct.pack("<IQQ", version, count, len(keys) if num_keys is None else num_keys)
    head += b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + data


KEYS = [key("general.architecture", STRING, text("llama")), key("a.bool", BOOL, b"\1")]
ONE = [tensor("w", (4, 2), F32, 0)]
GOOD = gguf(KEYS, ONE, bytes(32))


def align(value: int, kind: int = U32, packing: str = "<I") -> bytes:
    return key("general.alignment", kind, struct.pack(packing, value))


def strings(count: int, *values: str) -> bytes:
    return struct.pack("<IQ", STRING, count) + b"".join(map(text, values))


HOSTILE = {
    "bad magic": (gguf(KEYS, ONE, bytes(32), magic=b"GGML"), "bad_header"),
    "version 0": (gguf(KEYS, ONE, bytes(32), version=0), "bad_header"),
    "version 1": (gguf(KEYS, ONE, bytes(32), version=1), "bad_header"),
    "a future version": (gguf(KEYS, ONE, bytes(32), version=4), "bad_header"),
    "big-endian": (gguf(KEYS, ONE, bytes(32), version=3 << 24), "bad_header"),
    "2^64-1 tensors": (gguf(KEYS, ONE, bytes(32), num_tensors=2**64 - 1), "bad_header"),
    "2^64-1 keys": (gguf(KEYS, ONE, bytes(32), num_keys=2**64 - 1), "bad_header"),
    "a key more than there is": (gguf(KEYS, [], b"", num_keys=3), "bad_header"),
    "a key of 2^64-1 bytes": (gguf([struct.pack("<Q", 2**64 - 1)], ONE, bytes(64)), "bad_header"),
    "a key past the end": (gguf([struct.pack("<Q", 60000)], ONE, bytes(64)), "truncated"),
    "an empty key": (gguf([key("", U8, b"\0")], ONE, bytes(32)), "bad_header"),
    "a key that is not UTF-8": (gguf([key(b"\xff\xfe", U8, b"\0")], ONE, bytes(32)), "bad_header"),
    "an unknown value type": (gguf([key("a", 13, bytes(8))], ONE, bytes(32)), "bad_header"),
    "a key twice": (gguf([*KEYS, KEYS[1]], ONE, bytes(32)), "bad_header"),
    "a bool of 2": (gguf([key("a", BOOL, b"\2")], ONE, bytes(32)), "bad_header"),
    "alignment 0": (gguf([align(0)], ONE, bytes(32)), "bad_header"),
    "alignment 13": (gguf([align(13)], ONE, bytes(32)), "bad_header"),
    "alignment 2^31": (gguf([align(2**31)], ONE, bytes(32)), "bad_header"),
    "alignment of 64 bits": (gguf([align(32, U64, "<Q")], ONE, bytes(32)), "bad_header"),
    "a string longer than the file": (
        gguf([key("a", STRING, struct.pack("<Q", 2**63))], ONE, bytes(32)), "truncated",
    ),
    "an array longer than the file": (
        gguf([key("a", ARRAY, struct.pack("<IQ", U32, 2**62))], ONE, bytes(32)), "truncated",
    ),
    "2^40 strings": (gguf([key("a", ARRAY, strings(2**40, "x"))], ONE, bytes(32)), "truncated"),
    "an array of arrays": (
        gguf([key("a", ARRAY, struct.pack("<IQ", ARRAY, 1))], ONE, bytes(32)), "bad_header",
    ),
    "an array of an unknown type": (
        gguf([key("a", ARRAY, struct.pack("<IQ", 99, 1))], ONE, bytes(32)), "bad_header",
    ),
    "a name too long": (gguf(KEYS, [tensor("w" * 300, (4, 2), F32, 0)], bytes(32)), "bad_header"),
    "an empty name": (gguf(KEYS, [tensor("", (4, 2), F32, 0)], bytes(32)), "bad_tensor_info"),
    "no dimensions": (gguf(KEYS, [tensor("w", (), F32, 0)], bytes(64)), "bad_tensor_info"),
    "5 dimensions": (gguf(KEYS, [tensor("w", (1, 1, 1, 1, 1), F32, 0)], bytes(32)), "bad_tensor_info"),
    "2^32-1 dimensions": (
        gguf(KEYS, [text("w") + struct.pack("<I", 2**32 - 1)], bytes(64)), "bad_tensor_info",
    ),
    "a dimension of 0": (gguf(KEYS, [tensor("w", (0, 2), F32, 0)], bytes(32)), "bad_tensor_info"),
    "a negative dimension": (gguf(KEYS, [tensor("w", (2**64 - 1,), F32, 0)], bytes(32)), "bad_tensor_info"),
    "a product past 2^63": (gguf(KEYS, [tensor("w", (2**32, 2**32), F32, 0)], bytes(32)), "bad_tensor_info"),
    "an exabyte": (gguf(KEYS, [tensor("w", (2**60,), F32, 0)], bytes(32)), "truncated"),
    "an unknown tensor type": (gguf(KEYS, [tensor("w", (4, 2), 77, 0)], bytes(32)), "bad_tensor_info"),
    "a type that is not read": (gguf(KEYS, [tensor("w", (256,), Q2_K, 0)], bytes(96)), "dtype_unsupported"),
    "half a block": (gguf(KEYS, [tensor("w", (16, 2), Q4_0, 0)], bytes(64)), "bad_tensor_info"),
    "an offset that is not aligned": (
        gguf(KEYS, [tensor("w", (4, 2), F32, 4)], bytes(64)), "bad_tensor_info",
    ),
    "an offset past the end": (gguf(KEYS, [tensor("w", (4, 2), F32, 32)], bytes(32)), "bad_tensor_info"),
    "tensors that overlap": (
        gguf(KEYS, [*ONE, tensor("v", (4, 2), F32, 0)], bytes(64)), "bad_tensor_info",
    ),
    "a hole": (gguf(KEYS, [*ONE, tensor("v", (4, 2), F32, 96)], bytes(128)), "bad_tensor_info"),
    "a tensor twice": (gguf(KEYS, [*ONE, *ONE], bytes(64)), "bad_tensor_info"),
    "data missing": (GOOD[:-1], "truncated"),
    "bytes after the last tensor": (GOOD + bytes(64), "bad_tensor_info"),
    "an empty file": (b"", "bad_header"),
}  # fmt: skip


def read(tmp_path: Path, content: bytes):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return read_gguf(path)


def test_a_good_file_is_read(tmp_path):
    file = read(tmp_path, GOOD)

    assert file.metadata == {"general.architecture": "llama", "a.bool": True}
    assert file.tensors["w"].shape == (2, 4)
    assert file.tensors["w"].blocks.nbytes == 32


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_its_code(name, tmp_path):
    content, code = HOSTILE[name]
    with pytest.raises(ModelLoadError) as error:
        read(tmp_path, content)

    assert error.value.code == code, str(error.value)
    assert "\n" not in str(error.value)


def test_arrays_keep_their_values(tmp_path):
    array = key("a", ARRAY, strings(2, "one", "two"))
    numbers = key("n", ARRAY, struct.pack("<IQ3f", FLOAT, 3, 1, 2, 3))
    file = read(tmp_path, gguf([array, numbers], ONE, bytes(32)))

    assert file.metadata["a"] == ["one", "two"]
    assert file.metadata["n"].tolist() == [1, 2, 3]


def test_every_truncation_is_refused(tmp_path):
    for length in range(len(GOOD)):
        with pytest.raises(ModelLoadError):
            read(tmp_path, GOOD[:length])


def split(folder: Path, number: int, count: int, *, said: tuple[int, int], total: int = 2) -> Path:
    keys = [
        key("split.no", U32, struct.pack("<I", said[0])),
        key("split.count", U32, struct.pack("<I", said[1])),
        key("split.tensors.count", U32, struct.pack("<I", total)),
    ]
    path = folder / f"m-{number:05}-of-{count:05}.gguf"
    path.write_bytes(gguf(keys, [tensor(f"w{number}", (4, 2), F32, 0)], bytes(32)))
    return path


def test_splits_are_read_together(tmp_path):
    split(tmp_path, 2, 2, said=(1, 2))
    files = read_splits(split(tmp_path, 1, 2, said=(0, 2)))

    assert [list(file.tensors) for file in files.values()] == [["w1"], ["w2"]]


@pytest.mark.parametrize(
    ("second", "total", "code"),
    [(None, 2, "missing_shard"), ((1, 3), 2, "bad_index"), ((1, 2), 5, "bad_index")],
)
def test_splits_that_do_not_fit_are_refused(second, total, code, tmp_path):
    first = split(tmp_path, 1, 2, said=(0, 2), total=total)
    if second is not None:
        split(tmp_path, 2, 2, said=second, total=total)
    with pytest.raises(ModelLoadError) as error:
        read_splits(first)

    assert error.value.code == code
