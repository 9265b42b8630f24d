"""Rows keep their bits at the shape of Llama 3.2 1B too: all sixteen layers, the whole vocabulary.

Needs about 8 GB of memory and 2.5 GB of disk; says so and skips where they are not free.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tests.exactness.checkpoints import Shape, write_checkpoint
from tests.exactness.conftest import load_small
from tests.exactness.sequences import KnownSequences

from penstock.engine.build import Loaded
from penstock.planner.machine import this_machine

pytest.importorskip("penstock._native", reason="this build has no native backend")

LLAMA_1B = Shape(
    hidden_size=2_048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    intermediate_size=8_192,
    vocab_size=128_256,
    max_context=2_048,
    tie_embeddings=True,
)
NEEDED_BYTES = 8 << 30
NEEDED_DISK_BYTES = 3 << 30
PROMPT_TOKENS = 600
CONTEXTS = [63, 64, 65, *(1 + i % 9 for i in range(29)), PROMPT_TOKENS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("llama_1b")
    free_bytes, free_disk_bytes = this_machine().available_bytes, shutil.disk_usage(base).free
    if free_bytes < NEEDED_BYTES or free_disk_bytes < NEEDED_DISK_BYTES:
        pytest.skip(
            f"needs {NEEDED_BYTES >> 30} GB of memory and {NEEDED_DISK_BYTES >> 30} GB of disk; "
            f"{free_bytes >> 30} and {free_disk_bytes >> 30} are free"
        )
    yield write_checkpoint(base / "model", LLAMA_1B)
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The widths of the 1B shape, with one layer and a small vocabulary."""
    shape = replace(LLAMA_1B, num_layers=1, vocab_size=1_000)
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "model", shape)


def load(folder: Path, weights: str, threads: int) -> Loaded:
    return load_small(str(folder), weights, threads=threads, max_requests=PROMPT_TOKENS, memory_bytes=1 << 30)


def check_rows(folder: Path, weights: str, prompt_tokens: int) -> None:
    """One thread, whole and alone; then two threads, in chunks and in batches of 8 and 33."""
    contexts = [*CONTEXTS[:-1], prompt_tokens]
    last = len(contexts) - 1
    sequences = KnownSequences(load(folder, weights, 1), contexts, extra=1)
    whole = sequences.rows([last], start=0, count=prompt_tokens)[last]
    for i in range(last):
        sequences.fill_one(i, contexts[i], chunk=256)
    alone = {i: sequences.rows([i])[i] for i in range(len(contexts))}
    del sequences

    sequences = KnownSequences(load(folder, weights, 2), contexts, extra=1)
    ends = [end for end in (0, 7, 136, 520) if end < prompt_tokens] + [prompt_tokens]
    for begin, end in pairwise(ends):
        rows = sequences.rows([last], start=begin, count=end - begin)[last]

        assert rows.tobytes() == whole[begin:end].tobytes(), f"rows {begin} to {end} in a chunk of their own"
    for i in range(last):
        sequences.fill_one(i, contexts[i], chunk=50)
    for size in (8, 33):
        for i, logits in sequences.rows(range(len(contexts))[-size:]).items():
            assert logits.tobytes() == alone[i].tobytes(), f"row {i} among {size}"
    assert np.isfinite(whole).all()
    assert len(np.unique(whole[::50])) > whole[::50].size // 2


@pytest.mark.parametrize("weights", ["auto", "int4"])
def test_rows_keep_their_bits_at_the_widths_of_a_1b_model(one_layer, weights):
    check_rows(one_layer, weights, 150)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["auto", "int4"])
def test_rows_keep_their_bits_at_the_shape_of_a_1b_model(folder, weights):
    check_rows(folder, weights, PROMPT_TOKENS)
