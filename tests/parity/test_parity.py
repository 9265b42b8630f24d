"""Do our logits agree with transformers, on a tiny random model of every family and every rope?

The goldens are stored (tools/goldens/make_parity.py), so no torch is needed. The bars are the project's:
float32: error <= 1e-4 of the largest logit, 64 greedy tokens equal. bfloat16, against the float32 oracle:
RMS error <= 1.1 times that of transformers in bfloat16, and the same argmax wherever the oracle's margin
exceeds 4 times transformers' own largest error.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.parity.steps import Sequences, argmax_sampler

from penstock.backends.cpu.probe import isas
from penstock.backends.reference.executor import ReferenceExecutor
from penstock.model.build import build
from penstock.model.family import FAMILIES, read_model
from penstock.model.passes.fuse import fuse
from penstock.model.program import Program
from penstock.model.unfold import unfold
from penstock.ops.rounding import to_bfloat16
from penstock.step import Executor
from penstock.weights.loader import Wanted, load
from penstock.weights.reader import read_checkpoint

GOLDENS = Path(__file__).parents[1] / "goldens" / "parity"
MODELS = sorted(folder.name for folder in GOLDENS.iterdir())
BLOCK_SIZE = 64
NUM_BLOCKS = 16
TABLES = ((3, 11, 5, 0, 7), (1, 2, 15, 9, 4))

MakeExecutor = Callable[[Path, Program], Executor]


class Golden:
    """One model folder and what transformers said of it."""

    def __init__(self, name: str) -> None:
        self.folder = GOLDENS / name
        stored = np.load(self.folder / "logits.npz")
        self.prompt, self.greedy, self.rows = stored["prompt"], stored["greedy"], stored["rows"]
        self.exact = stored["float32"]
        self.rounded = stored["bfloat16"].view(ml_dtypes.bfloat16).astype(np.float32)
        self.tokens = np.concatenate([self.prompt, self.greedy])
        self.spec = read_model(self.folder)
        self.max_context = min(int(stored["max_context"]), self.spec.max_context)

    def program(self, dtype: str) -> Program:
        return fuse(
            build(
                self.spec,
                weight_format=dtype,
                head_format=dtype,
                kv_dtype=dtype,
                max_context=self.max_context,
            )
        )

    def sequences(self, make: MakeExecutor, dtype: str) -> Sequences:
        program = self.program(dtype)
        return Sequences(make(self.folder, program), TABLES, num_groups=len(program.kv_groups))


def reference_executor(folder: Path, program: Program) -> Executor:
    """The numpy walk of the program, over the checkpoint's own tensors."""
    names = FAMILIES[program.spec.architecture].names
    tensors = unfold(load_file(folder / "model.safetensors"), names, program.spec)
    weights = {
        use.name: np.concatenate([tensors[names.checkpoint_name(source)] for source in use.sources])
        for use in program.weights.values()
    }
    num_blocks = [NUM_BLOCKS] * len(program.kv_groups)
    return ReferenceExecutor(
        program, weights, num_kv_blocks=num_blocks, block_size=BLOCK_SIZE, sampler=argmax_sampler
    )


def cpu_executor(folder: Path, program: Program, isa: str) -> Executor:
    """Native kernels of one ISA, over the checkpoint as the loader packs it."""
    from penstock import _native
    from penstock.backends.cpu.executor import CpuExecutor
    from penstock.backends.cpu.lower import Limits

    family = FAMILIES[program.spec.architecture]
    wanted = [
        Wanted(u.name, tuple(map(family.names.checkpoint_name, u.sources)), u.shape, u.kind, u.format)
        for u in program.weights.values()
    ]
    checkpoint = read_checkpoint(folder)
    checkpoint = replace(checkpoint, tensors=unfold(checkpoint.tensors, family.names, program.spec))
    weights = load(checkpoint, wanted, is_inert=lambda name: family.names.is_inert(name, program.spec))
    limits = Limits(max_rows=512, max_logit_rows=512, num_blocks=(NUM_BLOCKS,) * len(program.kv_groups))
    return CpuExecutor(program, weights, limits, isa=isa, pool=_native.Pool(2))


BACKENDS = ["reference", *(f"cpu-{isa}" for isa in isas())]


