import json
import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.errors import ModelLoadError
from penstock.weights import packed
from penstock.weights.format import FORMATS
from penstock.weights.loader import LoadedWeights, Wanted, load, pack_with_numpy, packed_bytes
from penstock.weights.reader import Checkpoint, read_checkpoint

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
K = 64


def matrix(n: int, k: int = K, dtype: object = np.float32, seed: int = 0) -> np.ndarray:
    """Values that every float dtype here holds exactly."""
    rng = np.random.default_rng([seed, n, k])
    return (rng.integers(-64, 65, (n, k)) / 32).astype(dtype)  # type: ignore[call-overload, no-any-return]


def checkpoint(**tensors: np.ndarray) -> Checkpoint:
    return Checkpoint(tensors, "s")


def linear(*sources: str, n: int, k: int = K, format: str = "float32", name: str = "w") -> Wanted:
    return Wanted(name, sources, (n, k), "linear", format)


def nothing_inert(_: str) -> bool:
    return False


def unpacked(loaded: LoadedWeights, want: Wanted) -> NDArray[np.float32]:
    assert want.format is not None
    n, k = want.shape
    return FORMATS[want.format].unpack(loaded.packed[want.name], n, k)


def refusal(source: Checkpoint, *wanted: Wanted, cache: Path | None = None) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as caught:
        load(source, wanted, is_inert=nothing_inert, cache=cache)

    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("format", ["float32", "float16", "bfloat16", "int8", "int4_g64"])
@pytest.mark.parametrize("rows", [(32,), (5,), (32, 64), (40, 8), (40, 7, 33), (1, 1)])
def test_stacked_sources_pack_as_one_matrix(rows: tuple[int, ...], format: str) -> None:
    """Also where a panel of 32 columns straddles two sources."""
    parts = {f"p{i}": matrix(n, seed=i) for i, n in enumerate(rows)}
    want = linear(*parts, n=sum(rows), format=format)
    loaded = load(checkpoint(**parts), [want], is_inert=nothing_inert)
    expected = FORMATS[format].pack(np.concatenate(list(parts.values())))

    assert loaded.packed["w"].tobytes() == expected.tobytes()
    assert loaded.packed["w"].nbytes == packed_bytes(want)


def test_a_packer_is_given_whole_panels_of_one_source_and_no_copy_of_it() -> None:
    parts = {"a": matrix(64, dtype=ml_dtypes.bfloat16), "b": matrix(10, dtype=ml_dtypes.bfloat16, seed=1)}
    given: list[tuple[np.ndarray, str, str, int]] = []

    def pack(rows: NDArray[np.generic], dtype: str, format: str, out: NDArray[np.uint8]) -> bool:
        given.append((rows, dtype, format, out.nbytes))
        return pack_with_numpy(rows, dtype, format, out)

    load(checkpoint(**parts), [linear("a", "b", n=74, format="bfloat16")], is_inert=nothing_inert, pack=pack)

    assert [rows is part for (rows, *_), part in zip(given, parts.values(), strict=True)] == [True, True]
    assert [rest for _, *rest in given] == [
        ["bfloat16", "bfloat16", 64 * K * 2],
        ["bfloat16", "bfloat16", 32 * K * 2],
    ]


def test_sources_of_different_dtypes_are_stacked_exactly() -> None:
    parts = {"a": matrix(7, dtype=np.float16), "b": matrix(7, dtype=ml_dtypes.bfloat16, seed=1)}
    want = linear("a", "b", n=14)
    loaded = load(checkpoint(**parts), [want], is_inert=nothing_inert)
    expected = np.concatenate([part.astype(np.float32) for part in parts.values()])

    assert np.array_equal(unpacked(loaded, want), expected)


def test_vectors_are_float32_and_embeddings_the_checkpoints_own_bytes() -> None:
    norm = np.array([1, 2, 3], ml_dtypes.bfloat16)
    bias = np.array([4], np.float16)
    table = matrix(10, dtype=ml_dtypes.bfloat16)
    wanted = [
        Wanted("v", ("norm", "bias"), (4,), "vector"),
        Wanted("e", ("table",), (10, K), "embedding"),
    ]
    loaded = load(checkpoint(norm=norm, bias=bias, table=table), wanted, is_inert=nothing_inert)

    assert loaded.vectors["v"].dtype == np.float32
    assert loaded.vectors["v"].tolist() == [1, 2, 3, 4]
    assert loaded.embeddings["e"] is table
    assert not loaded.notes


def test_a_missing_tensor_is_named() -> None:
    error = refusal(checkpoint(a=matrix(4)), linear("a", "lm_head.weight", n=8))

    assert error.code == "missing_tensor"
    assert "lm_head.weight" in str(error)


def test_a_tensor_that_nobody_asked_for_is_refused_unless_it_is_inert() -> None:
    source = checkpoint(a=matrix(4), extra=matrix(1), rotary=matrix(1))
    want = linear("a", n=4)
    error = refusal(source, want)

    assert error.code == "bad_index"
    assert "2 tensors" in str(error)
    assert "extra" in str(error)
    with pytest.raises(ModelLoadError, match="1 tensors"):
        load(source, [want], is_inert=lambda name: name == "rotary")
    assert load(source, [want], is_inert=lambda name: name in ("rotary", "extra")).packed


