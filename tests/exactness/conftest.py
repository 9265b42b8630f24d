"""Loaded models for the exactness tests, each made once and kept for the session."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tests.exactness.checkpoints import SHAPES, write_checkpoint

from penstock.backends.cpu.probe import isas
from penstock.config import EngineConfig
from penstock.engine.build import Loaded, load_model

# name -> (checkpoint, --weights)
MODELS: dict[str, tuple[str, str]] = {
    "float32": ("llama_float32", "auto"),
    "float16": ("llama_float16", "auto"),
    "bfloat16": ("llama_bfloat16", "auto"),
    "int8": ("llama_bfloat16", "int8"),
    "int4_g32": ("llama_bfloat16", "int4_g32"),
    "int4_g64": ("llama_bfloat16", "int4_g64"),
    "int4_g128": ("llama_bfloat16", "int4_g128"),
    "mistral": ("mistral", "auto"),
    "qwen2": ("qwen2", "auto"),
    "qwen2_windows": ("qwen2_windows", "int8"),
    "qwen3": ("qwen3", "auto"),
    "penstock-tiny": ("penstock-tiny", "int4_g64"),
}
Engines = Callable[..., Mapping[int, Loaded]]  # (model name, isa=None) -> loaded model by number of threads


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The promise is the native backend's; the reference keeps it by tests/parity."""
    if not isas():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="this build has no native backend"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    folder = tmp_path_factory.mktemp("checkpoints")

    def find(name: str) -> str:
        if name not in SHAPES:
            return name  # an embedded model
        path = folder / name
        return str(path if path.exists() else write_checkpoint(path, SHAPES[name]))

    return find


@pytest.fixture(scope="session")
def engines(checkpoints: Callable[[str], str]) -> Engines:
    kept: dict[tuple[str, str | None], Mapping[int, Loaded]] = {}

    def load(name: str, isa: str | None = None) -> Mapping[int, Loaded]:
        if (name, isa) not in kept:
            checkpoint, weights = MODELS[name]
            kept[name, isa] = {
                threads: load_small(checkpoints(checkpoint), weights, threads=threads, isa=isa)
                for threads in (1, 2)
            }
        return kept[name, isa]

    return load


def load_small(folder: str, weights: str, *, threads: int, isa: str | None) -> Loaded:
    """A model with room for 64 requests and prompts of 1,300 tokens."""
    config = EngineConfig(
        weights=weights,
        threads=threads,
        max_requests=64,
        max_step_tokens=2_048,
        max_context=2_048,
        memory_bytes=96 << 20,
        pack_cache=False,
        seed=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        if isa is not None:
            patch.setenv("PENSTOCK_ISA", isa)
        return load_model(folder, config)
