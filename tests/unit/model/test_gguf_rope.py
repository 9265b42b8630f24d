"""rope_freqs.weight of a GGUF file: factors that turn positions into those of Llama 3.1."""

import json
from pathlib import Path

import numpy as np
import pytest

from penstock.model.config_reader import ConfigReader
from penstock.model.gguf_config import FACTORS, config_of
from penstock.model.rope import attention_factor, inverse_frequencies
from penstock.model.rope_config import read_rope

GOLDENS = json.loads((Path(__file__).parents[2] / "goldens" / "rope.json").read_text())
LLAMA3 = next(golden for golden in GOLDENS.values() if golden["rope_parameters"]["rope_type"] == "llama3")


def factors_of(golden: dict) -> list[float]:
    """As the converter writes them: the plain frequency over the scaled one, in float32."""
    dim, theta = golden["head_dim"], golden["rope_parameters"]["rope_theta"]
    plain = theta ** -(np.arange(0, dim, 2) / dim)
    return (plain / np.array(golden["inverse_frequencies"])).astype(np.float32).tolist()


def metadata_of(golden: dict) -> dict:
    return {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": golden["max_position_embeddings"],
        "llama.embedding_length": 4 * golden["head_dim"],
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": golden["rope_parameters"]["rope_theta"],
        "llama.rope.dimension_count": golden["head_dim"],
    }


@pytest.mark.parametrize("length", [128, None])
def test_factors_give_the_frequencies_of_llama_3(length):
    config = config_of(
        metadata_of(LLAMA3), vocab_size=8, tensors=frozenset(), rope_factors={FACTORS: factors_of(LLAMA3)}
    )
    rope = read_rope(ConfigReader(config), LLAMA3["head_dim"])
    frequencies = inverse_frequencies(rope, length or LLAMA3["max_context"])

    assert frequencies == pytest.approx(np.array(LLAMA3["inverse_frequencies"]), rel=5e-6)
    assert attention_factor(rope) == 1.0


def test_without_factors_positions_are_plain():
    config = config_of(metadata_of(LLAMA3), vocab_size=8, tensors=frozenset(), rope_factors={})

    assert "rope_scaling" not in config


@pytest.mark.parametrize("count", [1, 31, 33])
def test_another_number_of_factors_is_refused(count):
    config = config_of(
        metadata_of(LLAMA3), vocab_size=8, tensors=frozenset(), rope_factors={FACTORS: [1.0] * count}
    )

    with pytest.raises(Exception, match="factor") as caught:
        read_rope(ConfigReader(config), LLAMA3["head_dim"])
    assert caught.value.code == "bad_config"
