"""Steps for tests: a few sequences kept in their own blocks of an executor, and their logits."""

from collections.abc import Sequence

import numpy as np

from penstock.step import Executor, SamplingRows, StepInput, StepOutput


def greedy_rows(num_rows: int) -> SamplingRows:
    """Plain argmax for every row."""
    zeros = np.zeros(num_rows, np.float32)
    none = np.zeros(0, np.int32)
    return SamplingRows(
        temperature=zeros,
        top_k=np.zeros(num_rows, np.int32),
        top_p=zeros + 1,
        min_p=zeros,
        typical_p=zeros + 1,
        repetition_penalty=zeros + 1,
        presence_penalty=zeros,
        frequency_penalty=zeros,
        seed=np.zeros(num_rows, np.uint64),
        position=np.zeros(num_rows, np.int64),
        target=np.full(num_rows, -1, np.int32),
        num_logprobs=np.full(num_rows, -1, np.int32),
        history_start=np.zeros(num_rows + 1, np.int32),
        history_token=none,
        history_count=none,
        bias_start=np.zeros(num_rows + 1, np.int32),
        bias_token=none,
        bias_value=np.zeros(0, np.float32),
    )


def argmax_sampler(logits: np.ndarray, rows: SamplingRows) -> StepOutput:
    """Greedy, ties to the lowest id; no logprobs."""
    count = len(logits)
    return StepOutput(
        sampled=logits.argmax(axis=1).astype(np.int32),
        logprob=np.full(count, np.nan, np.float32),
        rank=np.zeros(count, np.int32),
        top_token=np.full((count, 0), -1, np.int32),
        top_logprob=np.zeros((count, 0), np.float32),
    )


class Sequences:
    """`block_tables[i]` are the block ids of sequence i, the same in every KV group.

    `run` computes the next tokens of some sequences in one step and returns the logits of all their rows.
    """

    def __init__(self, executor: Executor, block_tables: Sequence[Sequence[int]], *, num_groups: int) -> None:
        self._executor = executor
        self._tables = [np.array(table, np.int32) for table in block_tables]
        self._num_groups = num_groups
        self.lengths = [0] * len(block_tables)

    def run(self, chunks: dict[int, Sequence[int]]) -> dict[int, np.ndarray]:
        """Sequence number -> its next tokens, in; sequence number -> logits of those rows, out."""
        return self._run(chunks, "logits")

    def hidden(self, chunks: dict[int, Sequence[int]]) -> dict[int, np.ndarray]:
        """The same, of hidden rows; no logits are computed."""
        return self._run(chunks, "hidden")

    def _run(self, chunks: dict[int, Sequence[int]], tap: str) -> dict[int, np.ndarray]:
        tokens = np.concatenate([np.asarray(chunk, np.int32) for chunk in chunks.values()])
        starts = [self.lengths[i] for i in chunks]
        counts = [len(chunk) for chunk in chunks.values()]
        positions = [np.arange(s, s + n, dtype=np.int32) for s, n in zip(starts, counts, strict=True)]
        step = StepInput(
            tokens=tokens,
            positions=np.concatenate(positions),
            query_start=np.cumsum([0, *counts]).astype(np.int32),
            context_len=np.add(starts, counts).astype(np.int32),
            block_tables=(np.stack([self._tables[i] for i in chunks]),) * self._num_groups,
            logit_rows=np.arange(len(tokens) if tap == "logits" else 0, dtype=np.int32),
            sampling=greedy_rows(len(tokens) if tap == "logits" else 0),
            taps=(tap,),
            hidden_rows=np.arange(len(tokens), dtype=np.int32) if tap == "hidden" else None,
        )
        output = self._executor.forward(step)
        assert len(output.sampled) == len(step.logit_rows)
        for i, n in zip(chunks, counts, strict=True):
            self.lengths[i] += n
        return dict(zip(chunks, np.split(output.taps[tap], np.cumsum(counts)[:-1]), strict=True))
