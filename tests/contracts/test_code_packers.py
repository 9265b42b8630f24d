"""The native packers of integer codes write the bytes that weights/coding.py defines, from rows or blocks."""

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.weights.coding import CodedRows
from penstock.weights.format import FORMATS
from penstock.weights.gguf_blocks import FORMAT_OF, decode
from penstock.weights.gguf_file import TYPES

native = pytest.importorskip("penstock._native", reason="this build has no native backend")

NAMES = [name for name in FORMATS if hasattr(FORMATS[name], "coding")]
BY_NAME = {kind.name: kind for kind in TYPES.values()}
HALVES = {"Q4_0": [0], "Q5_0": [0], "Q8_0": [0], "Q6_K": [208]}  # where fp16 lie; the others: 0 and 2


def room_for(name: str, n: int, k: int) -> NDArray[np.uint8]:
    """Filled with what no packer writes by accident."""
    return np.full(-(-n // 32) * native.panel_bytes(name, k), 0xA5, np.uint8)


def random_rows(name: str, n: int, k: int) -> CodedRows:
    rng = np.random.default_rng([n, k])
    w = rng.standard_normal((n, k)).astype(np.float32)
    coding = FORMATS[name].coding  # type: ignore[attr-defined]
    rows = coding.unpack(FORMATS[name].pack(w), n, k)
    parts = dict(zip(rows.parts, rows.stored_parts(), strict=True))  # without the groups past K
    return CodedRows(coding, rows.codes, parts)


def random_blocks(name: str, n: int, k: int) -> NDArray[np.uint8]:
    kind = BY_NAME[name]
    rng = np.random.default_rng([n, k])
    blocks = rng.integers(0, 256, (n, k // kind.elements, kind.num_bytes), dtype=np.uint8)
    for at in HALVES.get(name, [0, 2]):
        scale = (rng.standard_normal((n, k // kind.elements, 1)) / 8).astype(np.float16)
        blocks[:, :, at : at + 2] = scale.view(np.uint8).reshape(*scale.shape[:2], 2)
    return blocks.reshape(n, -1)


def pack_rows(rows: CodedRows, name: str, workers: int = 2) -> tuple[bool, bytes]:
    out = room_for(name, *rows.codes.shape)
    parts = [part.view(np.uint8) for part in rows.stored_parts()]
    finite = native.Pool(workers).pack_codes(np.ascontiguousarray(rows.codes), parts, name, out)
    return finite, out.tobytes()


def pack_blocks(kind: str, blocks: NDArray[np.uint8], k: int, workers: int = 2) -> tuple[bool, bytes]:
    out = room_for(FORMAT_OF[kind], len(blocks), k)
    finite = native.Pool(workers).pack_blocks(kind, blocks, k, FORMAT_OF[kind], out)
    return finite, out.tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "k"), [(1, 16), (33, 64), (40, 100), (64, 192), (5, 320), (300, 576)])
def test_rows_of_codes_become_the_bytes_of_the_definition(name, n, k):
    rows = random_rows(name, n, k)

    assert pack_rows(rows, name) == (True, rows.coding.pack(rows).tobytes())


@pytest.mark.parametrize("kind", FORMAT_OF)
@pytest.mark.parametrize(("n", "k"), [(1, 256), (40, 768), (300, 512)])
def test_blocks_become_the_bytes_of_the_definition(kind, n, k):
    blocks = random_blocks(kind, n, k)
    rows = decode(BY_NAME[kind], blocks)

    assert pack_blocks(kind, blocks, k) == (True, rows.coding.pack(rows).tobytes())


@pytest.mark.parametrize("kind", [kind for kind in FORMAT_OF if BY_NAME[kind].elements == 32])
@pytest.mark.parametrize("k", [32, 64, 96, 160, 224])
def test_k_may_end_within_a_superblock(kind, k):
    blocks = random_blocks(kind, 35, k)
    rows = decode(BY_NAME[kind], blocks)

    assert pack_blocks(kind, blocks, k) == (True, rows.coding.pack(rows).tobytes())


def test_the_number_of_threads_changes_no_byte():
    blocks = random_blocks("Q4_0", 1000, 192)

    assert pack_blocks("Q4_0", blocks, 192, workers=1) == pack_blocks("Q4_0", blocks, 192, workers=3)


@pytest.mark.parametrize("kind", FORMAT_OF)
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_scale_that_is_not_finite_is_told(kind, bad):
    blocks = random_blocks(kind, 40, 512)
    for at in HALVES.get(kind, [0, 2]):
        spoiled = blocks.copy()
        last = spoiled.reshape(40, -1, BY_NAME[kind].num_bytes)[39, -1]
        last[at : at + 2] = np.array([bad], np.float16).view(np.uint8)

        assert pack_blocks(kind, spoiled, 512)[0] is False
        assert pack_rows(decode(BY_NAME[kind], spoiled), FORMAT_OF[kind])[0] is False


@pytest.mark.parametrize(
    ("kind", "k", "format", "why"),
    [
        ("Q4_0", 100, "int4_g32", "rows are"),
        ("Q4_0", 128, "int4_g32", "rows are"),
        ("Q4_0", 64, "int4_g64", "does not hold"),
        ("Q4_9", 64, "int4_g32", "no block type"),
        ("Q4_0", 64, "int4_g32", "out is not"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(kind, k, format, why):
    with pytest.raises(ValueError, match=why):
        native.Pool(1).pack_blocks(kind, random_blocks("Q4_0", 8, 64), k, format, np.zeros(64, np.uint8))


def test_parts_that_do_not_fit_are_refused():
    rows = random_rows("int8_g32_zero", 8, 64)
    scale, zero = (part.view(np.uint8) for part in rows.stored_parts())
    out = room_for("int8_g32_zero", 8, 64)
    for parts in ([scale], [scale, zero, zero], [zero, scale]):
        with pytest.raises(ValueError, match="part"):
            native.Pool(1).pack_codes(rows.codes, parts, "int8_g32_zero", out)
    with pytest.raises(ValueError, match="does not hold"):
        native.Pool(1).pack_codes(rows.codes, [scale], "bfloat16", out)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_column_whose_scale_is_not_finite_is_told(bad):
    rows = random_rows("int8", 40, 192)
    assert pack_rows(rows, "int8")[0] is True
    rows.parts["column"][39] = bad

    assert pack_rows(rows, "int8")[0] is False
