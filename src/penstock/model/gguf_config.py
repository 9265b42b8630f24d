"""Metadata of a GGUF file -> the config.json of the checkpoint it was converted from.

Called by engine.gguf_folder. Families then read it as any other config.json. Keys that may change what the
model computes and are not known here are refused by name; names, licences and the tokenizer are not read.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import numpy as np

from penstock.errors import ModelLoadError
from penstock.model.gguf_architectures import ARCHITECTURES, READ, Architecture
from penstock.model.gguf_names import SECOND_NORM

JSON = dict[str, Any]  # Any: what becomes a JSON file
Metadata = Mapping[str, Any]  # Any: what a stranger's file says, checked here and by the families

FACTORS: Final = "rope_freqs.weight"
SHORT_FACTORS: Final = "rope_factors_short.weight"
LONG_FACTORS: Final = "rope_factors_long.weight"
FACTOR_TENSORS: Final = (FACTORS, SHORT_FACTORS, LONG_FACTORS)


def config_of(
    metadata: Metadata,
    *,
    vocab_size: int,
    tensors: Collection[str],
    rope_factors: Mapping[str, list[float]],
) -> JSON:
    """`tensors`: names in the file. `rope_factors`: the values of those that hold them, by name."""
    name = str(metadata.get("general.architecture"))
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelLoadError(
            "unsupported_architecture",
            f"GGUF architecture {name!r:.60} is not supported; supported are {known}.",
        )
    prefix = f"{name}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    architecture = ARCHITECTURES[_kind_of(name, own)]
    config: JSON = {"architectures": [architecture.name], "vocab_size": vocab_size, **architecture.constants}
    for key, value in own.items():
        spelled = architecture.key(key)
        if key in architecture.keys or spelled is not None:
            if not isinstance(value, int | float):
                raise _refusal(
                    f"{prefix}{key}", "is no single number; models whose layers differ are not read"
                )
            if spelled is not None:
                config[spelled] = _shortest(value)
        elif not isinstance(value, int | float | str):
            raise _refusal(f"{prefix}{key}", "is a list; one value is read")
        elif key not in READ and not (key in EXPERT_KEYS and not value):
            raise _refusal(f"{prefix}{key}", "is not known and may change what the model computes")
    _read_heads(own, prefix, architecture, config)
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config |= {key: tensor in tensors for key, tensor in architecture.said_by.items()}
    scaling = _scaling(own, prefix, rope_factors, config)
    if scaling is not None:
        config["rope_scaling"] = scaling
    if name in SPECIAL:
        SPECIAL[name](own, tensors, config)
    config |= _ends(metadata)
    return config


def _kind_of(name: str, own: Metadata) -> str:
    """Its entry in ARCHITECTURES, where one name of llama.cpp's is two of ours."""
    experts, gating = own.get("expert_count"), own.get("expert_gating_func")
    if name == "llama" and isinstance(experts, int) and experts:
        return "mixtral"
    is_sigmoid = isinstance(gating, int) and gating == SIGMOID
    return "deepseek3" if name == "deepseek2" and is_sigmoid else name


def _read_heads(own: Metadata, prefix: str, architecture: Architecture, config: JSON) -> None:
    """The width of a head, and how much of it turns. Of latents SPECIAL reads it."""
    if "attention.kv_lora_rank" in own:
        return
    turning = own.get("rope.dimension_count")
    hidden, heads = own.get("embedding_length"), own.get("attention.head_count")
    head_dim = own.get("attention.key_length")
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        if head_dim is None:
            head_dim = hidden // heads
        elif architecture.key("attention.key_length") is None and head_dim != hidden // heads:
            raise _refusal(f"{prefix}attention.key_length", "is not the width of the model over its heads")
    if own.get("attention.value_length", head_dim) != head_dim:
        raise _refusal(f"{prefix}attention.value_length", "is not that of the keys")
    if architecture.share:
        if isinstance(turning, int) and isinstance(head_dim, int) and head_dim > 0:
            config[architecture.share] = turning / head_dim
    elif turning is not None and turning != head_dim:
        if "attention.key_length" in own or architecture.key("attention.key_length") is None:
            raise _refusal(f"{prefix}rope.dimension_count", "is not the whole head")
        head_dim = turning
    if head_dim is not None and architecture.key("attention.key_length") and not architecture.share:
        config["head_dim"] = head_dim


def _gemma_scale(own: Metadata, _: Collection[str], config: JSON) -> None:
    """Scores of the two largest are scaled by the width that a head would have, as llama.cpp knows."""
    is_largest = own.get("block_count") in (46, 62)
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    width = hidden // heads if is_largest and hidden and heads else config.get("head_dim")
    if width:
        config["query_pre_attn_scalar"] = width


def _falcon_kind(own: Metadata, tensors: Collection[str], config: JSON) -> None:
    """One key head is the first Falcon's, several are the new architecture's."""
    is_new = own.get("attention.head_count_kv", 1) != 1
    config |= {"multi_query": not is_new, "new_decoder_architecture": is_new}
    if is_new:
        config["num_ln_in_parallel_attn"] = 2 if SECOND_NORM in tensors else 1


