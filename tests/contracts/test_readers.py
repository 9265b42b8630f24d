"""Every reader keeps the promises of penstock.weights.reader.Reader; each has its own table of damages."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from penstock.errors import ModelLoadError
from penstock.weights.reader import READERS, read_checkpoint

Header = dict[str, Any]  # Any: JSON, right or wrong
INDEX = "model.safetensors.index.json"
CODES = {"bad_header", "bad_tensor_info", "truncated", "missing_shard", "bad_index",
         "dtype_unsupported", "io_error", "unsupported_format"}  # fmt: skip

A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.array([1, -2, 0.5], ml_dtypes.bfloat16)


def info(dtype: str, shape: list[Any], begin: int, end: int) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def whole() -> Header:
    return {"__metadata__": {"format": "pt"}, "a": info("F32", [3, 4], 0, 48), "b": info("BF16", [3], 48, 54)}


DATA = A.tobytes() + B.tobytes()


def file_bytes(header: Header | bytes, data: bytes = DATA, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if isinstance(header, dict):
        text += b" " * (-len(text) % 8)
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def changed(**entries: Any) -> Header:
    return {**whole(), **entries}


def without(*names: str) -> Header:
    return {name: entry for name, entry in whole().items() if name not in names}


GOOD = file_bytes(whole())
PICKLE = b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00cposix\nsystem\n"

# what it is -> (bytes of model.safetensors, code)
FILES: dict[str, tuple[bytes, str]] = {
    **{f"{size} bytes": (GOOD[:size], "bad_header") for size in range(8)},
    "header length 0": (file_bytes(b"", length=0), "bad_header"),
    "header length 1": (file_bytes(b"{", length=1), "bad_header"),
    "header over 100 MB": (file_bytes(whole(), length=100_000_001), "bad_header"),
    "header past the file": (file_bytes(whole(), length=len(GOOD) - 7), "bad_header"),
    "header length 2^63": (file_bytes(whole(), length=2**63), "bad_header"),
    "header length 2^64 - 1": (file_bytes(whole(), length=2**64 - 1), "bad_header"),
    "header not UTF-8": (file_bytes(b'{"\xff\xfe": 1}'), "bad_header"),
    "header in UTF-16": (file_bytes('{"a": 1}'.encode("utf-16")), "bad_header"),
    "header with a BOM": (file_bytes(b"\xef\xbb\xbf" + json.dumps(whole()).encode()), "bad_header"),
    "header a list": (file_bytes(b"[]"), "bad_header"),
    "header a number": (file_bytes(b"42"), "bad_header"),
    "header after a space": (file_bytes(b" " + json.dumps(whole()).encode()), "bad_header"),
    "header bad JSON": (file_bytes(b"{'a': 1}"), "bad_header"),
    "header with trailing text": (file_bytes(json.dumps(whole()).encode() + b"}"), "bad_header"),
    "header with NaN": (file_bytes(b'{"a": NaN}'), "bad_header"),
    "header with 10,000 digits": (file_bytes(b'{"a": ' + b"9" * 10_000 + b"}"), "bad_header"),
    "a tensor twice": (file_bytes(b'{"a": 1, "a": 2}'), "bad_header"),
    "a depth bomb": (file_bytes(b'{"a":' + b"[" * 100_000), "bad_header"),
    "metadata a list": (file_bytes(changed(__metadata__=[])), "bad_header"),
    "metadata null": (file_bytes(changed(__metadata__=None)), "bad_header"),
    "metadata with numbers": (file_bytes(changed(__metadata__={"x": 1})), "bad_header"),
    "entry a number": (file_bytes(changed(a=1)), "bad_tensor_info"),
    "entry without dtype": (file_bytes(changed(a={"shape": [], "data_offsets": []})), "bad_tensor_info"),
    "entry with more": (file_bytes(changed(a={**info("F32", [3, 4], 0, 48), "x": 1})), "bad_tensor_info"),
    "start after end": (file_bytes(changed(a=info("F32", [3, 4], 48, 0))), "bad_tensor_info"),
    "overlap": (file_bytes(changed(b=info("BF16", [3], 46, 52))), "bad_tensor_info"),
    "the same span twice": (file_bytes(changed(c=info("F32", [3, 4], 0, 48))), "bad_tensor_info"),
    "a hole": (file_bytes(changed(b=info("BF16", [3], 50, 56)), DATA + b"xx"), "bad_tensor_info"),
    "a hole at the start": (file_bytes(without("a")), "bad_tensor_info"),
    "bytes after the end": (file_bytes(whole(), DATA + b"x"), "bad_tensor_info"),
    "data without tensors": (file_bytes({}), "bad_tensor_info"),
    "unaligned": (
        file_bytes({"b": info("U8", [1], 0, 1), "a": info("F32", [1], 1, 5)}, b"12345"), "bad_tensor_info"
    ),
    "shape of 2^32 x 2^32": (file_bytes(changed(a=info("F32", [2**32, 2**32], 0, 48))), "bad_tensor_info"),
    "shape that wraps": (file_bytes(changed(a=info("F32", [2**62 + 3, 4], 0, 48))), "bad_tensor_info"),
    "shape of 0 x 2^62 x 2^62": (
        file_bytes(changed(c=info("BF16", [0, 2**62, 2**62], 54, 54))), "bad_tensor_info"
    ),
    "shape other than the span": (file_bytes(changed(a=info("F32", [3, 5], 0, 48))), "bad_tensor_info"),
    "shape negative": (file_bytes(changed(a=info("F32", [-3, -4], 0, 48))), "bad_tensor_info"),
    "shape of fractions": (file_bytes(changed(a=info("F32", [3.0, 4.0], 0, 48))), "bad_tensor_info"),
    "shape of booleans": (file_bytes(changed(b=info("BF16", [True, 3], 48, 54))), "bad_tensor_info"),
    "shape of texts": (file_bytes(changed(a=info("F32", ["3", "4"], 0, 48))), "bad_tensor_info"),
    "shape no list": (file_bytes(changed(a={**info("F32", [3, 4], 0, 48), "shape": 12})), "bad_tensor_info"),
    "shape of 9 dims": (file_bytes(changed(a=info("F32", [1] * 8 + [12], 0, 48))), "bad_tensor_info"),
    "three offsets": (
        file_bytes(changed(a={**info("F32", [3, 4], 0, 48), "data_offsets": [0, 48, 48]})), "bad_tensor_info"
    ),
    "offsets negative": (file_bytes(changed(a=info("F32", [3, 4], -48, 0))), "bad_tensor_info"),
    "offsets of 2^64": (file_bytes(changed(a=info("F32", [3, 4], 2**64, 2**64 + 48))), "bad_tensor_info"),
    "past the end": (file_bytes(changed(c=info("BF16", [3], 54, 60))), "truncated"),
    "cut in the data": (GOOD[:-1], "truncated"),
    "all data missing": (GOOD[: -len(DATA)], "truncated"),
    "dtype unknown": (file_bytes(changed(a=info("F7", [3, 4], 0, 48))), "dtype_unsupported"),
    "dtype a list": (file_bytes(changed(a={**info("", [12], 0, 48), "dtype": []})), "dtype_unsupported"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n", "unsupported_format"
    ),
    "HTML page": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "unsupported_format"),
    "HTML after blanks": (b"\n \n  <html><body>Sign in</body></html>", "unsupported_format"),
    "zip": (b"PK\x03\x04" + bytes(100), "unsupported_format"),
    "gzip": (b"\x1f\x8b\x08\x00" + b"\x12" * 100, "unsupported_format"),
    "pickle": (PICKLE * 3, "unsupported_format"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(100), "unsupported_format"),
}  # fmt: skip


def refusal(folder: Path) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as caught:
        read_checkpoint(folder)
    line = str(caught.value)

    assert caught.value.code in CODES
    assert line.isprintable()
    assert len(line) < 600
    return caught.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(GOOD)
    return tmp_path


def test_every_reader_has_a_table_of_damages() -> None:
    """gguf's is in tests/unit/weights/test_gguf_file.py."""
    assert list(READERS) == ["gguf", "safetensors"]


