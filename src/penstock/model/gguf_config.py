"""Metadata of a GGUF file -> the config.json of the checkpoint it was converted from.

Called by engine.gguf_folder. Families then read it as any other config.json. Keys that may change what the
model computes and are not known here are refused by name; names, licences and the tokenizer are not read.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from penstock.errors import ModelLoadError

JSON = dict[str, Any]  # Any: what becomes a JSON file
Metadata = Mapping[str, Any]  # Any: what a stranger's file says, checked here and by the families

ARCHITECTURES: Final = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# key after "<architecture>." -> key of config.json
KEYS: Final = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
# Read below, or of no weight: what a vocabulary's size is, the embedding tells; who made the file.
READ: Final = {
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
}


def config_of(
    metadata: Metadata, *, vocab_size: int, tensors: frozenset[str], rope_factors: list[float]
) -> JSON:
    """`tensors`: names in the file. `rope_factors`: the values of rope_freqs.weight, or none."""
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelLoadError(
            "unsupported_architecture",
            f"GGUF architecture {str(architecture)!r:.60} is not supported; supported are {known}.",
        )
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    for key in own:
        if key not in KEYS and key not in READ:
            raise _refusal(f"{prefix}{key}", "is not known and may change what the model computes")
    config: JSON = {"architectures": [ARCHITECTURES[architecture]], "vocab_size": vocab_size}
    for key, name in KEYS.items():
        if key in own:
            if not isinstance(own[key], int | float):
                raise _refusal(
                    f"{prefix}{key}", "is no single number; models whose layers differ are not read"
                )
            config[name] = _shortest(own[key])
    head_dim = own.get("attention.key_length", own.get("rope.dimension_count"))
    if own.get("attention.value_length", head_dim) != head_dim:
        raise _refusal(f"{prefix}attention.value_length", "is not that of the keys")
    if own.get("rope.dimension_count", head_dim) != head_dim:
        raise _refusal(f"{prefix}rope.dimension_count", "is not the whole head")
    if head_dim is not None:
        config["head_dim"] = head_dim
    config["hidden_act"] = "silu"
    config["tie_word_embeddings"] = "output.weight" not in tensors
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    scaling = _scaling(own, prefix, rope_factors, config)
    if scaling is not None:
        config["rope_scaling"] = scaling
    config |= _ends(metadata)
    return config


def _scaling(own: Metadata, prefix: str, rope_factors: list[float], config: JSON) -> JSON | None:
    kind = own.get("rope.scaling.type", "none")
    if rope_factors:  # what llama 3.1's positions were turned into by the converter
        length = config.get("max_position_embeddings")
        return {
            "rope_type": "longrope",
            "short_factor": rope_factors,
            "long_factor": rope_factors,
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": length,
        }
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise _refusal(f"{prefix}rope.scaling.type", f"is {str(kind)!r:.40}; none, linear and yarn are read")
    scaling: JSON = {"rope_type": kind, "factor": _shortest(own.get("rope.scaling.factor"))}
    if kind == "yarn" and "rope.scaling.original_context_length" in own:
        scaling["original_max_position_embeddings"] = own["rope.scaling.original_context_length"]
    return scaling


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
