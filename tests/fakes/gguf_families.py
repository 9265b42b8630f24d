"""Any tiny model of the goldens as a GGUF file, as llama.cpp's converter writes it: for tests.

Weights are taken by their canonical names and put where the tables of model.gguf_names want them. What the
converter itself does is held against it in tests/parity/test_llamacpp_converter.py.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from penstock.model.build import build
from penstock.model.family import FAMILIES, read_model
from penstock.model.gguf_architectures import ARCHITECTURES, KEYS
from penstock.model.gguf_names import gguf_names
from penstock.model.spec import LatentAttentionSpec, Mamba2Spec, ModelSpec, MoESpec
from penstock.model.unfold import unfold


def canonical_weights(folder: Path, spec: ModelSpec) -> dict[str, np.ndarray]:
    """Every weight that the model's program asks for."""
    names = FAMILIES[spec.architecture].names
    tensors = unfold(load_file(folder / "model.safetensors"), names, spec)
    formats = dict.fromkeys(("weight_format", "head_format", "kv_dtype"), "float32")
    program = build(spec, max_context=1, **formats)
    sources = [source for use in program.weights.values() for source in use.sources]
    return {source: np.asarray(tensors[names.checkpoint_name(source)]) for source in sources}


def metadata_of(architecture: str, config: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Keys of the file, from config.json and the spec."""
    table = ARCHITECTURES[{"MixtralForCausalLM": "mixtral"}.get(spec.architecture, architecture)]
    spelled = {key: table.key(key) for key in {**KEYS, **table.keys}}
    found = {key: config[name] for key, name in spelled.items() if name and config.get(name) is not None}
    layer = spec.layers[0]
    found["embedding_length"], found["block_count"] = spec.hidden_size, spec.num_layers
    match layer.mixer:
        case Mamba2Spec():
            found |= {
                "attention.head_count": 0,
                "feed_forward_length": 0,
                "ssm.inner_size": layer.mixer.width,
            }
            return {f"{architecture}.{key}": value for key, value in found.items()}
        case LatentAttentionSpec():
            found |= latent_keys(layer.mixer, config)
        case _:
            found["attention.head_count"] = layer.attention.num_heads
            found["attention.head_count_kv"] = layer.attention.num_kv_heads
    if not spec.has_head:
        found |= {"attention.causal": False, "context_length": spec.max_context}
        found.pop("attention.head_count_kv")
    if isinstance(spec.layers[-1].mlp, MoESpec):
        found["expert_count"] = spec.layers[-1].mlp.num_experts
        found["expert_used_count"] = spec.layers[-1].mlp.top_k
    rope = layer.mixer.rope
    if rope is not None:
        found["rope.freq_base"] = rope.theta
        if architecture != "falcon":
            found["rope.dimension_count"] = rope.rotary_dim
    return {f"{architecture}.{key}": value for key, value in found.items()}


def latent_keys(mixer: LatentAttentionSpec, config: dict[str, Any]) -> dict[str, Any]:
    """As newer converters write them: one head of what is cached, beside the heads that it stands for."""
    found: dict[str, Any] = {
        "attention.head_count": mixer.num_heads,
        "attention.head_count_kv": 1,
        "attention.key_length": mixer.head_dim,
        "attention.value_length": mixer.latent_dim,
        "attention.key_length_mla": mixer.nope_dim + mixer.rope_dim,
        "attention.value_length_mla": mixer.value_dim,
    }
    if config.get("scoring_func", "softmax") == "sigmoid" or "DeepseekV3" in config["architectures"][0]:
        found["expert_gating_func"] = 2
    if "mscale_all_dim" in config:
        found["rope.scaling.yarn_log_multiplier"] = 0.1 * config["mscale_all_dim"]
    if config.get("rope_type") == "yarn":
        found |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(config["factor"])}
        found["rope.scaling.original_context_length"] = config["original_max_position_embeddings"]
        found |= {f"rope.scaling.yarn_{key}": float(config[key]) for key in YARN if key in config}
    return found


def by_heads(parts: list[np.ndarray], heads: int) -> np.ndarray:
    """The rows of the first head of every part, then those of the next one."""
    grouped = [part.reshape(heads, -1, *part.shape[1:]) for part in parts]
    return np.concatenate(grouped, axis=1).reshape(-1, *parts[0].shape[1:])


def stored_form(name: str, values: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """What the converter makes of a tensor, where it is not what the families read."""
    mixer = spec.layers[0].mixer
    if name == "position_embd.weight" and not spec.has_head:
        assert spec.positions is not None
        return values[spec.positions.offset :]  # without those of the padding
    if name.endswith("ssm_a"):
        return -np.exp(values)[:, None]
    if name.endswith("ssm_d"):
        return values[:, None]
    if name.endswith("ssm_norm.weight"):
        return values.reshape(mixer.num_groups, -1)
    if name.endswith("ssm_conv1d.weight"):
        return values.squeeze(1)
    if name.endswith(("attn_k_b.weight", "attn_v_b.weight")):
        return values.reshape(mixer.num_heads, -1, values.shape[-1])
    return values


YARN = ("beta_fast", "beta_slow")
FLOATS = ("norm", "gate_inp", "ssm_a", "ssm_d", "ssm_conv1d", "position_embd", "token_types")


def _place(canonical: str, order: list[str]) -> int:
    part = (
        canonical.removeprefix("layers.").partition(".")[2] if canonical.startswith("layers.") else canonical
    )
    return order.index(part) if part in order else len(order)


def write_family(
    folder: Path, path: Path, architecture: str, kind: str = "F32", *, is_first: bool = False, **more: int
) -> None:
    """`kind`: the ggml type of matrices. `is_first`: as the first converter of this architecture wrote it.
    `more`: further keys of the architecture."""
    spec, config = read_model(folder), json.loads((folder / "config.json").read_text())
    config |= config.pop("rope_parameters", None) or {}
    writer = gguf.GGUFWriter(path, architecture)
    own = {f"{architecture}.{key}": value for key, value in more.items()}
    for key, value in (metadata_of(architecture, config, spec) | own).items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
    weights = canonical_weights(folder, spec)
    has_two = architecture == "falcon" and "layers.0.mlp_norm" in weights
    marks = {"falcon": "blk.0.attn_norm_2.weight", "deepseek2": "blk.0.attn_kv_b.weight"}
    names = gguf_names(architecture, {marks[architecture]} if has_two or is_first else ())
    stored: dict[str, list[np.ndarray]] = {}
    order = [*names.top, *names.layer]  # in which the parts of fused tensors lie
    for name, whole in sorted(weights.items(), key=lambda item: _place(item[0], order)):
        values = whole.astype(np.float32)
        if architecture in ("llama", "granite") and name.endswith(("attn.q", "attn.k")):
            heads = len(values) // spec.layers[0].attention.head_dim
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if architecture.startswith("gemma") and name.endswith("norm"):
            values = values + 1
        stored.setdefault(names.checkpoint_name(name).partition("[")[0], []).append(values)
    for name in [name for name in stored if "_exps." in name]:
        whole = name.partition("_exps.")[0] + "_exps.weight"
        stored.setdefault(whole, []).append(stored.pop(name)[0])
    stored["token_types.weight"] = [] if spec.has_head else [np.zeros((2, spec.hidden_size), np.float32)]
    for name, parts in stored.items():
        if not parts:
            continue
        heads = spec.layers[0].mixer.num_heads
        if is_first and name.endswith("attn_kv_b.weight"):
            key = parts[0].reshape(heads, -1, parts[0].shape[1]).swapaxes(1, 2)
            parts = [key.reshape(-1, key.shape[-1]), parts[1]]  # noqa: PLW2901 as the original has it
        if (
            architecture == "deepseek2"
            and len(parts) == 2
            and "kv_a_mqa" not in name
            and "_exps." not in name
        ):
            values = by_heads(parts, heads)
        else:
            values = np.stack(parts) if "_exps." in name else np.concatenate(parts)
        values = stored_form(name, values, spec)
        is_float = values.ndim == 1 or any(word in name for word in FLOATS)
        own = "F32" if is_float else kind
        if own not in ("F32", "BF16") and values.shape[-1] % 32:
            own = "BF16"  # no whole blocks
        ggml = gguf.GGMLQuantizationType[own]
        writer.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), ggml), raw_dtype=ggml)
    tokens = [f"t{i}" for i in range(spec.vocab_size)]
    added = [
        {"id": i, "content": token, "special": False, "normalized": False, "single_word": False,
         "lstrip": False, "rstrip": False} for i, token in enumerate(tokens)
    ]  # fmt: skip
    model = {"type": "BPE", "vocab": {}, "merges": []}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_string("tokenizer.huggingface.json", json.dumps({"model": model, "added_tokens": added}))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
