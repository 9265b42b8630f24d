"""How a checkpoint makes one vector of a text: its sentence-transformers files, modules.json and others.

Called by engine.build. Without the files an encoder takes the mean, as sentence-transformers does, and a
decoder its last row; both are scaled to length 1. Refuses by name what is not computed here.
Reimers & Gurevych 2019, arXiv:1908.10084.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.errors import ModelLoadError
from penstock.model.config_reader import ConfigReader, read_json, read_json_list, show
from penstock.model.spec import ModelSpec

POOLINGS: Final = ("last", "mean", "cls")
MAX_LENGTH: Final = 1 << 24
_MODES: Final = {  # in 1_Pooling/config.json
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_GGUF_MODES: Final = {1: "pooling_mode_mean_tokens", 2: "pooling_mode_cls_token", 3: "pooling_mode_lasttoken"}
_UNKNOWN_MODES: Final = (
    "pooling_mode_max_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
)


@dataclass(frozen=True, slots=True)
class PoolingSpec:
    """`pooling`: which hidden rows make the vector. `max_tokens`: the longest text it is for, if said."""

    pooling: str = "last"
    is_normalized: bool = True
    max_tokens: int | None = None


def pooling_files(metadata: Mapping[str, Any]) -> dict[str, Any]:  # Any: foreign metadata, and JSON
    """The files that say of a GGUF file's embeddings what its metadata say; none where they say nothing."""
    kind = metadata.get(f"{metadata.get('general.architecture')}.pooling_type", 0)
    if kind == 0:
        return {}
    if kind not in _GGUF_MODES:
        raise ModelLoadError(
            "bad_config", f"GGUF key 'pooling_type' is {show(kind)}; mean, cls and last are read."
        )
    room = "sentence_transformers.models"
    modules = [{"path": "1_Pooling", "type": f"{room}.Pooling"}, {"path": "", "type": f"{room}.Normalize"}]
    return {"modules.json": modules, "1_Pooling/config.json": {_GGUF_MODES[kind]: True}}


def read_pooling(folder: Path, spec: ModelSpec) -> PoolingSpec:
    """What the files of a model folder say, else the defaults."""
    default = "last" if spec.has_head else "mean"
    path = folder / "modules.json"
    if not path.is_file():
        return PoolingSpec(default)
    kinds: dict[str, Path] = {}
    for module in read_json_list(path):
        kind = str(module.get("type")).rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ModelLoadError(
                "bad_config", f"modules.json names {show(module.get('type'))}, which is not computed here; "
                "embeddings without it would be others. Use a checkpoint without."
            )  # fmt: skip
        kinds[kind] = folder / str(module.get("path") or "")
    pooling = _mode(kinds["Pooling"] / "config.json") if "Pooling" in kinds else default
    return PoolingSpec(pooling, "Normalize" in kinds, _max_tokens(folder))


def _mode(path: Path) -> str:
    config = ConfigReader(read_json(path), name="1_Pooling/config.json")
    config.ignore("word_embedding_dimension", "embedding_dimension", why="the width of the model")
    config.ignore("include_prompt", why="prompts are the caller's")
    for key in _UNKNOWN_MODES:
        config.expect(key, False, why="rows are pooled by their first, their last or their mean")
    modes = [mode for key, mode in _MODES.items() if config.get(key, bool, False)]
    said = config.find("pooling_mode", str)  # newer files say it in one word
    if said is not None:
        modes = ["last" if said == "lasttoken" else said]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise config.refuse("pooling_mode", f"is {show(modes)}; one of {', '.join(POOLINGS)} is supported")
    config.finish()
    return modes[0]


def _max_tokens(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return None
    return ConfigReader(read_json(path), name=path.name).find("max_seq_length", int, most=MAX_LENGTH)
