"""Do the hidden rows of encoders agree with transformers, and see their own text alone?

The goldens are stored (tools/goldens/make_encoders.py). The bars are those of test_parity.py, of hidden rows.
"""

from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from tests.parity.steps import Sequences
from tests.parity.test_parity import BACKENDS, MakeExecutor, cpu_executor, reference_executor

from penstock.model.build import build
from penstock.model.family import read_model
from penstock.model.passes.fuse import fuse
from penstock.model.program import Program

GOLDENS = Path(__file__).parents[1] / "goldens" / "encoders"
MODELS = sorted(folder.name for folder in GOLDENS.iterdir())
TABLES = ((3, 11, 5, 0, 7), (1, 2, 15, 9, 4), (6, 8, 10, 12, 13))
DTYPES = ["float32", "bfloat16"]


class Golden:
    """One model folder and the rows that transformers makes of one text."""

    def __init__(self, name: str) -> None:
        self.folder = GOLDENS / name
        stored = np.load(self.folder / "hidden.npz")
        self.tokens, self.exact = stored["tokens"], stored["float32"]
        self.rounded = stored["bfloat16"].view(ml_dtypes.bfloat16).astype(np.float32)
        self.spec = read_model(self.folder)

    def program(self, dtype: str) -> Program:
        return fuse(build(self.spec, weight_format=dtype, head_format=dtype, kv_dtype=dtype, max_context=190))

    def hidden(self, make: MakeExecutor, dtype: str, texts: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """All rows of some texts that share a step."""
        program = self.program(dtype)
        executor = make(self.folder, program)
        return Sequences(executor, TABLES, num_groups=len(program.kv_groups)).hidden(texts)


@pytest.fixture(scope="module", params=BACKENDS)
def make_executor(request: pytest.FixtureRequest) -> MakeExecutor:
    backend, _, isa = request.param.partition("-")
    return reference_executor if backend == "reference" else partial(cpu_executor, isa=isa)


@pytest.fixture(scope="module", params=MODELS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_float32_rows_agree_with_transformers(golden, make_executor):
    rows = golden.hidden(make_executor, "float32", {0: golden.tokens})[0]

    assert np.abs(rows - golden.exact).max() <= 1e-5 * np.abs(golden.exact).max()


def test_bfloat16_is_as_near_to_float32_as_transformers_is(golden, make_executor):
    rows = golden.hidden(make_executor, "bfloat16", {0: golden.tokens})[0]
    ours, theirs = rows - golden.exact, golden.rounded - golden.exact

    assert np.sqrt(np.square(ours).mean()) <= 1.1 * np.sqrt(np.square(theirs).mean())


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_change_no_bit(golden, make_executor, dtype):
    alone = golden.hidden(make_executor, dtype, {0: golden.tokens})[0]
    texts = {1: golden.tokens[::-1], 0: golden.tokens, 2: golden.tokens[:17]}

    assert golden.hidden(make_executor, dtype, texts)[0].tobytes() == alone.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_reads_the_last_token(golden, make_executor, dtype):
    other = golden.tokens.copy()
    other[-1] = 3 if other[-1] != 3 else 4
    rows, changed = (golden.hidden(make_executor, dtype, {0: text})[0] for text in (golden.tokens, other))

    assert (rows != changed).any(axis=1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.skipif(len(BACKENDS) < 3, reason="needs two native instruction sets")
def test_every_instruction_set_gives_the_same_bits(golden, dtype):
    kinds = [partial(cpu_executor, isa=name.partition("-")[2]) for name in BACKENDS if name != "reference"]
    first, *others = (golden.hidden(make, dtype, {0: golden.tokens})[0].tobytes() for make in kinds)

    assert others == [first] * len(others)
