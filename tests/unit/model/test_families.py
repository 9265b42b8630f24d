"""Every stored config.json is read completely, or refused by name; and nobody else's mistake gets through."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock
from penstock.errors import ModelLoadError
from penstock.model.build import build
from penstock.model.decoder import alibi_slopes
from penstock.model.family import FAMILIES, read_model
from penstock.model.generation import read_generation
from penstock.model.passes.fuse import fuse
from penstock.model.spec import LayerSpec, Mamba2Spec, MoESpec

CHECKPOINTS = Path(__file__).parents[2] / "fixtures" / "checkpoints"
EXPECTATIONS = json.loads((CHECKPOINTS / "expectations.json").read_text())
READ = [name for name, e in EXPECTATIONS.items() if e["expect"] == "read"]
REFUSED = [name for name, e in EXPECTATIONS.items() if e["expect"] == "refused"]

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}
DEFAULTS_OF_TEXT = {"num_attention_heads": 8, "vocab_size": 262208}  # of Gemma 3 with images
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"]}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("name", READ)
def test_a_widely_used_checkpoint_is_read(name):
    spec = read_model(CHECKPOINTS / name)
    whole = json.loads((CHECKPOINTS / name / "config.json").read_text())
    config = DEFAULTS_OF_TEXT | whole | whole["text_config"] if "text_config" in whole else whole
    first = 0 if spec.has_head or spec.positions is None else spec.positions.offset

    def said(*keys: str) -> Any:  # Any: JSON
        return next(config[key] for key in keys if key in config)

    assert spec.num_layers == said("num_hidden_layers", "n_layer")
    assert spec.hidden_size == said("hidden_size", "n_embd", "n_embed")
    assert spec.vocab_size == config["vocab_size"]
    assert spec.max_context >= config.get("max_position_embeddings", 1024) - first
    assert spec.dtype == config.get("torch_dtype", config.get("dtype"))
    assert spec.layers[0].mixer.num_heads == said("num_attention_heads", "n_head", "num_heads")
    assert set(range(spec.num_layers)) == {layer for group in spec.kv_groups() for layer in group.layers}
    assert read_generation(CHECKPOINTS / name).eos_token_ids or not spec.has_head


@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_that_would_be_served_wrongly_is_refused_by_name(name):
    with pytest.raises(ModelLoadError) as caught:
        read_model(CHECKPOINTS / name)

    assert any(word in str(caught.value) for word in EXPECTATIONS[name]["key_or_reason"].split("|"))
    assert caught.value.code in {"bad_config", "unsupported_architecture"}
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in READ if name.endswith("-v5")])
def test_the_newer_spelling_says_the_same_as_the_older_one(name):
    assert read_model(CHECKPOINTS / name) == read_model(CHECKPOINTS / name.removesuffix("-v5"))


def test_there_are_at_least_thirty_that_are_read():
    assert len(READ) >= 30


def test_facts_of_known_models():
    llama, nemo, qwen3 = (
        read_model(CHECKPOINTS / n) for n in ("llama-3.1-8b", "mistral-nemo-base-2407", "qwen3-8b")
    )

    assert llama.layers[0].attention.rope.kind == "llama3"
    assert llama.layers[0].attention.rope.original_max_position == 8192
    assert (nemo.layers[0].attention.head_dim, nemo.hidden_size) == (128, 5120)
    assert nemo.layers[0].attention.scale == pytest.approx(128**-0.5)
    assert qwen3.layers[0].attention.qk_norm == qwen3.final_norm
    assert not qwen3.layers[0].attention.qkv_bias
    assert read_model(CHECKPOINTS / "qwen2-7b").layers[0].attention.qkv_bias
    assert read_model(CHECKPOINTS / "mistral-7b-v0.1").layers[0].attention.window == 4096
    assert read_model(CHECKPOINTS / "mistral-7b-instruct-v0.2").layers[0].attention.window is None
    assert read_model(CHECKPOINTS / "llama-3.2-1b-instruct").tie_embeddings


def first_layer(name: str) -> LayerSpec:
    return read_model(CHECKPOINTS / name).layers[0]


def test_facts_of_states():
    codestral, small = (read_model(CHECKPOINTS / n) for n in ("mamba-codestral-7b-v0.1", "mamba2-370m"))
    mixer = codestral.layers[0].mixer

    assert isinstance(mixer, Mamba2Spec)
    assert (mixer.width, mixer.conv_width, mixer.num_groups, mixer.dt_limit) == (8192, 10240, 8, None)
    assert codestral.layers[0].mlp is None
    assert [group.is_state for group in codestral.kv_groups()] == [True]
    assert small.tie_embeddings


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"expand": 3}, "expand"),
        ({"n_groups": 7}, "n_groups"),
        ({"conv_kernel": 9}, "conv_kernel"),
        ({"time_step_limit": [0.5]}, "time_step_limit"),
        ({"time_step_limit": [2.0, 1.0]}, "time_step_limit"),
        ({"time_step_limit": [-1.0, 1.0]}, "time_step_limit"),
        ({"time_step_limit": "wide"}, "time_step_limit"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attn_layers": [3]}, "attn_layers"),
    ],
)
def test_states_that_are_not_understood_are_refused(changed, key):
    config = json.loads((CHECKPOINTS / "mamba2-370m" / "config.json").read_text())
    with pytest.raises(ModelLoadError, match=key):
        read_model(config | changed)


def test_a_step_may_be_bounded_and_infinity_be_written_as_transformers_does():
    config = json.loads((CHECKPOINTS / "mamba2-370m" / "config.json").read_text())
    bounded = read_model(config | {"time_step_limit": [0.5, {"__float__": "Infinity"}]})

    assert bounded.layers[0].mixer.dt_limit == (0.5, math.inf)


def test_facts_of_the_gemmas():
    gemma, gemma2, gemma3 = (
        read_model(CHECKPOINTS / n) for n in ("gemma-2b", "gemma-2-27b-it", "gemma-3-270m")
    )

    assert gemma.embed_scale == 45.25  # the root of 2048, in bfloat16
    assert gemma.final_norm.weight_offset == 1.0
    assert gemma.layers[0].mlp.act == "gelu_tanh"
    assert gemma2.layers[0].attention.scale == pytest.approx(144**-0.5)
    assert [layer.attention.window for layer in gemma2.layers[:3]] == [4096, None, 4096]
    assert (gemma2.layers[0].attention.softcap, gemma2.logit_softcap) == (50.0, 30.0)
    assert all(layer.norm_inputs and layer.norm_outputs for layer in gemma2.layers)
    assert [i for i, layer in enumerate(gemma3.layers) if layer.attention.window is None] == [5, 11, 17]
    assert {(a.window, a.rope.theta) for a in (layer.attention for layer in gemma3.layers)} == {
        (512, 1e4),
        (None, 1e6),
    }


def test_facts_of_blocks_that_run_side_by_side():
    falcon, falcon_40b, falcon_11b, pythia, cohere, stablelm = map(
        first_layer,
        ("falcon-7b", "falcon-40b", "falcon-11b", "pythia-6.9b", "c4ai-command-r-plus", "stablelm-2-12b"),
    )

    assert all(b.is_parallel for b in (falcon, falcon_40b, falcon_11b, pythia, cohere, stablelm))
    assert [b.shares_norm for b in (falcon, falcon_40b, falcon_11b, pythia, cohere, stablelm)] == [
        True, False, True, False, True, True
    ]  # fmt: skip
    assert (falcon.attention.num_kv_heads, falcon_40b.attention.num_kv_heads) == (1, 8)
    assert pythia.attention.rope.rotary_dim == 32
    assert cohere.attention.rope.interleaved
    assert cohere.attention.qk_norm_over == stablelm.attention.qk_norm_over == "each_head"
    assert not first_layer("stablelm-2-1.6b").is_parallel


def test_facts_of_multipliers_and_positions():
    granite, opt, bloom = (
        read_model(CHECKPOINTS / n) for n in ("granite-3.0-2b-instruct", "opt-125m", "bloom-560m")
    )

    assert (granite.embed_scale, granite.logit_scale) == (12.0, 0.125)
    assert (granite.layers[0].residual_scale, granite.layers[0].attention.scale) == (0.22, 0.015625)
    assert (opt.positions.num_rows, opt.positions.offset) == (2050, 2)
    assert read_model(CHECKPOINTS / "gpt2").positions.num_rows == 1024
    assert bloom.embed_norm == bloom.final_norm
    assert bloom.layers[0].attention.slopes[:2] == pytest.approx((2**-0.5, 2**-1.0))
    assert not any(layer.attention.rope for layer in bloom.layers)
    assert [bool(b.attention.rope) for b in read_model(CHECKPOINTS / "smollm3-3b").layers[:4]] == [
        True, True, True, False
    ]  # fmt: skip
    command = read_model(CHECKPOINTS / "c4ai-command-r7b-12-2024").layers[:4]
    assert [(b.attention.window, bool(b.attention.rope)) for b in command] == [(4096, True)] * 3 + [
        (None, False)
    ]
    assert read_model(CHECKPOINTS / "c4ai-command-r-v01").max_context == 131072
    assert first_layer("phi-4-mini-instruct").attention.rope.rotary_dim == 96
    olmo2 = first_layer("olmo-2-1124-7b")
    assert (olmo2.norm_inputs, olmo2.norm_outputs, olmo2.attention.qk_norm_over) == (False, True, "row")
    assert not first_layer("olmo-1b-hf").norm.has_weight


def test_embeddings_of_another_width_are_projected_there_and_back():
    spec = read_model(CHECKPOINTS / "opt-350m")
    program = fuse(
        build(spec, weight_format="int8", head_format="bfloat16", kv_dtype="bfloat16", max_context=8)
    )
    shapes = {name: use.shape for name, use in program.weights.items()}

    assert (spec.embed_size, spec.layers[0].norm_sums, spec.layers[0].norm_inputs) == (512, True, False)
    assert shapes["embed"] == shapes["lm_head"] == (50272, 512)
    assert (shapes["embed_in"], shapes["embed_out"]) == ((1024, 512), (512, 1024))
    assert shapes["positions"] == (2050, 1024)
    assert "final_norm" not in shapes
    assert read_model(CHECKPOINTS / "opt-125m").embed_size is None


def test_slopes_between_powers_of_two_are_every_second_one_of_twice_as_many_heads():
    slopes = alibi_slopes(6)

    assert slopes == pytest.approx([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3])
    assert alibi_slopes(32)[0] == np.float32(2**-0.25)
    assert alibi_slopes(32, dtype="bfloat16")[0] == 0.83984375


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("gemma-3-270m", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "mish"}, "activation_function"),
        ("opt-125m", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        ("bloom-560m", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
        ("falcon-7b", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ("pythia-160m", {"rotary_pct": 0.01}, "rotary_pct"),
        ("smollm3-3b", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("smollm3-3b", {"use_sliding_window": True}, "use_sliding_window"),
        ("c4ai-command-r7b-12-2024", {"position_embedding_type": "alibi"}, "position_embedding_type"),
        ("stablelm-2-12b", {"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    ],
)
def test_what_a_family_does_not_compute_is_refused_by_name(name, changes, word):
    config = json.loads((CHECKPOINTS / name / "config.json").read_text())
    with pytest.raises(ModelLoadError, match=word) as caught:
        read_model(config | changes)

    assert caught.value.code == "bad_config"


def test_scalings_stretch_the_context_they_say():
    assert read_model(CHECKPOINTS / "solar-0-70b").max_context == 8192
    assert read_model(CHECKPOINTS / "qwen3-8b-yarn").max_context == 131072
    assert read_model(CHECKPOINTS / "deepseek-coder-6.7b-instruct").max_context == 16384
    assert (
        read_model(
            LLAMA | {"rope_scaling": {"type": "linear", "factor": 4}, "max_sequence_length": 2048}
        ).max_context
        == 2048
    )


def test_mistral_without_a_word_has_its_default_window_and_null_has_none():
    mistral = LLAMA | {"architectures": ["MistralForCausalLM"]}

    assert read_model(mistral).layers[0].attention.window == 4096
    assert read_model(mistral | {"sliding_window": None}).layers[0].attention.window is None


def test_qwen_windows_begin_at_a_layer_and_make_two_kv_groups():
    old = QWEN2 | {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
    new = QWEN2 | {
        "use_sliding_window": True,
        "sliding_window": 32,
        "layer_types": ["full_attention", "sliding_attention"],
    }
    groups = read_model(old).kv_groups()

    assert [(g.layers, g.window) for g in groups] == [((0,), None), ((1,), 32)]
    assert read_model(new) == read_model(old)


def test_llama_biases_are_read():
    attention = read_model(LLAMA | {"attention_bias": True, "mlp_bias": True}).layers[0].attention

    assert attention.qkv_bias
    assert attention.o_bias


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "negative layers": ({"num_hidden_layers": -1}, "num_hidden_layers"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "no vocabulary": ({"vocab_size": 0}, "vocab_size"),
    "huge vocabulary": ({"vocab_size": 2**40}, "vocab_size"),
    "string for int": ({"hidden_size": "64"}, "hidden_size"),
    "float for int": ({"hidden_size": 64.0}, "hidden_size"),
    "bool for int": ({"num_hidden_layers": True}, "num_hidden_layers"),
    "list for int": ({"vocab_size": [1]}, "vocab_size"),
    "hidden not divisible": ({"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size"),
    "kv heads not dividing": ({"num_key_value_heads": 3}, "num_key_value_heads"),
    "more kv heads than heads": ({"num_key_value_heads": 8}, "num_key_value_heads"),
    "odd head": ({"head_dim": 33}, "head_dim"),
    "no head": ({"head_dim": 0}, "head_dim"),
    "huge head": ({"head_dim": 2**20}, "head_dim"),
    "no context": ({"max_position_embeddings": 0}, "max_position_embeddings"),
    "absurd context": ({"max_position_embeddings": 2**40}, "max_position_embeddings"),
    "theta 0": ({"rope_theta": 0}, "rope_theta"),
    "theta NaN": ({"rope_theta": float("nan")}, "rope_theta"),
    "theta infinite": ({"rope_theta": float("inf")}, "rope_theta"),
    "theta string": ({"rope_theta": "10000"}, "rope_theta"),
    "eps 0": ({"rms_norm_eps": 0}, "rms_norm_eps"),
    "eps huge": ({"rms_norm_eps": 1e9}, "rms_norm_eps"),
    "other activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "window in a llama": ({"sliding_window": 4096}, "sliding_window"),
    "interleaved rope": ({"rope_interleaved": True}, "rope_interleaved"),
    "remote code": ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    "unknown dtype": ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype"),
    "two dtypes": ({"dtype": "float16"}, "torch_dtype"),
    "tied by a string": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    "scaling is a list": ({"rope_scaling": []}, "rope_scaling"),
    "unknown scaling": ({"rope_scaling": {"type": "mrope", "factor": 2}}, "mrope"),
    "scaling without factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
    "scaling by 0": ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor"),
    "unknown key of a scaling": ({"rope_scaling": YARN | {"finetuned": True}}, "rope_scaling.finetuned"),
    "two types": ({"rope_scaling": YARN | {"type": "linear"}}, "rope_scaling.type"),
    "two ropes": ({"rope_scaling": YARN, "rope_parameters": YARN}, "rope_parameters"),
    "two thetas": ({"rope_parameters": YARN | {"rope_theta": 5.0}}, "rope_parameters.rope_theta"),
    "betas swapped": ({"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 32}}, "beta_fast"),
    "bands swapped": ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor"),
    "short factors": (
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 8}},
        "short_factor",
    ),
    "negative factors": (
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [-1.0] * 8}},
        "long_factor",
    ),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_absurd_values_are_refused_by_name(case):
    changes, word = HOSTILE[case]
    with pytest.raises(ModelLoadError) as caught:
        read_model(LLAMA | changes)

    assert caught.value.code == "bad_config"
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "rms_norm_eps"]
)
def test_a_missing_key_is_named(key):
    with pytest.raises(ModelLoadError, match=f'"{key}" is missing'):
        read_model({k: v for k, v in LLAMA.items() if k != key})


def test_a_misspelt_key_is_named_with_the_one_that_was_meant():
    with pytest.raises(ModelLoadError, match=r"num_hidden_layer.*num_hidden_layers"):
        read_model(LLAMA | {"num_hidden_layer": 3})
    with pytest.raises(ModelLoadError, match=r"hidden_size.*there is 'hiden_size'"):
        read_model({("hiden_size" if k == "hidden_size" else k): v for k, v in LLAMA.items()})


@pytest.mark.parametrize("key", ["temperature_scaling", "attention_sinks", "x" * 500])
def test_a_key_that_nobody_knows_is_refused(key):
    with pytest.raises(ModelLoadError) as caught:
        read_model(LLAMA | {key: 1})

    assert key[:50] in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("names", [None, [], "LlamaForCausalLM", ["LlamaForCausalLM", "X"], [3], ["llama"]])
def test_an_architecture_must_be_one_that_is_known(names):
    with pytest.raises(ModelLoadError, match=r"docs/models\.md") as caught:
        read_model(LLAMA | {"architectures": names})

    assert caught.value.code == "unsupported_architecture"


def test_qwen_layer_types_must_fit_the_rest():
    for types, word in (
        (["full_attention"], "entries"),
        (["full_attention", "linear"], "linear"),
        (7, "list"),
    ):
        with pytest.raises(ModelLoadError, match=word):
            read_model(QWEN2 | {"layer_types": types})
    with pytest.raises(ModelLoadError, match="no sliding window in use"):
        read_model(QWEN2 | {"layer_types": ["sliding_attention"] * 2})


def test_every_dense_family_of_this_step_is_there():
    assert {
        "BloomForCausalLM", "CohereForCausalLM", "Cohere2ForCausalLM", "FalconForCausalLM", "GPT2LMHeadModel",
        "GPTNeoXForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM",
        "GraniteForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "OPTForCausalLM", "OlmoForCausalLM",
        "Olmo2ForCausalLM", "Olmo3ForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
        "SmolLM3ForCausalLM",
        "StableLmForCausalLM", "Starcoder2ForCausalLM",
    } <= set(FAMILIES)  # fmt: skip


FAMILY_FILES = sorted((Path(penstock.__file__).parent / "model" / "families").glob("*.py"))


@pytest.mark.parametrize("path", FAMILY_FILES, ids=lambda path: path.stem)
def test_a_family_is_a_file_of_at_most_80_lines(path):
    assert len(path.read_text().splitlines()) <= 80


FILES: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"<html>",
    "cut off": b'{"hidden_size": 64',
    "a list": b"[]",
    "not UTF-8": b'{"a": "\xff"}',
    "NaN": b'{"rope_theta": NaN}',
    "infinity where a number is wanted": b'{"architectures": ["LlamaForCausalLM"], "hidden_size": Infinity}',
    "a key twice": b'{"vocab_size": 1, "vocab_size": 2}',
    "a depth bomb": b'{"a":' * 200_000,
    "a number bomb": b'{"vocab_size": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("case", FILES)
def test_a_broken_file_is_one_clear_line(case, tmp_path):
    (tmp_path / "config.json").write_bytes(FILES[case])
    with pytest.raises(ModelLoadError) as caught:
        read_model(tmp_path)

    assert caught.value.code == "bad_config"
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_a_giant_are_refused(tmp_path):
    with pytest.raises(ModelLoadError, match="missing"):
        read_model(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelLoadError, match="not a file"):
        read_model(tmp_path)
    giant = tmp_path / "giant"
    giant.mkdir()
    (giant / "config.json").write_bytes(b" " * (5 << 20))
    with pytest.raises(ModelLoadError, match="larger"):
        read_model(giant)


MOE = LLAMA | {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 3}
MOE |= {"moe_intermediate_size": 32}


def test_experts_stand_in_the_layers_that_are_not_said_to_be_dense():
    layers = read_model(
        MOE | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    ).layers

    assert [isinstance(layer.mlp, MoESpec) for layer in layers] == [False, True, False, False]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"mlp_only_layers": [2]}, "mlp_only_layers"),
        ({"mlp_only_layers": [True]}, "mlp_only_layers"),
        ({"use_sliding_window": True, "sliding_window": 10}, "use_sliding_window"),
        ({"num_experts": None}, "num_experts"),
    ],
)
def test_experts_that_cannot_be_are_refused_by_name(change, key):
    with pytest.raises(ModelLoadError, match=key):
        read_model(MOE | change)


def test_olmoe_with_clipped_queries_is_refused():
    olmoe = LLAMA | {"architectures": ["OlmoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 3}

    with pytest.raises(ModelLoadError, match="clip_qkv"):
        read_model(olmoe | {"clip_qkv": 8.0})


GLM = LLAMA | {"architectures": ["Glm4MoeForCausalLM"], "n_routed_experts": 8, "num_experts_per_tok": 3}
GLM |= {"moe_intermediate_size": 32}


@pytest.mark.parametrize("change", [{"n_group": 3}, {"n_group": 4, "topk_group": 1}])
def test_groups_that_do_not_hold_enough_experts_are_refused(change):
    assert isinstance(read_model(GLM | {"n_group": 4, "topk_group": 2}).layers[1].mlp, MoESpec)

    with pytest.raises(ModelLoadError, match="n_group"):
        read_model(GLM | change)


DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "vocab_size": 99, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 3,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "n_group": 4, "topk_group": 2, "moe_intermediate_size": 32, "q_lora_rank": 24, "kv_lora_rank": 32,
}  # fmt: skip
DEEPSEEK2 = DEEPSEEK | {"architectures": ["DeepseekV2ForCausalLM"], "topk_method": "group_limited_greedy"}


def test_facts_of_the_deepseeks():
    lite, big, r1 = (read_model(CHECKPOINTS / n) for n in ("deepseek-v2-lite", "deepseek-v2", "deepseek-r1"))
    mixers = [spec.layers[0].mixer for spec in (lite, big, r1)]

    assert [mixer.query_rank for mixer in mixers] == [None, 1536, 1536]
    assert {mixer.head_dim for mixer in mixers} == {512 + 64}
    assert mixers[0].rope.interleaved
    assert mixers[0].scale == pytest.approx(192**-0.5 * (0.1 * 0.707 * np.log(40) + 1) ** 2)
    assert [isinstance(layer.mlp, MoESpec) for layer in r1.layers].index(True) == 3
    experts = [spec.layers[-1].mlp for spec in (lite, big, r1)]
    assert [(e.num_groups, e.groups_kept) for e in experts] == [(1, 1), (8, 3), (8, 4)]
    assert [(e.score, e.renormalize, e.has_correction, e.scale) for e in experts] == [
        ("softmax", False, False, 1.0), ("softmax", False, False, 16.0), ("sigmoid", True, True, 2.5)
    ]  # fmt: skip
    assert experts[0].shared_size == 2 * 1408
    assert (lite.num_draft_layers, r1.num_draft_layers) == (0, 1)


@pytest.mark.parametrize(
    ("base", "change", "key"),
    [
        (DEEPSEEK, {"num_key_value_heads": 2}, "num_key_value_heads"),
        (DEEPSEEK, {"scoring_func": "softmax"}, "scoring_func"),
        (DEEPSEEK, {"topk_method": "greedy"}, "topk_method"),
        (DEEPSEEK, {"moe_layer_freq": 2}, "moe_layer_freq"),
        (DEEPSEEK, {"kv_lora_rank": 0}, "kv_lora_rank"),
        (DEEPSEEK, {"qk_rope_head_dim": 7}, "qk_rope_head_dim|partial_rotary_factor|head_dim"),
        (DEEPSEEK2, {"topk_method": "noaux_tc"}, "topk_method"),
        (DEEPSEEK2, {"norm_topk_prob": True}, "norm_topk_prob"),
        (DEEPSEEK2, {"n_group": 3}, "n_group"),
    ],
)
def test_latents_and_experts_of_another_kind_are_refused_by_name(base, change, key):
    assert read_model(base).layers[1].mixer.latent_dim == 32

    with pytest.raises(ModelLoadError, match=key):
        read_model(base | change)
