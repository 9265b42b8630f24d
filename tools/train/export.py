"""Weights and settings -> a folder that any Hugging Face reader takes.

Called by train.py. Writes bfloat16, the dtype the network was trained in, so nothing is lost.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tools.train import tokenizer as names
from tools.train.model import Decoder
from tools.train.recipe import ModelShape


def write_checkpoint(folder: Path, model: Decoder, tokenizer: Tokenizer) -> None:
    """Write config, generation config and weights; the tokenizer's files are written by tokenizer.py."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = names.special_ids(tokenizer)
    (folder / "config.json").write_text(json.dumps(model_config(model.shape, ids), indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation_config(ids), indent=2) + "\n")
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.checkpoint_names()
    }
    partial = folder / "model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(folder / "model.safetensors")


def model_config(shape: ModelShape, ids: dict[str, int]) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_context_tokens,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": ids[names.BEGIN],
        "eos_token_id": [ids[names.END], ids[names.TURN_END]],
        "pad_token_id": ids[names.PAD],
        "torch_dtype": "bfloat16",
    }


def generation_config(ids: dict[str, int]) -> dict[str, object]:
    return {
        "bos_token_id": ids[names.BEGIN],
        "eos_token_id": [ids[names.END], ids[names.TURN_END]],
        "pad_token_id": ids[names.PAD],
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
    }