def test_what_is_whole_is_read_bit_for_bit_and_read_only(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)

    assert {name: (t.dtype, t.shape) for name, t in checkpoint.tensors.items()} == {
        "a": (np.dtype(np.float32), (3, 4)),
        "b": (np.dtype(ml_dtypes.bfloat16), (3,)),
    }
    assert checkpoint.tensors["a"].tobytes() == A.tobytes()
    assert checkpoint.tensors["b"].tobytes() == B.tobytes()
    assert not any(tensor.flags.writeable for tensor in checkpoint.tensors.values())


@pytest.mark.parametrize("damage", FILES)
def test_a_damaged_file_is_refused_with_its_code(tmp_path: Path, damage: str) -> None:
    content, code = FILES[damage]
    (tmp_path / "model.safetensors").write_bytes(content)
    error = refusal(tmp_path)

    assert error.code == code, str(error)
    assert "model.safetensors" in str(error)


def test_hints_say_what_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for damage, hint in (("LFS pointer", "git lfs pull"), ("pickle", "run code"), ("HTML page", "web page")):
        path.write_bytes(FILES[damage][0])

        assert hint in str(refusal(tmp_path))


def test_the_reading_of_pickles_finds_no_class(tmp_path: Path) -> None:
    """Nothing of a pickle runs: the interpreter's own audit would tell."""
    (tmp_path / "pytorch_model.bin").write_bytes(PICKLE)
    program = (
        "import sys\nfrom pathlib import Path\nfrom penstock.errors import ModelLoadError\n"
        "from penstock.weights.reader import read_checkpoint\n"
        "sys.addaudithook(lambda event, _: print(event) if event.startswith('pickle') else None)\n"
        "try:\n    read_checkpoint(Path(sys.argv[1]))\nexcept ModelLoadError as error:\n    print(error.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert done.stdout == "unsupported_format\n"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "x.ckpt", "x.pkl"])
def test_a_folder_of_pickles_is_refused_by_name_alone(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)  # to open it would hang

    assert refusal(tmp_path).code == "unsupported_format"


def test_an_empty_folder_holds_no_weights(tmp_path: Path) -> None:
    assert refusal(tmp_path).code == "missing_shard"


def test_scalars_empty_tensors_and_odd_headers_are_no_damage(tmp_path: Path) -> None:
    header = {
        "scalar": info("F32", [], 0, 4), "empty": info("F32", [0, 7], 4, 4), "last": info("F16", [1], 4, 6)
    }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (3 - len(text) % 8 if len(text) % 8 < 3 else 11 - len(text) % 8)
    data = np.float32(1.5).tobytes() + np.float16(2).tobytes()
    (tmp_path / "model.safetensors").write_bytes(file_bytes(text, data))
    tensors = read_checkpoint(tmp_path).tensors

    assert len(text) % 8 == 3
    assert tensors["scalar"].shape == ()
    assert float(tensors["scalar"]) == 1.5
    assert tensors["empty"].shape == (0, 7)
    assert tensors["last"].tolist() == [2]
    assert all(tensor.flags.aligned for tensor in tensors.values())


def test_a_header_whose_length_looks_like_another_format_is_read(tmp_path: Path) -> None:
    """60 is '<' and the first byte of a header of 60, 316, 572 ... bytes."""
    text = json.dumps(whole()).encode()
    text += b" " * ((60 - len(text)) % 256)
    (tmp_path / "model.safetensors").write_bytes(file_bytes(text))

    assert read_checkpoint(tmp_path).tensors["a"].tobytes() == A.tobytes()


@pytest.mark.parametrize(
    "name", ["a\nerror: forged", "\ud800", "\x1b[31m", "x" * 100_000, "\u202eabc", "\x00"]
)
def test_a_hostile_name_does_not_leave_its_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(file_bytes({name: info("F32", [3], 0, 48)}))

    assert refusal(tmp_path).code == "bad_tensor_info"


def test_a_header_that_declares_much_allocates_little(tmp_path: Path) -> None:
    """All that a file declares is compared with what it holds, so that a limit on memory is not met."""
    huge = {f"t{i}": info("F32", [2**40], i * 2**42, (i + 1) * 2**42) for i in range(4)}
    (tmp_path / "model.safetensors").write_bytes(file_bytes(huge))
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom penstock.errors import ModelLoadError\n"
        "from penstock.weights.reader import READERS, read_checkpoint\nlist(READERS)\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "limit = pages * resource.getpagesize() + (64 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try:\n    read_checkpoint(Path(sys.argv[1]))\nexcept ModelLoadError as error:\n    print(error.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert done.stdout == "truncated\n"


# Shards.


def shard(**tensors: np.ndarray) -> bytes:
    header, data = {}, b""
    for name, tensor in tensors.items():
        header[name] = info("F32", list(tensor.shape), len(data), len(data) + tensor.nbytes)
        data += tensor.tobytes()
    return file_bytes(header, data)


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
MAP = {"a": ONE, "b": ONE, "c": TWO}


def write_shards(folder: Path, index: Any = MAP) -> Path:
    (folder / ONE).write_bytes(shard(a=A, b=A + 1))
    (folder / TWO).write_bytes(shard(c=A + 2))
    if index is not None:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@pytest.mark.parametrize("index", [MAP, None])
def test_shards_are_one_checkpoint_with_and_without_an_index(tmp_path: Path, index: Any) -> None:
    tensors = read_checkpoint(write_shards(tmp_path, index)).tensors

    assert {name: tensor.tobytes() for name, tensor in tensors.items()} == {
        "a": A.tobytes(), "b": (A + 1).tobytes(), "c": (A + 2).tobytes()
    }  # fmt: skip


@pytest.mark.parametrize(
    ("index", "code"),
    [
        ({**MAP, "d": "model-00003-of-00003.safetensors"}, "missing_shard"),
        ({**MAP, "d": TWO}, "bad_index"),
        ({**MAP, "b": TWO}, "bad_index"),
        ({"a": ONE, "c": TWO}, "bad_index"),
        ({**MAP, "d": "../model.safetensors"}, "bad_index"),
        ({**MAP, "d": "/etc/passwd"}, "bad_index"),
        ({**MAP, "d": ".."}, "bad_index"),
        ({**MAP, "d": ""}, "bad_index"),
        ({**MAP, "d": "a\x00.safetensors"}, "bad_index"),
        ({**MAP, "d": "x" * 5000 + ".safetensors"}, "bad_index"),
        ({**MAP, "d": 3}, "bad_index"),
        ({}, "bad_index"),
        ([], "bad_index"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path, index: Any, code: str) -> None:
    assert refusal(write_shards(tmp_path, index)).code == code


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff", b'{"weight_map": {"a": "x", "a": "y"}}', b"[" * 100_000, b"{}"]
)
def test_an_index_that_is_no_index_is_refused(tmp_path: Path, text: bytes) -> None:
    (write_shards(tmp_path) / INDEX).write_bytes(text)

    assert refusal(tmp_path).code == "bad_index"


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for index in (MAP, None):
        (write_shards(tmp_path, index) / TWO).write_bytes(shard(c=A, a=A))
        if index is None:
            (tmp_path / INDEX).unlink(missing_ok=True)

        assert refusal(tmp_path).code == "bad_index"


@pytest.mark.parametrize("missing", [ONE, TWO])
@pytest.mark.parametrize("index", [MAP, None])
def test_a_missing_shard_is_named(tmp_path: Path, missing: str, index: Any) -> None:
    (write_shards(tmp_path, index) / missing).unlink()
    error = refusal(tmp_path)

    assert error.code == "missing_shard"
    assert missing in str(error)


def test_a_shard_cut_anywhere_in_its_data_is_truncated(tmp_path: Path) -> None:
    write_shards(tmp_path)
    for name in (ONE, TWO):
        content = (tmp_path / name).read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for size in np.linspace(start, len(content) - 1, 64).astype(int):
            (tmp_path / name).write_bytes(content[:size])

            assert refusal(tmp_path).code == "truncated"
        (tmp_path / name).write_bytes(content)


def test_the_single_file_goes_before_shards_and_other_files(folder: Path) -> None:
    write_shards(folder)
    (folder / "adapter.safetensors").write_bytes(shard(z=A))

    assert set(read_checkpoint(folder).tensors) == {"a", "b"}


# The file system.


def test_a_pipe_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")

    assert refusal(tmp_path).code == "io_error"


def test_a_folder_in_the_place_of_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()

    assert refusal(tmp_path).code == "io_error"


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(GOOD)
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").symlink_to(tmp_path / "elsewhere")

    assert refusal(model).code == "io_error"


@pytest.mark.parametrize("target", ["nowhere", "model.safetensors"])
def test_a_link_to_nothing_or_to_itself_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "model.safetensors").symlink_to(target)

    assert refusal(tmp_path).code == "io_error"


def test_links_inside_the_folder_and_those_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "f00").write_bytes(GOOD)
    (snapshot / "model.safetensors").symlink_to("../../blobs/f00")
    assert set(read_checkpoint(snapshot).tensors) == {"a", "b"}

    (snapshot / "model.safetensors").unlink()
    (snapshot / "real").write_bytes(GOOD)
    (snapshot / "model.safetensors").symlink_to("real")
    assert set(read_checkpoint(snapshot).tensors) == {"a", "b"}


@pytest.mark.parametrize("file", ["model.safetensors", INDEX])
def test_a_file_that_may_not_be_read_is_refused(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(GOOD) if file != INDEX else write_shards(tmp_path)
    opened = Path.open

    def deny(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == file:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", deny)
    error = refusal(tmp_path)

    assert error.code == "io_error"
    assert "Permission denied" in str(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").chmod(0)

    assert refusal(folder).code == "io_error"


def test_files_that_change_after_they_were_mapped_are_noticed(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    checkpoint.check_unchanged()
    path = folder / "model.safetensors"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(ModelLoadError) as caught:
        checkpoint.check_unchanged()
    path.unlink()
    with pytest.raises(ModelLoadError):
        checkpoint.check_unchanged()

    assert caught.value.code == "io_error"


def test_the_fingerprints_tell_rewrites_and_contents_apart(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    first = read_checkpoint(folder)
    os.utime(path, ns=(0, 1))
    touched = read_checkpoint(folder)
    path.write_bytes(GOOD[:-1] + b"\x01")
    os.utime(path, ns=(0, 1))
    edited = read_checkpoint(folder)

    assert first.content_hash == touched.content_hash != edited.content_hash
    assert len({first.source_hash, touched.source_hash, edited.source_hash}) == 3


def test_a_checkpoint_of_many_tensors_is_read_within_seconds(tmp_path: Path) -> None:
    header = {f"layers.{i}.weight": info("F32", [3, 4], 48 * i, 48 * (i + 1)) for i in range(5000)}
    (tmp_path / "model.safetensors").write_bytes(file_bytes(header, A.tobytes() * 5000))
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_utime

    assert len(read_checkpoint(tmp_path).tensors) == 5000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - begin < 5
