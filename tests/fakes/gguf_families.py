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
from penstock.model.spec import ModelSpec, MoESpec
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
    table = ARCHITECTURES["mixtral" if spec.architecture == "MixtralForCausalLM" else architecture]
    spelled = {key: table.key(key) for key in {**KEYS, **table.keys}}
    found = {key: config[name] for key, name in spelled.items() if name and config.get(name) is not None}
    layer = spec.layers[0]
    found["embedding_length"], found["block_count"] = spec.hidden_size, spec.num_layers
    found["attention.head_count"] = layer.attention.num_heads
    found["attention.head_count_kv"] = layer.attention.num_kv_heads
    if isinstance(spec.layers[-1].mlp, MoESpec):
        found["expert_count"] = spec.layers[-1].mlp.num_experts
        found["expert_used_count"] = spec.layers[-1].mlp.top_k
    rope = layer.attention.rope
    if rope is not None:
        found["rope.freq_base"] = rope.theta
        if architecture != "falcon":
            found["rope.dimension_count"] = rope.rotary_dim
    return {f"{architecture}.{key}": value for key, value in found.items()}


def _place(canonical: str, order: list[str]) -> int:
    part = (
        canonical.removeprefix("layers.").partition(".")[2] if canonical.startswith("layers.") else canonical
    )
    return order.index(part) if part in order else len(order)


def write_family(folder: Path, path: Path, architecture: str, kind: str = "F32", **more: int) -> None:
    """`kind`: the ggml type of matrices. `more`: further keys of the architecture."""
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
    weights = canonical_weights(folder, spec)
    has_two = architecture == "falcon" and "layers.0.mlp_norm" in weights
    names = gguf_names(architecture, {"blk.0.attn_norm_2.weight"} if has_two else ())
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
    for name, parts in stored.items():
        values = np.stack(parts) if "_exps." in name else np.concatenate(parts)
        own = kind if values.ndim > 1 and "norm" not in name and "gate_inp" not in name else "F32"
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
