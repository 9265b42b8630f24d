"""penstock: LLM inference, exact by default.

    from penstock import LLM, SamplingParams
    llm = LLM("penstock-tiny")
    print(llm.generate("def add(a, b):", SamplingParams(max_tokens=32))[0].outputs[0].text)

Names are imported on first use, so that `import penstock` stays quick.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.config import EngineConfig
    from penstock.engine.async_engine import AsyncEngine
    from penstock.engine.llm import LLM
    from penstock.errors import PenstockError
    from penstock.request import RequestOutput, SamplingParams, StructuredOutputsParams

__all__ = [
    "LLM",
    "AsyncEngine",
    "EngineConfig",
    "PenstockError",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
]

_HOMES = {
    "LLM": "engine.llm",
    "AsyncEngine": "engine.async_engine",
    "EngineConfig": "config",
    "PenstockError": "errors",
    "RequestOutput": "request",
    "SamplingParams": "request",
    "StructuredOutputsParams": "request",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"penstock.{_HOMES[name]}"), name)
