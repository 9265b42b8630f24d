"""The nouns that every room uses: registries, the environment, the tree of errors."""

import sys
import threading
from pathlib import Path

import pytest

from penstock import env, errors
from penstock.errors import ConfigError, PenstockError
from penstock.registry import Registry


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of plug-ins on the import path, by the name of its test."""
    folder = tmp_path / f"plugins_{tmp_path.name}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "seam.py").write_text(
        "from penstock.registry import Registry\nCOLOURS = Registry('colour', __package__)\n"
    )
    for name in ("red", "green"):
        (folder / f"{name}.py").write_text(
            f"from .seam import COLOURS\nCOLOURS.register({name!r})({name!r})\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def colours(package: Path) -> Registry[str]:
    import importlib

    registry: Registry[str] = importlib.import_module(f"{package.name}.seam").COLOURS
    return registry


def test_being_in_the_folder_is_being_registered(package: Path) -> None:
    registry = colours(package)

    assert list(registry) == ["green", "red"]
    assert (len(registry), "red" in registry, "blue" in registry) == (2, True, False)
    assert registry["red"] == "red"


def test_an_unknown_name_is_refused_with_the_nearest_one(package: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown colour 'grene'; known: green, red\. Did you mean 'green'\?"
    ):
        colours(package)["grene"]
    with pytest.raises(ConfigError, match=r"known: green, red\.$"):
        colours(package)["zzz"]


def test_a_name_cannot_be_taken_twice() -> None:
    registry: Registry[int] = Registry("colour")
    registry.register("red", "crimson")(1)
    with pytest.raises(AssertionError, match="twice"):
        registry.register("red")(2)

    assert list(registry) == ["crimson", "red"]


def test_a_plug_in_that_fails_is_seen_by_everybody_not_only_by_the_first(package: Path) -> None:
    (package / "zebra.py").write_text("raise RuntimeError('striped')\n")
    registry = colours(package)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="striped"):
            list(registry)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = colours(package)

    def fail(path: Path) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as without_memory:
        without_memory.setattr(Path, "iterdir", fail)
        with pytest.raises(OSError, match="allocate"):
            list(registry)

    assert list(registry) == ["green", "red"]


def test_no_thread_sees_half_a_registry(package: Path) -> None:
    (package / "slow.py").write_text(
        "import time\nfrom .seam import COLOURS\ntime.sleep(0.2)\nCOLOURS.register('slow')('slow')\n"
    )
    registry, seen = colours(package), []
    threads = [threading.Thread(target=lambda: seen.append(list(registry))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert seen == [["green", "red", "slow"]] * 4
    assert f"{package.name}.slow" in sys.modules


def test_variables_that_are_set_to_nothing_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "PENSTOCK_ISA",
        "PENSTOCK_BREAK",
        "XDG_CACHE_HOME",
        "HF_HUB_CACHE",
        "HF_HOME",
        "HF_HUB_OFFLINE",
    ):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", "/srv/somebody")

    assert (env.isa(), env.break_invariance(), env.hub_is_offline()) == (None, None, False)
    assert env.cache_dir() == Path("/srv/somebody/.cache/penstock")
    assert env.hub_cache_dir() == Path("/srv/somebody/.cache/huggingface/hub")


def test_variables_that_are_set_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.setenv("HF_HUB_CACHE", "")
    monkeypatch.setenv("HF_HOME", "/h")

    assert (env.cache_dir(), env.hub_cache_dir()) == (Path("/c/penstock"), Path("/h/hub"))
    monkeypatch.setenv("HF_HUB_CACHE", "/s")
    assert env.hub_cache_dir() == Path("/s")
    for value, is_offline in (("1", True), ("true", True), ("ON", True), ("0", False), ("no", False)):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)

        assert env.hub_is_offline() == is_offline


def test_every_error_has_an_exit_code_that_shells_take_for_a_failure() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PenstockError)
    ]

    assert len(kinds) >= 18
    assert all(1 <= kind.exit_code <= 125 for kind in kinds)
