"""Write tests/goldens/encoders: tiny random encoders of texts, and the hidden rows that transformers makes.

Needs the `oracle` extra (torch, transformers):

    python -m tools.goldens.make_encoders [NAME ...]

Each folder holds config.json, model.safetensors (float32 values that are all bfloat16 values) and hidden.npz:

    tokens     int32: one text
    float32    [T, H] float32: last hidden state of the float32 model
    bfloat16   [T, H] uint16: bits of that of the same model in bfloat16
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from safetensors.torch import save_file
from tools.goldens.make_parity import fill

OUT = Path(__file__).parents[2] / "tests" / "goldens" / "encoders"
SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3,
    "intermediate_size": 80, "max_position_embeddings": 200, "layer_norm_eps": 1e-5,
}  # fmt: skip
# name -> (config class, architecture, its own arguments, tokens)
MODELS: dict[str, tuple[Any, str, dict[str, Any], int]] = {
    "bert": (hf.BertConfig, "BertModel", SMALL | {"layer_norm_eps": 1e-12}, 150),
    "bert_masked_lm": (hf.BertConfig, "BertForMaskedLM", SMALL | {"hidden_act": "relu"}, 33),
    "roberta": (hf.RobertaConfig, "RobertaModel", SMALL | {"type_vocab_size": 1}, 150),
    "xlm_roberta": (hf.XLMRobertaConfig, "XLMRobertaModel", SMALL | {"type_vocab_size": 1}, 70),
}


@torch.no_grad()
def hidden_of(model: Any, tokens: list[int]) -> np.ndarray:
    return model.base_model(torch.tensor([tokens])).last_hidden_state[0].float().numpy()


def make(name: str) -> None:
    config_class, architecture, arguments, length = MODELS[name]
    config = config_class(**arguments, dtype="float32")
    config.architectures = [architecture]
    config._attn_implementation = "eager"
    model = getattr(hf, architecture)(config)
    fill(model, config, seed=0)
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, length).tolist()
    exact = hidden_of(model, tokens)
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith(("cls.", "lm_head."))
    }
    save_file(stored, folder / "model.safetensors")
    values = dict(sorted(config.to_diff_dict().items()))
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    rounded = hidden_of(model.bfloat16(), tokens)
    np.savez_compressed(
        folder / "hidden.npz",
        tokens=np.array(tokens, np.int32),
        float32=exact,
        bfloat16=(rounded.view(np.uint32) >> 16).astype(np.uint16),
    )
    error = np.sqrt(np.square(rounded - exact).mean()) / np.abs(exact).max()
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: bf16 RMS error {error:.5f}, {size / 1000:.0f} kB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for wanted in sys.argv[1:] or MODELS:
        make(wanted)
