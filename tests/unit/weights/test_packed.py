"""The cache of packed weights stays small: old files go, then the least recently read."""

import os
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import ModelLoadError
from penstock.weights import packed

DAY_S = 86400.0
NOW_S = 1e9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, age_days in (("new", 0), ("week", 7), ("month", 30), ("year", 365)):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(bytes(100))
        os.utime(path, (NOW_S - age_days * DAY_S,) * 2)
    for name, age_days in (("fresh", 0.5), ("abandoned", 2)):
        path = tmp_path / f"{name}.tmp"
        path.write_bytes(bytes(10))
        os.utime(path, (NOW_S - age_days * DAY_S,) * 2)
    (tmp_path / "notes.txt").write_text("somebody else's")
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("max_bytes", "left"),
    [(1000, {"new", "week", "month"}), (200, {"new", "week"}), (150, {"new"}), (0, {"new"})],
)
def test_what_is_old_or_too_much_is_deleted_least_recently_read_first(folder, max_bytes, left):
    packed.prune(folder, keep=folder / "new.safetensors", now_s=NOW_S, max_bytes=max_bytes)

    assert names(folder) == {*left, "fresh", "notes"}


def test_the_file_just_written_is_never_deleted(folder):
    packed.prune(folder, keep=folder / "year.safetensors", now_s=NOW_S, max_bytes=0)

    assert names(folder) == {"year", "fresh", "notes"}


def test_reading_makes_a_file_recent(tmp_path):
    path = packed.path_of(tmp_path, "key")
    assert packed.save(path, {"w": np.zeros(64, np.uint8)}) is None
    os.utime(path, (NOW_S, NOW_S))
    packed.load(path, {"w": 64})

    assert path.stat().st_mtime > NOW_S + DAY_S


def tensors_of(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.integers(0, 256, size, np.uint8) for name, size in sizes.items()}


SIZES = {"a": 64, "b": 8192, "c": 128 * 1024, "d": 64}


def test_a_file_made_tensor_by_tensor_is_the_one_that_is_saved_whole(tmp_path):
    tensors = tensors_of(SIZES)
    whole, made = packed.path_of(tmp_path, "whole"), packed.path_of(tmp_path, "made")
    assert packed.save(whole, tensors) is None

    def fill(name: str, room: np.ndarray) -> None:
        room[:] = tensors[name]

    packed.make(made, SIZES, fill)
    assert made.read_bytes() == whole.read_bytes()


def test_what_stays_in_the_file_is_read_where_it_lies(tmp_path):
    tensors = tensors_of(SIZES)
    path = packed.path_of(tmp_path, "key")
    packed.save(path, tensors)
    found = packed.load(path, SIZES, mapped={"b", "d"})

    assert found is not None
    assert {name: not tensor.flags.writeable for name, tensor in found.items()} == {
        "a": False, "b": True, "c": False, "d": True,
    }  # fmt: skip
    for name, tensor in tensors.items():
        assert found[name].tobytes() == tensor.tobytes()
        assert found[name].ctypes.data % 64 == 0


def test_a_file_that_fails_while_it_is_made_leaves_nothing(tmp_path):
    def fill(name: str, room: np.ndarray) -> None:
        if name == "c":
            raise ModelLoadError("nan_weights", "c: holds NaN.")

    with pytest.raises(ModelLoadError, match="holds NaN"):
        packed.make(packed.path_of(tmp_path, "key"), SIZES, fill)
    assert list((tmp_path / "packed").iterdir()) == []
