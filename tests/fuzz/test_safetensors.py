"""Every byte of a small header, changed in every simple way: a typed error, or the same tensors."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ModelLoadError
from penstock.weights.safetensors_file import DTYPES, read_file

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.array([1, 2], ml_dtypes.bfloat16)
HEADER = json.dumps(
    {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [2], "data_offsets": [24, 28]},
    }
).encode()
HEADER += b" " * (-len(HEADER) % 8)
WHOLE = len(HEADER).to_bytes(8, "little") + HEADER + A.tobytes() + B.tobytes()
START = 8 + len(HEADER)

Outcome = str | dict[str, tuple[str, tuple[int, ...], bytes]]


def outcome(path: Path, content: bytes) -> Outcome:
    """The code of the refusal, or all that was read; anything else is a failure of the test."""
    path.write_bytes(content)
    try:
        tensors = read_file(path).tensors
    except ModelLoadError as error:
        assert str(error).isprintable()
        return error.code
    return {name: (str(t.dtype), t.shape, t.tobytes()) for name, t in tensors.items()}


def is_same_memory(found: Outcome) -> bool:
    """What was read is all of the data, cut as the header says: nothing invented, nothing dropped."""
    assert not isinstance(found, str)
    return b"".join(sorted(raw for _, _, raw in found.values())) == b"".join(
        sorted([A.tobytes(), B.tobytes()])
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def changes(byte: int) -> list[int]:
    return [0x00, 0xFF, *(byte ^ (1 << bit) for bit in range(8))]


@pytest.mark.slow
def test_any_changed_byte_of_the_header_is_refused_or_changes_no_value(path: Path) -> None:
    read = 0
    for at in range(START):
        for byte in changes(WHOLE[at]):
            found = outcome(path, WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :])
            if not isinstance(found, str):
                assert is_same_memory(found), (at, byte)
                read += 1

    assert read > 100  # letters of names, and metadata: it is not that everything is refused


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    codes = [outcome(path, WHOLE[:size]) for size in range(len(WHOLE))]

    assert set(codes[:START]) == {"bad_header"}
    assert set(codes[START:]) == {"truncated"}


def test_a_file_with_anything_after_it_is_refused(path: Path) -> None:
    assert outcome(path, WHOLE + b"\0") == "bad_tensor_info"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
SIZES = st.integers(0, 64) | st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, -1])
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F8", ""]),
        "shape": st.lists(SIZES, max_size=4),
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2),
    }
)


@settings(max_examples=500, deadline=None)
@given(
    header=st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=4) | JSON, data=st.binary(max_size=80)
)
def test_any_header_is_refused_or_describes_the_file_whole(
    tmp_path_factory: pytest.TempPathFactory, header: object, data: bytes
) -> None:
    text = json.dumps(header).encode()
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    found = outcome(path, len(text).to_bytes(8, "little") + text + data)
    if not isinstance(found, str):
        assert sum(len(raw) for _, _, raw in found.values()) == len(data)


@settings(max_examples=500, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.safetensors"

    assert isinstance(outcome(path, content), str)