@pytest.fixture(scope="module", params=BACKENDS)
def make_executor(request: pytest.FixtureRequest) -> MakeExecutor:
    backend, _, isa = request.param.partition("-")
    return reference_executor if backend == "reference" else partial(cpu_executor, isa=isa)


@pytest.fixture(scope="module", params=MODELS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_the_weights_serve_both_dtypes(golden):
    for name, tensor in load_file(golden.folder / "model.safetensors").items():
        assert np.array_equal(to_bfloat16(tensor), tensor), name


def test_float32_logits_agree_with_transformers(golden, make_executor):
    logits = golden.sequences(make_executor, "float32").run({0: golden.tokens})[0][golden.rows]

    assert np.abs(logits - golden.exact).max() <= 1e-4 * np.abs(golden.exact).max()


def test_float32_greedy_tokens_are_those_of_transformers(golden, make_executor):
    sequences = golden.sequences(make_executor, "float32")
    logits = sequences.run({0: golden.prompt})[0]
    tokens = [int(logits[-1].argmax())]
    while len(tokens) < len(golden.greedy):
        tokens.append(int(sequences.run({0: tokens[-1:]})[0][-1].argmax()))

    assert tokens == golden.greedy.tolist()


def test_float32_hidden_rows_are_what_transformers_makes_its_logits_of(golden, make_executor):
    program = golden.program("float32")
    names = FAMILIES[program.spec.architecture].names
    tensors = unfold(load_file(golden.folder / "model.safetensors"), names, program.spec)
    head = tensors[names.checkpoint_name(program.weights["lm_head"].sources[0])].astype(np.float64)
    hidden = golden.sequences(make_executor, "float32").hidden({0: golden.tokens})[0][golden.rows]
    if program.spec.embed_size is not None:
        hidden = hidden @ tensors[names.checkpoint_name("embed_out")].astype(np.float64).T
    logits = hidden @ head.T * program.spec.logit_scale
    if (cap := program.spec.logit_softcap) is not None:
        logits = cap * np.tanh(logits / cap)

    assert np.abs(logits - golden.exact).max() <= 1e-4 * np.abs(golden.exact).max()


def test_bfloat16_is_as_near_to_float32_as_transformers_is(golden, make_executor):
    logits = golden.sequences(make_executor, "bfloat16").run({0: golden.tokens})[0][golden.rows]
    ours, theirs = logits - golden.exact, golden.rounded - golden.exact

    assert np.sqrt(np.square(ours).mean()) <= 1.1 * np.sqrt(np.square(theirs).mean())

    second, best = np.sort(golden.exact, axis=1)[:, -2:].T
    is_clear = best - second > 4 * np.abs(theirs).max()

    assert np.array_equal(logits.argmax(axis=1)[is_clear], golden.exact.argmax(axis=1)[is_clear])


def test_bfloat16_margins_leave_something_to_check():
    num_clear = 0
    for golden in map(Golden, MODELS):
        second, best = np.sort(golden.exact, axis=1)[:, -2:].T
        num_clear += int((best - second > 4 * np.abs(golden.rounded - golden.exact).max()).sum())

    assert num_clear >= 50


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_chunks_and_neighbours_give_the_same_bits(golden, make_executor, dtype):
    tokens = golden.tokens[:90]
    whole = golden.sequences(make_executor, dtype).run({0: tokens})[0]
    sequences = golden.sequences(make_executor, dtype)
    parts = []
    for chunk in np.split(tokens, [1, 40, 41, 70]):
        parts.append(sequences.run({1: chunk[::-1], 0: chunk})[0])

    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_a_prefix_hit_gives_the_same_bits(golden, make_executor):
    prefix, rest = golden.tokens[:BLOCK_SIZE], golden.tokens[BLOCK_SIZE : BLOCK_SIZE + 20]
    program = golden.program("bfloat16")
    shared = Sequences(
        make_executor(golden.folder, program), ((8, 2, 5), (8, 6, 1)), num_groups=len(program.kv_groups)
    )
    shared.run({0: prefix})
    miss = shared.run({0: rest})[0]
    shared.lengths[1] = BLOCK_SIZE  # sequence 1 finds the first block computed
    hit = shared.run({1: rest})[1]

    assert hit.tobytes() == miss.tobytes()
