"""Sequences of known tokens in the blocks of one executor, and the logits of their rows, bit by bit.

Built on the steps of tests/parity. A step may be run again; what lay behind it in its block is void then,
as in the engine, where nothing ever lies behind a step.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tests.parity.steps import Sequences

from penstock.engine.build import Loaded
from penstock.step import Executor

Floats = NDArray[np.float32]


class KnownSequences:
    """`lengths[i]` tokens of context for sequence i, then as many more as are asked for."""

    def __init__(self, loaded: Loaded, lengths: Sequence[int], *, extra: int) -> None:
        rng = np.random.default_rng(1)
        per_sequence = [-(-(length + extra) // 64) for length in lengths]
        places = 1 + rng.permutation(sum(per_sequence)).astype(np.int32)  # block 0 is nobody's
        width = max(per_sequence)
        tables = [
            np.pad(own, (0, width - len(own)))
            for own in np.split(places, np.cumsum(per_sequence)[:-1])
        ]  # fmt: skip
        assert max(places) < min(loaded.plan.num_kv_blocks)
        vocab_size = loaded.spec.vocab_size
        self.tokens = [rng.integers(0, vocab_size, length + extra).astype(np.int32) for length in lengths]
        self.lengths = list(lengths)
        executor: Executor = loaded.executor
        self._steps = Sequences(
            executor, [table.tolist() for table in tables], num_groups=len(loaded.plan.num_kv_blocks)
        )

    def fill(self) -> None:
        """Compute every context, each alone."""
        for i, length in enumerate(self.lengths):
            self.fill_one(i, length, chunk=256)

    def fill_one(self, i: int, length: int, *, chunk: int) -> None:
        for start in range(0, length, chunk):
            self.rows([i], start=start, count=min(chunk, length - start))

    def rows(self, which: Sequence[int], *, start: int | None = None, count: int = 1) -> dict[int, Floats]:
        """Logits of `count` rows of each sequence in one step, from `start` or the end of its context."""
        chunks: dict[int, Sequence[int]] = {}
        for i in which:
            begin = self.lengths[i] if start is None else start
            self._steps.lengths[i] = begin
            chunks[i] = self.tokens[i][begin : begin + count].tolist()
        return self._steps.run(chunks)
