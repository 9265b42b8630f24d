"""Row by row: a step of M rows gives each the logits that it gives alone, at every M where kernels change."""

import numpy as np
import pytest
from tests.exactness.conftest import FAMILY_MODELS, MODELS
from tests.exactness.sequences import KnownSequences

native = pytest.importorskip("penstock._native", reason="this build has no native backend")

CROSSOVERS = (1, 2, 3, 4, 6, 8, 11, 12, 13, 16, 17, 24, 31, 32, 33, 48, 63, 64)
# A step of states can be run again where its context ends a block: it reads that one and writes the next.
STATES = ("mamba2", "mamba2_groups")
FEW = (2, 7, 13)  # for the scalar kernels, which are slow
CONTEXTS = [(0, 1, 5, 15, 16, 31, 63, 64, 65, 100, 127, 128)[i % 12] for i in range(62)] + [520, 1_100]
STARTS = (0, 40, 500, 1_010)  # of chunks: aligned or not, across a block and across a 512-token partition


@pytest.fixture(params=native.isas())
def isa(request):
    return request.param


def sizes(isa):
    return FEW if isa == "scalar" else CROSSOVERS


def reachable(model, lengths):
    """Lengths of contexts that steps can be run behind more than once."""
    return [-(-length // 64) * 64 for length in lengths] if model in STATES else list(lengths)


def check_decode(model, loaded, isa, expected, threads):
    contexts = CONTEXTS[:13] if isa == "scalar" else CONTEXTS
    sequences = KnownSequences(loaded, reachable(model, contexts), extra=1)
    sequences.fill()
    if not expected:
        expected |= {i: sequences.rows([i])[i] for i in range(len(sequences.lengths))}
    order = np.random.default_rng(2).permutation(len(sequences.lengths)).tolist()
    for size in sizes(isa):
        for batch in (order[:size], order[-size:]):
            for i, logits in sequences.rows(batch).items():
                assert logits.tobytes() == expected[i].tobytes(), f"row {i} among {size}, {threads} threads"


def check_chunks(model, loaded, isa, expected, threads):
    starts = reachable(model, STARTS[:2] if isa == "scalar" else STARTS)
    sequences = KnownSequences(loaded, [starts[-1]], extra=64)
    for start in starts:
        sequences.fill_one(0, start, chunk=256 if threads == 1 else 129)
        if start not in expected:
            rows = [sequences.rows([0], start=start + i)[0] for i in range(max(sizes(isa)))]
            expected[start] = np.concatenate(rows)
        for size in sizes(isa):
            logits = sequences.rows([0], start=start, count=size)[0]
            where = f"{size} rows from {start}, {threads} threads"
            assert logits.tobytes() == expected[start][:size].tobytes(), where


@pytest.mark.parametrize("model", [*MODELS, *STATES])
def test_a_decoding_row_has_the_same_logits_in_any_batch(engines, model):
    """On the best kernels of the machine; the others are slower and in the slow set."""
    expected = {}
    for threads, loaded in engines(model).items():
        check_decode(model, loaded, native.best_isa(), expected, threads)


@pytest.mark.parametrize("model", [*MODELS, *STATES])
def test_a_row_of_a_chunk_has_the_logits_of_a_step_of_its_own(engines, model):
    expected = {}
    for threads, loaded in engines(model).items():
        check_chunks(model, loaded, native.best_isa(), expected, threads)


@pytest.mark.slow
@pytest.mark.parametrize("model", [*MODELS, *FAMILY_MODELS])
def test_rows_have_the_same_logits_in_any_step_on_every_isa(engines, model, isa):
    decoded, chunked = {}, {}
    for threads, loaded in engines(model, isa).items():
        check_decode(model, loaded, isa, decoded, threads)
        check_chunks(model, loaded, isa, chunked, threads)
