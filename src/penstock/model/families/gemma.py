"""Gemma: Llama with wide heads, GELU, norms that store weight - 1, scaled embeddings. arXiv:2403.08295."""

import math

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import Sizes, make_model, read_norm, read_sizes, rounded_as_stored
from penstock.model.family import family
from penstock.model.rope_config import max_context, read_rope
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec

DEFAULT_HEAD_DIM = 256


@family("GemmaForCausalLM")
def gemma(config: ConfigReader) -> ModelSpec:
    """`hidden_act: gelu` of the first files means the tanh form, which it was trained with."""
    config.expect("hidden_act", "gelu", "gelu_pytorch_tanh", why="Gemma was trained with it")
    config.expect("hidden_activation", "gelu_pytorch_tanh", why="Gemma was trained with it")
    config.expect("attention_bias", False, why="Gemma has no biases")
    refuse_both_directions(config)
    sizes = read_sizes(config, head_dim=DEFAULT_HEAD_DIM)
    norm = read_norm(config, weight_offset=1.0)
    rope = read_rope(config, sizes.head_dim)
    attention = AttentionSpec(**sizes.heads, scale=1 / math.sqrt(sizes.head_dim), rope=rope)
    layer = LayerSpec(attention, MLPSpec(sizes.inner, act="gelu_tanh"), norm)
    return make_model(
        config,
        sizes,
        [layer] * sizes.num_layers,
        final_norm=norm,
        max_context=max_context(config, rope),
        ties_by_default=True,
        embed_scale=embed_scale(config, sizes),
    )


def embed_scale(config: ConfigReader, sizes: Sizes) -> float:
    """The root of the width, in the dtype of the checkpoint, as it was trained."""
    return rounded_as_stored(config, math.sqrt(sizes.hidden))


def refuse_both_directions(config: ConfigReader) -> None:
    why = "an encoder of this family, which is not served as a decoder"
    config.expect("use_bidirectional_attention", False, why=why)
