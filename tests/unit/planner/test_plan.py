from dataclasses import replace
from typing import Any

import pytest

from penstock.config import EngineConfig, Plan
from penstock.errors import ConfigError, ModelLoadError, OutOfMemoryError, PenstockError
from penstock.model.spec import (
    AttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    Mamba2Spec,
    MLPSpec,
    ModelSpec,
    NormSpec,
    RopeSpec,
)
from penstock.planner.machine import Machine
from penstock.planner.plan import Facts, make_plan

GB = 10**9
MACHINE = Machine(cores=8, memory_bytes=16 * GB, available_bytes=12 * GB)
WEIGHTS = {"float32": 4 * GB, "float16": 2 * GB, "bfloat16": 2 * GB, "int8": GB, "int4_g64": GB // 2}
TOKEN_BYTES = 1000  # of keys and values of one layer


def spec(*, max_context: int = 4096, windows: tuple[int | None, ...] = (None, None)) -> ModelSpec:
    norm = NormSpec(eps=1e-5)
    layers = tuple(
        LayerSpec(
            AttentionSpec(num_heads=2, num_kv_heads=1, head_dim=32, scale=1.0, window=window),
            MLPSpec(128),
            norm,
        )
        for window in windows
    )
    return ModelSpec(64, 1000, layers, norm, max_context, tie_embeddings=True)


def facts(
    *,
    dtype: str = "bfloat16",
    isa: str | None = "avx512",
    refusals: tuple[str, ...] = (),
    num_layers: int = 2,
) -> Facts:
    return Facts(
        dtype, isa, refusals,
        weight_bytes=lambda weight_format, head: WEIGHTS.get(weight_format, GB // 2) + len(head),
        layer_block_bytes=lambda _, dtype, size: (
            [size * TOKEN_BYTES * (2 if dtype == "float32" else 1)] * num_layers
        ),
    )  # fmt: skip


def plan(
    model: ModelSpec | None = None, given: Facts | None = None, machine: Machine = MACHINE, **options: Any
) -> Plan:
    return make_plan(EngineConfig(**options), model or spec(), given or facts(), machine)


def refusal(kind: type[PenstockError], *words: str, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        plan(**options)
    line = str(caught.value)

    assert line.isprintable()
    assert all(word in line for word in words), line
    return line


def test_beginnings_are_not_shared_where_rows_read_what_comes_after_them() -> None:
    layer = spec().layers[0]
    both_ways = replace(
        spec(), layers=(layer, replace(layer, mixer=replace(layer.attention, is_causal=False)))
    )
    made = plan(both_ways)

    assert not made.prefix_cache
    assert "after" in made.reasons["prefix_cache"]


def test_a_cache_of_latents_is_called_one() -> None:
    norm, rope = NormSpec(1e-6), RopeSpec(64, 1e4, 4096)
    latents = LatentAttentionSpec(16, 512, 128, 64, 128, 0.07, norm, rope)
    made = plan(replace(spec(), layers=(replace(spec().layers[0], mixer=latents),)))

    assert made.reasons["kv_dtype"].endswith("; of each token 512 + 64 numbers for all 16 heads (MLA)")
    assert "MLA" not in plan().reasons["kv_dtype"]


def test_int8_keys_and_values_are_lossy_and_say_so() -> None:
    made = plan(kv_dtype="int8")

    assert (made.kv_dtype, made.dtype, made.is_faithful) == ("int8", "bfloat16", False)
    assert made.reasons["kv_dtype"] == "--kv-dtype int8: lossy"
    assert "int8 keys and values approximately" in made.reasons["is_faithful"]
    assert plan().is_faithful


def test_a_dtype_of_keys_and_values_is_refused_where_there_are_none() -> None:
    mixer = Mamba2Spec(4, 16, 32, 1, 4, NormSpec(1e-5))
    model = replace(spec(), layers=(replace(spec().layers[0], mixer=mixer, mlp=None),) * 2)

    assert "states" in plan(model).reasons["kv_dtype"]
    refusal(ConfigError, "kv_dtype 'int8'", "states", "Leave it out", model=model, kv_dtype="int8")


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "fp8"])
def test_what_is_no_lossy_kv_dtype_is_refused(kv_dtype: str) -> None:
    refusal(ConfigError, kv_dtype, "int8", kv_dtype=kv_dtype)


def test_without_options_everything_is_decided_and_has_a_reason() -> None:
    made = plan()

    assert set(made.reasons) == set(Plan.__struct_fields__) - {"reasons"}
    assert all(made.reasons.values())
    assert "auto" not in [getattr(made, name) for name in Plan.__struct_fields__]
    assert (made.backend, made.isa, made.block_size) == ("cpu", "avx512", 64)
    assert (made.max_requests, made.max_step_tokens, made.max_context) == (64, 512, 4096)
    assert (made.threads, made.prefix_cache, made.policy) == (8, True, "fcfs")


def test_with_every_option_given_every_field_has_a_reason_too() -> None:
    made = plan(
        backend="reference", dtype="float32", max_context=100, max_requests=3, max_step_tokens=7, threads=2,
        seed=1, memory_bytes=GB, block_size=16, prefix_cache=False, key_share=0.25, policy="priority",
    )  # fmt: skip

    assert set(made.reasons) == set(Plan.__struct_fields__) - {"reasons"}
    assert (made.backend, made.isa, made.block_size, made.threads, made.seed) == ("reference", "", 16, 2, 1)
    assert (made.max_context, made.max_requests, made.max_step_tokens) == (100, 3, 7)
    assert (made.prefix_cache, made.key_share, made.policy) == (False, 0.25, "priority")


def test_a_share_that_is_none_is_refused() -> None:
    for share in (0.0, 1.01, -1.0, float("nan")):
        refusal(ConfigError, "key_share", "0.01 to 1", key_share=share)


# Backend.


def test_without_native_kernels_the_reference_runs_and_says_why() -> None:
    for given, why in (
        (facts(isa=None), "no C++ compiler"),
        (facts(refusals=("op moe has no native kernel", "head_dim 512 is above 256")), "moe"),
    ):
        made = plan(given=given)

        assert (made.backend, made.isa) == ("reference", "")
        assert why in made.reasons["backend"]


def test_the_cpu_backend_asked_for_in_vain_is_refused_with_the_reason() -> None:
    refusal(ConfigError, "no native kernels", "--backend", given=facts(isa=None), backend="cpu")
    refusal(ConfigError, "op moe", given=facts(refusals=("op moe has no native kernel",)), backend="cpu")


def test_an_unknown_backend_is_refused_and_not_taken_for_another() -> None:
    refusal(ConfigError, "cuda", "reference", backend="cuda")


# Formats.


@pytest.mark.parametrize(
    ("own", "options", "weight_format", "contract", "kv_dtype", "is_faithful"),
    [
        ("bfloat16", {}, "bfloat16", "bfloat16", "bfloat16", True),
        ("float16", {}, "float16", "float32", "float32", True),
        ("float32", {}, "float32", "float32", "float32", True),
        ("bfloat16", {"dtype": "bfloat16"}, "bfloat16", "bfloat16", "bfloat16", True),
        ("bfloat16", {"dtype": "float32"}, "float32", "float32", "float32", True),
        ("float16", {"dtype": "float16"}, "float16", "float32", "float32", True),
        ("float16", {"dtype": "float32"}, "float32", "float32", "float32", True),
        ("float16", {"dtype": "bfloat16"}, "bfloat16", "bfloat16", "bfloat16", False),
        ("float32", {"dtype": "bfloat16"}, "bfloat16", "bfloat16", "bfloat16", False),
        ("bfloat16", {"weights": "int8"}, "int8", "int8", "bfloat16", False),
        ("float32", {"weights": "int4"}, "int4_g64", "int8", "bfloat16", False),
        ("float16", {"weights": "int4_g32"}, "int4_g32", "int8", "bfloat16", False),
        ("bfloat16", {"weights": "int4_g128", "dtype": "bfloat16"}, "int4_g128", "int8", "bfloat16", False),
    ],
)
def test_formats_follow_the_checkpoint_and_what_was_asked(
    own: str, options: dict[str, Any], weight_format: str, contract: str, kv_dtype: str, is_faithful: bool
) -> None:
    made = plan(given=facts(dtype=own), **options)
    head = "int8" if "weights" in options else weight_format

    assert (made.weight_format, made.head_format) == (weight_format, head)
    assert (made.contract, made.kv_dtype, made.is_faithful) == (contract, kv_dtype, is_faithful)
    assert made.dtype == kv_dtype
    assert made.weight_bytes == facts().weight_bytes(weight_format, head)
    assert ("lossy" in made.reasons["weight_format"]) == ("weights" in options)


def test_formats_that_cannot_be_are_refused() -> None:
    refusal(ConfigError, "int3", "int8", weights="int3")
    refusal(ConfigError, "float64", "bfloat16", dtype="float64")
    refusal(ConfigError, "float16", "overflow", dtype="float16")
    refusal(ConfigError, "float16", given=facts(dtype="float32"), dtype="float16")
    refusal(ConfigError, "weights int8", "dtype", weights="int8", dtype="float32")


def test_weights_that_no_format_holds_are_refused_as_a_checkpoint() -> None:
    for dtype in ("int64", "bool", "float8_e4m3fn"):
        with pytest.raises(ModelLoadError, match=dtype) as caught:
            plan(given=facts(dtype=dtype))

        assert caught.value.code == "dtype_unsupported"


# Memory.


@pytest.mark.parametrize(
    ("options", "advice"),
    [({}, "int8 or int4"), ({"weights": "int8"}, "--weights int4"), ({"weights": "int4"}, "smaller model")],
)
def test_weights_beyond_the_free_memory_are_refused_with_the_numbers(options: Any, advice: str) -> None:
    small = Machine(8, 16 * GB, GB // 4)

    refusal(OutOfMemoryError, "0.25 GB", advice, machine=small, **options)


def test_memory_for_keys_and_values_is_a_share_of_what_the_weights_leave() -> None:
    made = plan(spec(max_context=1 << 20), max_requests=65536, max_step_tokens=65536)
    free = MACHINE.available_bytes - made.weight_bytes

    assert 0.69 * free < made.kv_bytes <= 0.7 * free


def test_no_more_is_taken_than_all_requests_at_full_length_need() -> None:
    made = plan(max_requests=2)

    assert made.num_kv_blocks == (1 + 2 * 4096 // 64,)
    assert made.kv_bytes == made.num_kv_blocks[0] * 64 * 2 * TOKEN_BYTES


def test_memory_asked_for_is_kept_to() -> None:
    made = plan(memory_bytes=50_000_000, max_context=1000)

    assert 0.9 * 50_000_000 < made.kv_bytes <= 50_000_000


def test_memory_that_is_not_there_or_absurd_is_refused() -> None:
    refusal(OutOfMemoryError, "11.00 GB", "10.00 GB", memory_bytes=11 * GB)
    refusal(ConfigError, "memory_bytes=0", memory_bytes=0)
    refusal(ConfigError, "memory_bytes=-5", memory_bytes=-5)


def test_layers_with_a_window_are_a_group_of_their_own() -> None:
    made = plan(spec(windows=(None, 128)), max_requests=4)

    assert len(made.num_kv_blocks) == 2
    assert made.num_kv_blocks[1] < made.num_kv_blocks[0]


# Context.


def test_a_context_that_does_not_fit_is_shortened_to_the_longest_that_does() -> None:
    model, memory = spec(max_context=100_000), 64 * 2 * TOKEN_BYTES * 101  # a null block and a hundred
    made = plan(model, memory_bytes=memory)

    assert made.max_context == 6400
    assert "100,000" in made.reasons["max_context"]
    assert made.num_kv_blocks == (101,)
    refusal(OutOfMemoryError, "6,401", model=model, memory_bytes=memory, max_context=6401)


def test_memory_that_holds_no_token_is_refused() -> None:
    refusal(OutOfMemoryError, "hold no token", memory_bytes=64 * 2 * TOKEN_BYTES * 2 - 1)
    assert plan(memory_bytes=64 * 2 * TOKEN_BYTES * 2).max_context == 64


@pytest.mark.parametrize("max_context", [0, -1, 4097, 1 << 40])
def test_a_context_the_model_was_not_made_for_is_refused(max_context: int) -> None:
    refusal(ConfigError, "4,096", max_context=max_context)


def test_a_context_asked_for_is_kept_to() -> None:
    assert [plan(max_context=n).max_context for n in (1, 100, 4096)] == [1, 100, 4096]


# Steps.


def test_a_step_holds_at_least_one_token_of_each_request() -> None:
    assert plan(max_requests=2000).max_step_tokens == 2000
    assert plan(max_step_tokens=10).max_requests == 10
    refusal(ConfigError, "max_step_tokens=10", "max_requests=11", max_step_tokens=10, max_requests=11)


@pytest.mark.parametrize("max_requests", [0, -1, 65537])
def test_absurd_numbers_of_requests_are_refused(max_requests: int) -> None:
    refusal(ConfigError, str(max_requests), max_requests=max_requests)


@pytest.mark.parametrize("max_step_tokens", [0, -1, (1 << 20) + 1])
def test_absurd_steps_are_refused(max_step_tokens: int) -> None:
    refusal(ConfigError, str(max_step_tokens), max_step_tokens=max_step_tokens)


def test_block_sizes_are_those_of_the_backend() -> None:
    assert plan(block_size=64).block_size == 64
    assert plan(backend="reference", block_size=1).block_size == 1
    refusal(ConfigError, "16", "64", block_size=16)
    for block_size in (0, -1, 4097):
        refusal(ConfigError, str(block_size), backend="reference", block_size=block_size)


# The rest.


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_absurd_numbers_of_threads_are_refused(threads: int) -> None:
    refusal(ConfigError, str(threads), "8", threads=threads)


def test_a_seed_is_kept_or_drawn_anew_each_time() -> None:
    assert plan(seed=-(2**63)).seed == -(2**63)
    assert plan(seed=0).seed == 0
    assert len({plan().seed for _ in range(8)}) == 8
    refusal(ConfigError, "64-bit", seed=2**63)
    refusal(ConfigError, "64-bit", seed=-(2**63) - 1)


def test_a_plan_is_a_function_of_what_it_is_given() -> None:
    assert plan(seed=1) == plan(seed=1)


@pytest.mark.parametrize("head", ["int8", "int4_g64"])
def test_a_head_is_quantized_as_asked(head: str) -> None:
    made = plan(weights="int4", head=head)

    assert made.head_format == head
    assert not made.is_faithful


def test_a_head_alone_is_not_quantized() -> None:
    refusal(ConfigError, "head", "--weights", head="int8")


@pytest.mark.parametrize("activations", ["int8", "bfloat16"])
def test_integer_weights_meet_the_activations_asked_for(activations: str) -> None:
    made = plan(weights="int8", activations=activations)

    assert (made.activations, made.contract) == (activations, activations)
    assert not made.is_faithful


def test_activations_are_for_integer_weights() -> None:
    refusal(ConfigError, "activations", "integer weights", activations="int8")


CODED = replace(facts(), code_formats=("int4_g32", "int8_super16"), head_format="int8_super16")


def test_a_checkpoint_of_codes_is_run_as_it_is() -> None:
    made = plan(given=CODED)

    assert (made.weight_format, made.head_format) == ("int4_g32+int8_super16", "int8_super16")
    assert (made.contract, made.kv_dtype, made.is_faithful) == ("bfloat16", "bfloat16", True)
    assert set(made.reasons) == set(Plan.__struct_fields__) - {"reasons"}


def test_codes_of_every_integer_format_meet_int8_where_it_is_asked_for() -> None:
    made = plan(given=CODED, activations="int8")

    assert (made.activations, made.contract, made.is_faithful) == ("int8", "int8", False)


@pytest.mark.parametrize(
    "beside", [{"code_formats": ("int4_g32", "mxfp4")}, {"float_formats": ("bfloat16",)}], ids=str
)
def test_what_is_no_integer_is_named_when_int8_is_asked_for(beside: dict[str, tuple[str, ...]]) -> None:
    name = next(iter(beside.values()))[-1]
    line = refusal(ConfigError, name, given=replace(CODED, **beside), activations="int8")

    assert "int4_g32" not in line
