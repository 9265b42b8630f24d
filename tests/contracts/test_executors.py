"""Every executor keeps the promises of penstock.step.Executor, and is near the numpy reference.

Small random programs that together use every attribute of the attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from tests.parity.steps import Sequences, greedy_rows

from penstock.backends.reference.executor import ReferenceExecutor
from penstock.model.build import build
from penstock.model.passes.fuse import fuse
from penstock.model.program import Program
from penstock.model.spec import (
    AttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    MLPSpec,
    ModelSpec,
    NormSpec,
    RopeSpec,
)
from penstock.step import Executor, StepInput

native = pytest.importorskip("penstock._native")
from penstock.backends.cpu.executor import CpuExecutor  # noqa: E402  (needs the native build)
from penstock.backends.cpu.lower import Limits  # noqa: E402
from penstock.weights.format import FORMATS  # noqa: E402
from penstock.weights.loader import LoadedWeights  # noqa: E402

NORM = NormSpec(eps=1e-5)
ROPE = RopeSpec(rotary_dim=32, theta=10000.0, max_position=256)
PLAIN = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=32, scale=0.2, rope=ROPE)
LATENTS = LatentAttentionSpec(
    num_heads=17, latent_dim=64, nope_dim=24, rope_dim=16, value_dim=32, scale=0.2, norm=NORM,
    rope=replace(ROPE, rotary_dim=16, interleaved=True), query_rank=40,
)  # fmt: skip
MAX_CONTEXT = 256
Mixer = AttentionSpec | LatentAttentionSpec
Attentions = Mixer | tuple[Mixer, Mixer]  # of both layers, or of each
ATTENTIONS: dict[str, Attentions] = {
    "plain": PLAIN,
    "window, qk-norm": replace(PLAIN, window=20, qk_norm=NORM),
    "softcap": replace(PLAIN, softcap=5.0, qkv_bias=True),
    "sinks": replace(PLAIN, sinks=True, num_heads=3, num_kv_heads=1, window=33),
    "alibi": replace(PLAIN, rope=None, slopes=(0.5, 0.25, 0.125, 0.0625)),
    "seventy-one heads": replace(PLAIN, num_heads=71, num_kv_heads=1, head_dim=16, rope=None, scale=0.25),
    "both ways": replace(PLAIN, is_causal=False),
    "both ways, window": replace(PLAIN, is_causal=False, window=20),
    "latents": LATENTS,
    "latents beside keys and values": (PLAIN, replace(LATENTS, query_rank=None, num_heads=3)),
    "other heads in each layer": (PLAIN, replace(PLAIN, num_heads=6, num_kv_heads=3)),
}
# Relative to the largest logit. bf16: the two orders of summing an operand's products may round it apart.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def program_of(
    attention: Attentions, dtype: str, *, kv_dtype: str | None = None, max_context: int = MAX_CONTEXT
) -> Program:
    both = attention if isinstance(attention, tuple) else (attention, attention)
    layers = tuple(LayerSpec(each, MLPSpec(64), NORM) for each in both)
    spec = ModelSpec(64, 96, layers, NORM, max_context, False)
    return fuse(
        build(
            spec, weight_format=dtype, head_format=dtype, kv_dtype=kv_dtype or dtype, max_context=max_context
        )
    )


def random_weights(program: Program) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    weights = {}
    for name, use in program.weights.items():
        values = rng.standard_normal(use.shape, np.float32)
        values = values * np.float32(2 / np.sqrt(use.shape[-1])) if len(use.shape) == 2 else 1 + 0.2 * values
        weights[name] = FORMATS["bfloat16"].unpack(FORMATS["bfloat16"].pack(values), *use.shape) \
            if use.kind == "linear" else values.astype(np.float32)  # fmt: skip
    return weights


def reference(program: Program) -> Executor:
    blocks = [9] * len(program.kv_groups)
    return ReferenceExecutor(program, random_weights(program), num_kv_blocks=blocks, block_size=64)


def cpu(program: Program, *, isa: str | None = None, threads: int = 1, num_blocks: int = 9) -> Executor:
    loaded = LoadedWeights()
    for name, values in random_weights(program).items():
        use = program.weights[name]
        if use.kind == "linear":
            assert use.format is not None
            packed = FORMATS[use.format].pack(values)
            room = np.empty(packed.nbytes + 64, np.uint8)
            aligned = room[-room.ctypes.data % 64 :][: packed.nbytes]
            aligned[:] = packed
            loaded.packed[name] = aligned
        else:
            (loaded.vectors if use.kind == "vector" else loaded.embeddings)[name] = values
    limits = Limits(640, 640, (num_blocks,) * len(program.kv_groups))
    return CpuExecutor(program, loaded, limits, isa=isa or native.best_isa(), pool=native.Pool(threads))


def logits(
    executor: Executor, steps: Sequence[Mapping[int, Sequence[int]]], *, num_groups: int
) -> list[np.ndarray]:
    """[tokens, V] per request, however the tokens were divided into steps."""
    sequences = Sequences(executor, ((1, 5, 7), (2, 8, 3)), num_groups=num_groups)
    found: dict[int, list[np.ndarray]] = {}
    for step in steps:
        for request, rows in sequences.run(step).items():
            found.setdefault(request, []).append(rows)
    return [np.concatenate(found[request]) for request in sorted(found)]


TOKENS = {r: np.random.default_rng(r).integers(0, 96, n).tolist() for r, n in ((0, 75), (1, 40))}
TOGETHER = [TOKENS]
APART = [{r: t} for r, t in TOKENS.items()]
IN_CHUNKS = [
    {0: TOKENS[0][:30]},
    {0: TOKENS[0][30:31], 1: TOKENS[1][:39]},
    {1: TOKENS[1][39:], 0: TOKENS[0][31:]},
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_native_logits_are_near_the_reference(name: str, dtype: str) -> None:
    program = program_of(ATTENTIONS[name], dtype)
    groups = len(program.kv_groups)
    expected = logits(reference(program), TOGETHER, num_groups=groups)
    got = logits(cpu(program), TOGETHER, num_groups=groups)

    for one, other in zip(got, expected, strict=True):
        assert np.abs(one - other).max() < TOLERANCE[dtype] * np.abs(other).max()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_rows_have_the_same_bytes_alone_in_company_and_in_chunks(name: str, dtype: str) -> None:
    program = program_of(ATTENTIONS[name], dtype)
    groups = len(program.kv_groups)
    expected = logits(cpu(program), TOGETHER, num_groups=groups)
    reads_ahead = "both ways" in name
    ways = [APART] if reads_ahead else [APART, IN_CHUNKS]
    for isa in native.isas():
        for steps in ways:
            got = logits(cpu(program, isa=isa, threads=2), steps, num_groups=groups)

            assert [rows.tobytes() for rows in got] == [rows.tobytes() for rows in expected]


@pytest.mark.parametrize("name", ["plain", "window, qk-norm", "sinks", "latents"])
def test_int8_keys_and_values_are_near_the_reference_and_invariant(name: str) -> None:
    program = program_of(ATTENTIONS[name], "bfloat16", kv_dtype="int8")
    expected = logits(reference(program), TOGETHER, num_groups=1)
    first = logits(cpu(program), TOGETHER, num_groups=1)

    for one, other in zip(first, expected, strict=True):
        assert np.abs(one - other).max() < 4e-2 * np.abs(other).max()
    for isa in native.isas():
        for steps in (APART, IN_CHUNKS):
            got = logits(cpu(program, isa=isa, threads=2), steps, num_groups=1)

            assert [rows.tobytes() for rows in got] == [rows.tobytes() for rows in first]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_hidden_rows_are_near_the_reference_and_invariant(dtype: str) -> None:
    program = program_of(PLAIN, dtype)
    expected = Sequences(reference(program), ((1, 5, 7), (2, 8, 3)), num_groups=1).hidden(TOKENS)
    first = Sequences(cpu(program), ((1, 5, 7), (2, 8, 3)), num_groups=1).hidden(TOKENS)
    for request, rows in expected.items():
        assert np.abs(first[request] - rows).max() < TOLERANCE[dtype] * np.abs(rows).max()
    for isa in native.isas():
        sequences = Sequences(cpu(program, isa=isa, threads=2), ((1, 5, 7), (2, 8, 3)), num_groups=1)
        parts: dict[int, bytes] = {0: b"", 1: b""}
        for step in IN_CHUNKS:
            for request, rows in sequences.hidden(step).items():
                parts[request] += rows.tobytes()

        assert parts == {request: rows.tobytes() for request, rows in first.items()}


def test_hidden_rows_may_be_any_rows_beside_others_that_need_logits() -> None:
    program = program_of(PLAIN, "bfloat16")
    for make in (cpu, reference):
        whole = Sequences(make(program), ((1, 5, 7), (2, 8, 3)), num_groups=1)
        expected, rows = whole.hidden({0: TOKENS[1]})[0], [3, 0, 39]
        tokens = np.array(TOKENS[1], np.int32)
        step = StepInput(
            tokens=tokens, positions=np.arange(40, dtype=np.int32), query_start=np.array([0, 40], np.int32),
            context_len=np.array([40], np.int32), block_tables=(np.array([[1, 5]], np.int32),),
            logit_rows=np.array([7], np.int32), sampling=greedy_rows(1), taps=("logits", "hidden"),
            hidden_rows=np.array(rows, np.int32),
        )  # fmt: skip
        taps = make(program).forward(step).taps

        assert taps["hidden"].tobytes() == expected[rows].tobytes()
        assert taps["logits"].shape == (1, 96)
        with pytest.raises((ValueError, IndexError)):
            make(program).forward(replace(step, hidden_rows=np.array([40], np.int32)))


def test_attention_both_ways_refuses_a_part_of_a_request() -> None:
    program = program_of(ATTENTIONS["both ways"], "bfloat16")

    with pytest.raises(ValueError, match="whole requests"):
        logits(cpu(program), IN_CHUNKS, num_groups=1)