@pytest.mark.parametrize("shape", [(4, K - 1), (5, K), (3, K), (4 * K,), (4, K, 1), (0, K), (K, 4)])
def test_a_tensor_of_another_shape_belongs_to_another_model(shape: tuple[int, ...]) -> None:
    assert refusal(checkpoint(a=np.zeros(shape, np.float32)), linear("a", n=4)).code == "shape_mismatch"


@pytest.mark.parametrize("kind", ["vector", "embedding"])
def test_vectors_and_embeddings_have_their_shape_too(kind: str) -> None:
    shape = (4,) if kind == "vector" else (4, K)
    want = Wanted("x", ("a",), shape, kind)  # type: ignore[arg-type]

    assert refusal(checkpoint(a=np.zeros((5, *shape[1:]), np.float32)), want).code == "shape_mismatch"


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.float64, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("kind", ["linear", "vector", "embedding"])
def test_a_weight_of_an_unknown_dtype_is_refused_whatever_it_is_for(dtype: type, kind: str) -> None:
    shape = (4,) if kind == "vector" else (4, K)
    want = Wanted("x", ("a",), shape, kind, "float32")  # type: ignore[arg-type]
    error = refusal(checkpoint(a=np.zeros(shape, dtype)), want)

    assert error.code == "dtype_unsupported"
    assert np.dtype(dtype).name in str(error)


def test_an_inert_tensor_may_have_any_dtype() -> None:
    source = checkpoint(a=matrix(4), position_ids=np.zeros(3, np.int64))

    assert load(source, [linear("a", n=4)], is_inert=lambda name: name == "position_ids").packed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "vector", "embedding"])
@pytest.mark.parametrize("at", [0, -1])
def test_one_value_that_is_not_finite_is_found(kind: str, dtype: type, value: float, at: int) -> None:
    a = matrix(40, dtype=dtype)
    a.reshape(-1)[at] = value
    shape: tuple[int, ...] = (40, K)
    if kind == "vector":
        a, shape = a.reshape(-1), (40 * K,)
    error = refusal(checkpoint(a=a), Wanted("x", ("a",), shape, kind, "float32"))  # type: ignore[arg-type]

    assert error.code == "nan_weights"
    assert "a" in str(error)


def test_largest_values_are_finite() -> None:
    largest = {np.float16: 65504, ml_dtypes.bfloat16: 2.0**127 * (2 - 2**-7), np.float32: 3.4028235e38}
    for dtype, value in largest.items():
        table = np.full((2, K), value, dtype)
        assert np.isfinite(table.astype(np.float64)).all()
        wanted = [Wanted("e", ("a",), (2, K), "embedding")]

        assert load(checkpoint(a=table), wanted, is_inert=nothing_inert).embeddings["e"] is table


# The cache of packed weights.


class CountingPacker:
    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, rows: NDArray[np.generic], dtype: str, format: str, out: NDArray[np.uint8]) -> bool:
        self.num_calls += 1
        return pack_with_numpy(rows, dtype, format, out)


SOURCES: Mapping[str, np.ndarray] = {
    "a": matrix(33), "b": matrix(7, seed=1), "norm": matrix(1, seed=2)[0], "table": matrix(9, seed=3)
}  # fmt: skip
WANTED = [
    linear("a", "b", n=40, format="bfloat16", name="qkv"),
    Wanted("norm", ("norm",), (K,), "vector"),
    linear("table", n=9, format="int8", name="head"),
    Wanted("table", ("table",), (9, K), "embedding"),
]


def load_cached(
    cache: Path, *, source_hash: str = "s", wanted: list[Wanted] = WANTED, verify: bool = False
) -> tuple[LoadedWeights, int]:
    pack = CountingPacker()
    source = Checkpoint(SOURCES, source_hash)
    loaded = load(source, wanted, is_inert=nothing_inert, pack=pack, cache=cache, verify=verify)
    return loaded, pack.num_calls


def contents(loaded: LoadedWeights) -> dict[str, bytes]:
    vectors = {f"vector {name}": vector.tobytes() for name, vector in loaded.vectors.items()}
    return {name: array.tobytes() for name, array in loaded.packed.items()} | vectors


def only_file(cache: Path) -> Path:
    (path,) = (cache / "packed").iterdir()
    return path


def test_the_second_load_reads_the_same_bytes_and_packs_nothing(tmp_path: Path) -> None:
    first, calls = load_cached(tmp_path)
    second, calls_again = load_cached(tmp_path)

    assert (calls > 0, calls_again) == (True, 0)
    assert (first.was_cached, second.was_cached) == (False, True)
    assert contents(first) == contents(second)
    assert second.embeddings["table"] is SOURCES["table"]
    assert first.notes == second.notes == []
    assert only_file(tmp_path).suffix == ".safetensors"


