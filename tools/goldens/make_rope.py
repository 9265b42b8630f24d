"""Write tests/goldens/rope.json: inverse frequencies of transformers for every kind of rope.

Needs the `oracle` extra:  python -m tools.goldens.make_rope
"""

import json
from pathlib import Path
from typing import Any

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

OUT = Path(__file__).parents[2] / "tests" / "goldens" / "rope.json"

# name -> (head_dim, max_position_embeddings, rope_parameters, the length it is used at)
CASES: dict[str, tuple[int, int, dict[str, Any], int]] = {
    "default": (128, 4096, {"rope_type": "default", "rope_theta": 10000.0}, 4096),
    "default, large base": (96, 32768, {"rope_type": "default", "rope_theta": 5000000.0}, 32768),
    "linear": (128, 4096, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, 4096),
    "dynamic, short": (
        128,
        4096,
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        2048,
    ),
    "dynamic, long": (128, 4096, {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, 7000),
    "llama3": (
        128,
        131072,
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        131072,
    ),
    "yarn": (
        128,
        32768,
        {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
        131072,
    ),
    "yarn, mscale": (
        64,
        163840,
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "mscale": 0.707,
            "mscale_all_dim": 1.0,
            "truncate": False,
        },
        163840,
    ),
    "yarn, attention factor": (
        64,
        8192,
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 4096,
            "attention_factor": 1.25,
        },
        8192,
    ),
    **{
        f"longrope, {word}": (
            96,
            131072,
            {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "short_factor": [round(1 + 0.025 * i, 3) for i in range(48)],
                "long_factor": [round(1.08 + 1.3 * i, 3) for i in range(48)],
            },
            length,
        )
        for word, length in (("short", 4096), ("long", 4097))
    },
}


def golden(head_dim: int, max_position: int, parameters: dict[str, Any], length: int) -> dict[str, Any]:
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=max_position,
        rope_parameters=dict(parameters),
    )
    default = LlamaRotaryEmbedding.compute_default_rope_parameters
    make = ROPE_INIT_FUNCTIONS.get(parameters["rope_type"], default)
    frequencies, attention_factor = make(config, device="cpu", seq_len=length)
    return {
        "head_dim": head_dim,
        "max_position_embeddings": max_position,
        "rope_parameters": parameters,
        "max_context": length,
        "inverse_frequencies": frequencies.tolist(),
        "attention_factor": attention_factor,
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps({name: golden(*case) for name, case in CASES.items()}) + "\n")
