"""BERT and RoBERTa as encoders of texts: rows read the whole text, norms of sums, learned positions.

Devlin et al. 2018, arXiv:1810.04805; Liu et al. 2019, arXiv:1907.11692. A text is one segment, so that every
token has the first type, whose row the table of positions gains at loading. Heads of pretraining are left
out; models with a classifier's are other architectures.
"""

import math
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import SizeKeys, make_model, read_activation, read_norm, read_sizes
from penstock.model.family import family
from penstock.model.names import Names, plain
from penstock.model.rope import MAX_ANGLE
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec, PositionTableSpec

KEYS: Final = SizeKeys(kv_heads=None, head_dim=None)


def _names(prefix: str) -> Names:
    tables = f"{prefix}embeddings."
    return Names(
        top={
            "embed": f"{tables}word_embeddings.weight",
            "positions": f"{tables}position_embeddings.weight",
            **plain(embed_norm=f"{tables}LayerNorm"),
        },
        layer={
            **plain(attn__q="attention.self.query", attn__k="attention.self.key"),
            **plain(attn__v="attention.self.value", attn__o="attention.output.dense"),
            **plain(attn_norm="attention.output.LayerNorm", mlp_norm="output.LayerNorm"),
            **plain(mlp__up="intermediate.dense", mlp__down="output.dense"),
        },
        layer_prefix=f"{prefix}encoder.layer.{{}}.",
        inert=(rf"{prefix}pooler\..*", rf"{tables}(position|token_type)_ids", r"(cls|lm_head)\..*"),
        renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        optional_prefix=prefix,
        gains={f"{tables}position_embeddings.weight": f"{tables}token_type_embeddings.weight"},
    )


@family("BertModel", names=_names("bert."))
@family("BertForMaskedLM", names=_names("bert."))
def bert(config: ConfigReader) -> ModelSpec:
    return _encoder(config, first_position=0)


@family("RobertaModel", names=_names("roberta."))
@family("RobertaForMaskedLM", names=_names("roberta."))
@family("XLMRobertaModel", names=_names("roberta."))
def roberta(config: ConfigReader) -> ModelSpec:
    """Positions begin after that of the padding, which keeps its token's id."""
    return _encoder(config, first_position=1 + config.get("pad_token_id", int, 1, least=0, most=1 << 16))


def _encoder(config: ConfigReader, first_position: int) -> ModelSpec:
    for key in ("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout"):
        config.ignore(key, "gradient_checkpointing", "output_past", why="how it was trained and saved")
    for key in ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head", "type"):
        config.ignore(f"pooler_{key}", "id2label", "label2id", "directionality", why="of other heads")
    config.ignore("type_vocab_size", why="a text is one segment: all its tokens have the first type")
    config.expect("position_embedding_type", "absolute", why="relative positions are another model's")
    config.expect("is_decoder", False, why="this is an encoder")
    config.expect("add_cross_attention", False, why="there is nothing else to attend to")
    sizes = read_sizes(config, KEYS)
    norm = read_norm(config, "layer_norm_eps", kind="layer", has_bias=True)
    attention = AttentionSpec(
        **sizes.heads, scale=1 / math.sqrt(sizes.head_dim), qkv_bias=True, o_bias=True, is_causal=False
    )
    mlp = MLPSpec(sizes.inner, read_activation(config, default="gelu"), bias=True, is_gated=False)
    layer = LayerSpec(attention, mlp, norm, norm_inputs=False, norm_sums=True)
    num_rows = config.get("max_position_embeddings", int, least=1 + first_position, most=MAX_ANGLE)
    positions = PositionTableSpec(num_rows, first_position)
    layers, length = [layer] * sizes.num_layers, num_rows - first_position
    return make_model(
        config, sizes, layers, final_norm=norm, max_context=length, ties_by_default=True, has_head=False,
        embed_norm=norm, positions=positions,
    )  # fmt: skip
