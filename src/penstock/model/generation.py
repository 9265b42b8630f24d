"""generation_config.json: every end-of-sequence id, and the sampling that the checkpoint's authors suggest.

The file is optional. What it says is merged with config.json's `eos_token_id`: either file alone is
often incomplete (Llama 3 ends turns with an id that only one of the two holds).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.errors import ModelLoadError
from penstock.model.config_reader import ConfigReader, JSONObject, read_json, show

_MAX_IDS: Final = 64
_MAX_ID: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Defaults for requests that do not say. None: the file does not say either.

    `ignored` names keys that this project does not act on, for one line at start-up.
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    ignored: tuple[str, ...] = ()


def read_generation(folder: Path | str) -> GenerationDefaults:
    """The defaults of a model folder, from both of its files."""
    folder = Path(folder)
    path = folder / "generation_config.json"
    return merge_generation(read_json(folder / "config.json"), read_json(path) if path.exists() else {})


def merge_generation(config: JSONObject, generation: JSONObject) -> GenerationDefaults:
    """GenerationDefaults from the two files' contents. `do_sample: false` means greedy: temperature 0."""
    reader = ConfigReader(generation, name="generation_config.json")
    sampling = {
        "temperature": reader.find("temperature", float, least=0, most=100),
        "top_p": reader.find("top_p", float, least=0, most=1),
        "min_p": reader.find("min_p", float, least=0, most=1),
        "typical_p": reader.find("typical_p", float, least=0, most=1),
    }
    top_k = reader.find("top_k", int, least=0, most=_MAX_ID)
    is_sampled = reader.find("do_sample", bool)
    if is_sampled is False:
        sampling, top_k = {"temperature": 0.0}, None
    read = {*sampling, "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "do_sample"}
    silent = {"eos_token_id", "bos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}
    eos = (*_ids(generation, "generation_config.json"), *_ids(config, "config.json"))
    bos = reader.find("bos_token_id", int, least=0, most=_MAX_ID)
    return GenerationDefaults(
        eos_token_ids=tuple(dict.fromkeys(eos)),
        bos_token_id=ConfigReader(config).find("bos_token_id", int, least=0) if bos is None else bos,
        top_k=top_k,
        repetition_penalty=reader.find("repetition_penalty", float, least=1e-3, most=100),
        ignored=tuple(sorted(set(generation) - read - silent)),
        **sampling,
    )


def _ids(values: JSONObject, name: str) -> list[int]:
    """`eos_token_id`: one id, a list of ids, or nothing."""
    value: Any = values.get("eos_token_id")  # Any: JSON, checked here
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if len(ids) > _MAX_IDS or not all(type(i) is int and 0 <= i <= _MAX_ID for i in ids):
        problem = f'{name} key "eos_token_id" is {show(value)}; it must be a token id or a list of them.'
        raise ModelLoadError("bad_config", problem)
    return ids
