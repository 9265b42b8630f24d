"""A model folder as a GGUF file, written by the `gguf` package as llama.cpp's converter would: for tests."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from penstock.model.gguf_names import gguf_names
from penstock.model.names import HF_LLAMA
from penstock.weights.readers.safetensors import SafetensorsReader

Choose = Callable[[str], str]  # GGUF tensor name -> name of a ggml type


def turn(w: NDArray[np.generic], heads: int) -> NDArray[np.generic]:
    """The converter's order of the rows of q and k."""
    return w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def gguf_name(name: str) -> str:
    canonical = HF_LLAMA.find_canonical(name)
    assert canonical is not None, name
    return gguf_names("llama", ()).checkpoint_name(canonical)


def write_gguf(folder: Path, path: Path, choose: Choose) -> dict[str, NDArray[np.float32]]:
    """Matrices in the types that `choose` names. Returns what can be read back of each, by its name there."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_token_list(tokens)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"][0])
    writer.add_eot_token_id(config["eos_token_id"][1])
    writer.add_string("tokenizer.huggingface.json", json.dumps(tokenizer))
    writer.add_chat_template(tokenizer_config["chat_template"])
    read = {}
    for name, stored in SafetensorsReader.read(folder).tensors.items():
        ours = gguf_name(name)
        values = np.asarray(stored).astype(np.float32)
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(ours.split(".")[-2])
        kind = gguf.GGMLQuantizationType["F32" if values.ndim == 1 else choose(ours)]
        if kind.name == "BF16":
            read[ours] = values.astype(ml_dtypes.bfloat16).astype(np.float32)
        else:
            read[ours] = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        turned = values if heads is None else turn(values, config[heads])
        writer.add_tensor(ours, gguf.quants.quantize(turned, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read
