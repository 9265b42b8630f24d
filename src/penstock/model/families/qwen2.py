"""Qwen2 and 2.5: Llama with biases on q, k, v, and windows that may begin at a layer. arXiv:2407.10671."""

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_sizes
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.rope import MAX_ANGLE
from penstock.model.spec import ModelSpec


@family("Qwen2ForCausalLM")
def qwen2(config: ConfigReader) -> ModelSpec:
    return llama_shaped(config, read_sizes(config), windows=lambda n: read_windows(config, n), qkv_bias=True)


def read_windows(config: ConfigReader, num_layers: int) -> tuple[int | None, ...]:
    """The window of every layer: none unless `use_sliding_window`, whatever else the file holds.

    The newer spelling is `layer_types`; in the older one, layers from `max_window_layers` on have it.
    """
    config.expect("use_mrope", False, why="positions of images come with their encoder")
    is_used = config.get("use_sliding_window", bool, False)
    window = config.find("sliding_window", int, least=0, most=MAX_ANGLE) or None  # 0: none, as Qwen2-MoE says
    first = config.find("max_window_layers", int, least=0)
    kinds = config.layer_types(num_layers, "full_attention", "sliding_attention")
    if kinds is None:
        begin = num_layers if first is None or not is_used else first
        kinds = tuple("full_attention" if i < begin else "sliding_attention" for i in range(num_layers))
    if "sliding_attention" not in kinds:
        return (None,) * num_layers
    if not is_used or window is None:
        raise config.refuse("layer_types", "names sliding_attention, but there is no sliding window in use")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