def _phi_window(_: Metadata, __: Collection[str], config: JSON) -> None:
    """A window of 0 means none."""
    if config.get("sliding_window") == 0:
        config["sliding_window"] = None


def _latents(own: Metadata, _: Collection[str], config: JSON) -> None:
    """Heads, and what the first files of these architectures left unsaid of the groups of their experts."""
    if own.get("expert_gating_func", SOFTMAX) not in (0, SOFTMAX, SIGMOID):
        raise _refusal("deepseek2.expert_gating_func", "is none of 1 (softmax) and 2 (sigmoid)")
    key = own.get("attention.key_length_mla", own.get("attention.key_length"))
    value = own.get("attention.value_length_mla", own.get("attention.value_length"))
    turning = own.get("rope.dimension_count")
    if isinstance(key, int) and isinstance(turning, int):
        config["qk_nope_head_dim"] = key - turning
    config["v_head_dim"] = value
    config["num_key_value_heads"] = own.get("attention.head_count")
    groups, kept = PUBLISHED_GROUPS.get(own.get("expert_count", 0), (1, 1))
    config.setdefault("n_group", groups)
    config.setdefault("topk_group", kept)
    if config["scoring_func"] == "softmax":
        config["topk_method"] = "greedy" if config["n_group"] == 1 else "group_limited_greedy"
    multiplier = own.get("rope.scaling.yarn_log_multiplier")
    if multiplier is not None and "rope_scaling" in config:
        scale = round(float(_shortest(multiplier)) * 10, 6)  # stored as a tenth of it
        config["rope_scaling"] |= {"mscale": scale, "mscale_all_dim": scale}


def _state_heads(own: Metadata, _: Collection[str], config: JSON) -> None:
    """The width of a head of states, and how much wider than the model all are."""
    width, heads, hidden = (
        own.get(key) for key in ("ssm.inner_size", "ssm.time_step_rank", "embedding_length")
    )
    if isinstance(width, int) and isinstance(heads, int) and isinstance(hidden, int) and heads and hidden:
        config["head_dim"], config["expand"] = width // heads, width / hidden


SOFTMAX, SIGMOID = 1, 2  # of expert_gating_func; 0: not said
PUBLISHED_GROUPS: Final = {160: (8, 3), 256: (8, 4)}  # by the number of experts: DeepSeek-V2 and V3
EXPERT_KEYS: Final = ("expert_count", "expert_used_count")  # 0 in files without experts
SPECIAL: Final[Mapping[str, Callable[[Metadata, Collection[str], JSON], None]]] = {
    "gemma2": _gemma_scale,
    "gemma3": _gemma_scale,
    "falcon": _falcon_kind,
    "phi3": _phi_window,
    "deepseek2": _latents,
    "mamba2": _state_heads,
}


def _scaling(
    own: Metadata, prefix: str, rope_factors: Mapping[str, list[float]], config: JSON
) -> JSON | None:
    kind = own.get("rope.scaling.type", "none")
    length, original = config.get("max_position_embeddings"), own.get("rope.scaling.original_context_length")
    if FACTORS in rope_factors:  # what llama 3.1's positions were turned into by the converter
        return {
            "rope_type": "longrope",
            "short_factor": rope_factors[FACTORS],
            "long_factor": rope_factors[FACTORS],
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": length,
        }
    if rope_factors:
        short, long = (rope_factors.get(name) for name in (SHORT_FACTORS, LONG_FACTORS))
        config["original_max_position_embeddings"] = original
        scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        if "rope.scaling.attn_factor" in own:
            scaling["attention_factor"] = _shortest(own["rope.scaling.attn_factor"])
        return scaling
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise _refusal(f"{prefix}rope.scaling.type", f"is {str(kind)!r:.40}; none, linear and yarn are read")
    scaling = {"rope_type": kind, "factor": _shortest(own.get("rope.scaling.factor"))}
    if kind == "yarn":
        config_keys = {key: own.get(f"rope.scaling.{name}") for key, name in YARN_KEYS.items()}
        scaling |= {key: _shortest(value) for key, value in config_keys.items() if value is not None}
    return scaling


YARN_KEYS: Final = {
    "original_max_position_embeddings": "original_context_length",
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


def _ends(metadata: Metadata) -> JSON:
    """Ids that begin and end texts: an end of a turn ends an answer as the end of a text does."""
    ends: JSON = {}
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if isinstance(bos, int):
        ends["bos_token_id"] = bos
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [metadata.get(f"tokenizer.ggml.{name}") for name in names]
    eos = list(dict.fromkeys(value for value in found if isinstance(value, int)))
    if eos:
        ends["eos_token_id"] = eos
    return ends


def _shortest(value: Any) -> Any:  # Any: a number of the file
    """A float32 as the shortest decimal that means it, which is what the original file said."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _refusal(key: str, why: str) -> ModelLoadError:
    return ModelLoadError("bad_config", f"GGUF key {key!r} {why}.")
