"""Whatever stands in config.json, it is read or refused in one line; and what was read can be built."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ModelLoadError
from penstock.model.build import build
from penstock.model.family import FAMILIES, read_model
from penstock.model.generation import merge_generation

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}
BLOCK = [
    "rope_type",
    "type",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
]
BLOCK += [
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "short_factor",
]
BLOCK += ["long_factor", "rope_theta", "partial_rotary_factor"]
KINDS = ["default", "linear", "dynamic", "llama3", "yarn", "longrope", "su", "nothing"]
KEYS = [
    *BASE,
    "head_dim",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "torch_dtype",
]
KEYS += ["tie_word_embeddings", "attention_bias", "mlp_bias", "max_sequence_length", "rope_interleaved"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**63, 10**400, -1]),
    st.floats(),
    st.sampled_from([*KINDS, "", "silu", "bfloat16", "\n\x00", "full_attention"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.sampled_from(BLOCK), inner),
    max_leaves=9,
)
blocks = st.dictionaries(st.sampled_from(BLOCK), values, max_size=6).flatmap(
    lambda block: st.sampled_from(KINDS).map(lambda kind: {"rope_type": kind, "factor": 2.0, **block})
)
changes = st.dictionaries(st.sampled_from(KEYS), values, max_size=3)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    architecture=st.sampled_from([*FAMILIES, "GPT2LMHeadModel"]),
    changes=changes,
    rope=st.one_of(st.none(), blocks, values),
    spelling=st.sampled_from(["rope_scaling", "rope_parameters"]),
)
def test_a_config_is_read_or_refused_in_one_line(architecture, changes, rope, spelling):
    config = BASE | {"architectures": [architecture], spelling: rope} | changes
    try:
        spec = read_model(config)
    except ModelLoadError as error:
        assert error.code in {"bad_config", "unsupported_architecture"}
        assert "\n" not in str(error)
        assert len(str(error)) < 400
        return
    program = build(
        spec, weight_format="bfloat16", head_format="bfloat16", kv_dtype="bfloat16", max_context=4
    )

    assert program.num_layers == spec.num_layers
    assert spec.vocab_size >= 1


@given(config=st.dictionaries(st.sampled_from(["eos_token_id", "bos_token_id"]), values), generation=values)
def test_generation_defaults_are_read_or_refused_in_one_line(config, generation):
    holder = generation if isinstance(generation, dict) else {"eos_token_id": generation, "top_k": generation}
    try:
        defaults = merge_generation(config, holder)
    except ModelLoadError as error:
        assert error.code == "bad_config"
        assert "\n" not in str(error)
        return

    assert all(type(i) is int and i >= 0 for i in defaults.eos_token_ids)