def test_cached_weights_are_aligned_for_the_kernels(tmp_path: Path) -> None:
    load_cached(tmp_path)
    loaded, _ = load_cached(tmp_path)

    assert all(array.ctypes.data % packed.ALIGNMENT == 0 for array in loaded.packed.values())


def test_another_source_layout_format_or_stack_packs_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_cached(tmp_path)
    other_format = [linear("a", "b", n=40, format="float16", name="qkv"), *WANTED[1:]]
    other_stack = [linear("b", "a", n=40, format="bfloat16", name="qkv"), *WANTED[1:]]

    assert load_cached(tmp_path, source_hash="t")[1] > 0
    assert load_cached(tmp_path, wanted=other_format)[1] > 0
    assert load_cached(tmp_path, wanted=other_stack)[1] > 0
    monkeypatch.setattr(packed, "LAYOUT_VERSION", packed.LAYOUT_VERSION + 1)
    assert load_cached(tmp_path)[1] > 0
    assert len(list((tmp_path / "packed").iterdir())) == 5


def test_verify_scans_and_packs_even_when_there_is_a_cache(tmp_path: Path) -> None:
    load_cached(tmp_path)
    loaded, calls = load_cached(tmp_path, verify=True)

    assert calls > 0
    assert not loaded.was_cached


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1, -4096])
def test_a_cache_file_cut_short_is_packed_over(tmp_path: Path, size: int) -> None:
    first, _ = load_cached(tmp_path)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    loaded, calls = load_cached(tmp_path)

    assert calls > 0
    assert contents(loaded) == contents(first)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x00" * 4096, b"version https://git-lfs.github.com/"])
def test_a_foreign_cache_file_is_packed_over(tmp_path: Path, content: bytes) -> None:
    load_cached(tmp_path)
    only_file(tmp_path).write_bytes(content)

    assert load_cached(tmp_path)[1] > 0
    assert load_cached(tmp_path)[1] == 0


def test_a_cache_file_of_other_sizes_is_packed_over(tmp_path: Path) -> None:
    load_cached(tmp_path)
    path = only_file(tmp_path)
    sizes = {want.name: packed_bytes(want) for want in WANTED if want.kind == "linear"}
    packed.save(
        path, {"qkv": np.zeros(sizes["qkv"] + 64, np.uint8), "head": np.zeros(sizes["head"] - 64, np.uint8)}
    )

    assert load_cached(tmp_path)[1] > 0


def test_a_cache_file_that_is_a_pipe_is_left_alone(tmp_path: Path) -> None:
    load_cached(tmp_path)
    path = only_file(tmp_path)
    path.unlink()
    os.mkfifo(path)

    assert load_cached(tmp_path)[1] > 0


def test_a_full_disk_is_a_note_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    loaded, calls = load_cached(tmp_path)

    assert calls > 0
    assert loaded.notes == [f"packed weights were not kept: No space left on device ({tmp_path / 'packed'})."]
    assert list((tmp_path / "packed").iterdir()) == []


def test_a_cache_that_cannot_be_a_folder_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "packed").write_text("in the way")
    loaded, _ = load_cached(tmp_path)

    assert len(loaded.notes) == 1
    assert loaded.packed
    assert load_cached(Path("/dev/null"))[0].notes


def test_an_interrupt_while_saving_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_cached(tmp_path)

    assert list((tmp_path / "packed").iterdir()) == []


def test_weights_that_are_not_finite_are_never_cached(tmp_path: Path) -> None:
    bad = matrix(33)
    bad[5, 5] = np.nan
    refusal(checkpoint(a=bad), linear("a", n=33), cache=tmp_path)
    table = matrix(9)
    table[8, K - 1] = np.inf
    wanted = [linear("a", n=33), Wanted("e", ("t",), (9, K), "embedding")]
    refusal(checkpoint(a=matrix(33), t=table), *wanted, cache=tmp_path)

    assert not (tmp_path / "packed").exists()


def test_scales_and_norms_are_scanned_at_every_load(tmp_path: Path) -> None:
    load_cached(tmp_path)
    norm = SOURCES["norm"].copy()
    norm[3] = np.nan
    with pytest.raises(ModelLoadError) as caught:
        load(checkpoint(**{**SOURCES, "norm": norm}), WANTED, is_inert=nothing_inert, cache=tmp_path)

    assert caught.value.code == "nan_weights"


def test_a_file_that_changes_while_it_is_packed_is_neither_served_nor_cached(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    a = matrix(33)
    header = json.dumps({"a": {"dtype": "F32", "shape": [33, K], "data_offsets": [0, a.nbytes]}}).encode()
    header += b" " * (-len(header) % 8)
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + a.tobytes())

    def pack(rows: NDArray[np.generic], dtype: str, format: str, out: NDArray[np.uint8]) -> bool:
        os.utime(path, ns=(0, 1))
        return pack_with_numpy(rows, dtype, format, out)

    with pytest.raises(ModelLoadError) as caught:
        load(read_checkpoint(folder), [linear("a", n=33)], is_inert=nothing_inert, pack=pack, cache=tmp_path)

    assert caught.value.code == "io_error"
    assert not (tmp_path / "packed").exists()
