"""Seam: model families. config.json -> ModelSpec, and the names of the checkpoint's tensors.

A family is a small file of data in families/, registered under the architecture it reads; a name never
decides anything else. `read_model` is the only door. Contract (tests/unit/model/test_families.py,
tests/parity): every key of the file is read, expected, ignored with a reason, or refused by name.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from penstock.errors import ModelLoadError
from penstock.model.config_reader import ConfigReader, JSONObject, read_json, show
from penstock.model.matryoshka import MATRYOSHKA
from penstock.model.names import HF_LLAMA, Names
from penstock.model.spec import ModelSpec
from penstock.registry import Registry

Reader = Callable[[ConfigReader], ModelSpec]

DTYPES: Final = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture's config.json becomes a ModelSpec, and how its tensors are called."""

    read: Reader
    names: Names
    has_own_code: bool = False


FAMILIES: Registry[Family] = Registry("architecture", "penstock.model.families")


def family(
    architecture: str, *, names: Names = HF_LLAMA, has_own_code: bool = False
) -> Callable[[Reader], Reader]:
    """Register the reader of an architecture, as config.json spells it.

    `has_own_code`: its first checkpoints came with Python code (`auto_map`) that transformers has taken over
    since; the code is not run, and not needed.
    """

    def keep(read: Reader) -> Reader:
        FAMILIES.register(architecture)(Family(read, names, has_own_code))
        return read

    return keep


def read_model(source: Path | str | JSONObject) -> ModelSpec:
    """The ModelSpec of a model folder, or of its config.json as a dict. Nothing in it is left unread."""
    values = read_json(Path(source) / "config.json") if isinstance(source, (Path, str)) else source
    config = ConfigReader(values)
    architecture = _architecture(values)
    config.ignore("quantization_config", why="read by weights.scheme, or refused there")
    config.ignore(*MATRYOSHKA, why="read by model.matryoshka: sizes to which embeddings may be cut")
    if FAMILIES[architecture].has_own_code:
        config.ignore("auto_map", why="the code is that of this architecture, which is known here")
    else:
        config.refuse_if_present(
            "auto_map",
            "it asks for Python code from the checkpoint, which is never run; use a checkpoint without",
        )
    ignore_what_computes_nothing(config)
    spec = replace(FAMILIES[architecture].read(config), architecture=architecture, dtype=_dtype(config))
    config.finish()
    return spec


def _architecture(values: JSONObject) -> str:
    names = values.get("architectures")
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        problem = f"names no single architecture ({show(names)}); docs/models.md lists what is supported."
        raise ModelLoadError("unsupported_architecture", f"config.json {problem}")
    if names[0] not in FAMILIES:
        near = difflib.get_close_matches(names[0], FAMILIES, n=1)
        hint = f"the nearest that is: {near[0]}; " if near else ""
        raise ModelLoadError(
            "unsupported_architecture",
            f"architecture {show(names[0])} is not supported; {hint}docs/models.md lists all.",
        )
    return names[0]


def ignore_what_computes_nothing(config: ConfigReader) -> None:
    """Keys of every architecture; of a nested config, too."""
    config.ignore("architectures", "model_type", "_name_or_path", "transformers_version", why="names")
    config.ignore(
        "transformers.js_config", "is_llama_config", "custom_pipelines", "_attn_implementation_autoset",
        why="hints for other programs",
    )  # fmt: skip
    config.ignore("use_cache", why="keys and values are always cached")
    config.ignore("initializer_range", "attention_dropout", "pretraining_tp", why="how it was trained")
    config.ignore(
        "bos_token_id", "eos_token_id", "pad_token_id", why="read by model.generation and text.tokenizer"
    )


def _dtype(config: ConfigReader) -> str | None:
    """The checkpoint's dtype: `torch_dtype`, in transformers 5 `dtype`."""
    old, new = config.find("torch_dtype", str), config.find("dtype", str)
    if old is not None and new is not None and old != new:
        raise config.refuse(
            "dtype", f"is {show(new)}, but torch_dtype is {show(old)}; one of the two must go"
        )
    dtype = new or old
    if dtype is not None and dtype not in DTYPES:
        key = "dtype" if new is not None else "torch_dtype"
        raise config.refuse(key, f"is {show(dtype)}; supported are {', '.join(DTYPES)}")
    return dtype
