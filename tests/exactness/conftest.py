"""Loaded models for the exactness tests; those used last are kept."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path

import pytest
from tests.exactness.checkpoints import SHAPES, OwnShape, write_checkpoint

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
# Every family once, each in a format of its own; the fast set takes these few through fewer circumstances.
FAMILY_MODELS: dict[str, tuple[str, str]] = {
    name: (name, weights)
    for name, weights in zip(
        [name for name, shape in SHAPES.items() if isinstance(shape, OwnShape) and not shape.has_mxfp4],
        cycle(("auto", "int8", "int4_g64")),
        strict=False,
    )
} | {"gpt_oss_mxfp4": ("gpt_oss_mxfp4", "auto")}
FORMATS = ("float32", "float16", "bfloat16", "int8", "int4_g32", "int4_g64", "int4_g128")  # one of each
MAX_KEPT = 8  # two engines each, of up to 200 MB
Load = Callable[..., Loaded]  # (model name, *, threads=1, isa=None): a new one each time
Engines = Callable[..., Mapping[int, Loaded]]  # (model name, isa=None) -> by number of threads


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests force, break and look into native kernels; the reference's own checks are in tests/parity."""
    if not isas():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="this build has no native backend"))


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = tmp_path_factory.mktemp("checkpoints")

    def load_one(name: str, *, threads: int = 1, isa: str | None = None) -> Loaded:
        checkpoint, weights = (MODELS | FAMILY_MODELS)[name]
        path = folder / checkpoint
        if checkpoint in SHAPES and not path.exists():
            write_checkpoint(path, SHAPES[checkpoint])
        return load_small(
            str(path) if checkpoint in SHAPES else checkpoint, weights, threads=threads, isa=isa
        )

    return load_one


@pytest.fixture(scope="session")
def engines(load: Load) -> Engines:
    kept: OrderedDict[tuple[str, str | None], Mapping[int, Loaded]] = OrderedDict()

    def find(name: str, isa: str | None = None) -> Mapping[int, Loaded]:
        key = name, isa
        if key not in kept:
            if len(kept) == MAX_KEPT:
                kept.popitem(last=False)
            kept[key] = {threads: load(name, threads=threads, isa=isa) for threads in (1, 2)}
        kept.move_to_end(key)
        return kept[key]

    return find


def load_small(
    model: str,
    weights: str,
    *,
    threads: int = 1,
    isa: str | None = None,
    max_requests: int = 64,
    memory_bytes: int = 96 << 20,
) -> Loaded:
    """A model with room for steps and contexts of 2,048 tokens."""
    config = EngineConfig(
        weights=weights,
        threads=threads,
        max_requests=max_requests,
        max_step_tokens=2_048,
        max_context=2_048,
        memory_bytes=memory_bytes,
        pack_cache=False,
        seed=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        if isa is not None:
            patch.setenv("PENSTOCK_ISA", isa)
        return load_model(model, config)
