"""Gemma 3 with an image encoder (4B and more): the text model alone, which `text_config` describes.

Images are not read; the encoder's tensors are left out, and a line at start says so.
"""

from dataclasses import replace
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.families.gemma3 import gemma3
from penstock.model.family import family, ignore_what_computes_nothing
from penstock.model.names import HF_SANDWICH, plain
from penstock.model.spec import ModelSpec

WITH_IMAGES: Final = replace(
    HF_SANDWICH,
    top={
        "embed": "language_model.model.embed_tokens.weight",
        **plain(final_norm="language_model.model.norm", lm_head="language_model.lm_head"),
    },
    layer_prefix="language_model.model.layers.{}.",
    inert=(r"(model\.)?(vision_tower|multi_modal_projector)\..*",),
    renamed={"model.language_model.": "language_model.model."},  # as transformers 5 spells it
)
DEFAULTS: Final = {  # of text_config, which says only what is otherwise
    "vocab_size": 262208, "num_attention_heads": 8, "rms_norm_eps": 1e-6, "hidden_size": 2304,
    "intermediate_size": 9216, "num_hidden_layers": 26,
}  # fmt: skip


@family("Gemma3ForConditionalGeneration", names=WITH_IMAGES)
def gemma3_with_images(config: ConfigReader) -> ModelSpec:
    for key in ("boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image"):
        config.ignore(key, "vision_config", why="of images, which are not read")
    shared = {key: config.find(key, str) for key in ("torch_dtype", "dtype")}
    tied = {"tie_word_embeddings": config.get("tie_word_embeddings", bool, True)}
    text = config.nested("text_config", {**DEFAULTS, **shared, **tied})
    if text is None:
        raise config.refuse("text_config", "is missing; it describes the text model")
    ignore_what_computes_nothing(text)
    text.ignore("torch_dtype", "dtype", why="of the whole file")
    model = gemma3(text)
    text.finish()
    return replace(model, left_out="the image encoder; images are not read")
