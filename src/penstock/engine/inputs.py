"""Schedule -> StepInput, StepOutput -> Drawn: the sole maker of index arrays, and their sole reader.

Called by the engine core once each per step. What rarely changes (block tables, a request's sampling row) is
kept and touched only where it did, so that a decode step costs a few microseconds per request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penstock.engine.grammars import Grammars
from penstock.engine.pooling import Pooler
from penstock.request import Request, SamplingParams
from penstock.sampling.params import banned_now
from penstock.sampling.rows import Mask, RowMaker, RowRequest
from penstock.step import Drawn, Schedule, ScheduledRequest, StepInput, StepOutput

TokenLogprobs = dict[int, tuple[float, int]]
_SCORE = SamplingParams(temperature=0.0)  # prompt rows are scored, not drawn: nothing is processed
_NOTHING = Drawn()


@dataclass(slots=True)
class _Slot:
    """A request's row in the block tables, and its sampling row."""

    index: int
    block_ids: tuple[tuple[int, ...], ...]
    row: RowRequest
    changes_bans: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """Which rows of a StepOutput are whose: per scheduled request, (prompt rows scored, rows drawn)."""

    rows: Sequence[tuple[int, int]]
    entries: Sequence[RowRequest]
    has_logprobs: bool
    pooled: Sequence[tuple[int, Request, int]] = ()  # (place in the schedule, whose, hidden rows)


@dataclass(slots=True)
class _Lists:
    """One step's arrays while they grow."""

    tokens: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    logit_rows: list[int] = field(default_factory=list)
    entries: list[RowRequest] = field(default_factory=list)
    hidden_rows: list[int] = field(default_factory=list)
    width: int = 1  # M: most places of any request


@dataclass(slots=True)
class _Shape:
    """What a step's arrays have in common with the next one's while the same requests decode on."""

    counts: Sequence[int]
    slots: Sequence[int]
    logit_rows: Sequence[int]
    width: int
    count: NDArray[np.int32]
    query_start: NDArray[np.int32]
    logit_row: NDArray[np.int32]
    block_tables: tuple[NDArray[np.int32], ...]

    def fits(self, lists: _Lists) -> bool:
        return (
            self.width == lists.width
            and self.counts == lists.counts
            and self.slots == lists.slots
            and self.logit_rows == lists.logit_rows
        )


class InputBuilder:
    """`requests` is the scheduler's view of all unfinished requests. Called from one thread."""

    def __init__(
        self,
        requests: Mapping[str, Request],
        *,
        num_groups: int,
        vocab_size: int,
        grammars: Grammars | None = None,
        pooler: Pooler | None = None,
    ) -> None:
        self._requests = requests
        self._grammars = grammars
        self._rows = RowMaker(vocab_size)
        self._shape: _Shape | None = None
        self._slots: dict[str, _Slot] = {}
        self._free_slots: list[int] = []
        self._pooler = pooler or Pooler()
        self._tables = [np.zeros((0, 8), np.int32) for _ in range(num_groups)]
        self._counting = np.arange(64, dtype=np.int32)

    def build(self, schedule: Schedule) -> tuple[StepInput, Layout]:
        """The arrays of one forward pass, and how to read its output. Changes no request."""
        lists = _Lists()
        tokens, logit_rows, entries = lists.tokens, lists.logit_rows, lists.entries
        rows: list[tuple[int, int]] = []
        pooled: list[tuple[int, Request, int]] = []
        has_logprobs = False
        for scheduled in schedule.requests:
            request = self._requests[scheduled.request_id]
            slot = self._slots.get(scheduled.request_id) or self._open(request)
            if slot.block_ids is not scheduled.block_ids:
                self._write_tables(slot, scheduled.block_ids)
            first_row = len(tokens)
            start, num_tokens = scheduled.start, scheduled.num_tokens
            end = start + num_tokens - len(scheduled.draft_tokens)
            lists.starts.append(start)
            lists.counts.append(num_tokens)
            lists.slots.append(slot.index)
            lists.width = max(lists.width, len(scheduled.block_ids[0]))
            if num_tokens == 1:
                tokens.append(request.tokens[start])
            else:
                tokens += request.tokens[start:end]
                tokens += scheduled.draft_tokens
            num_scored = num_drawn = 0
            if request.pooling:
                wanted = self._pooler.positions(request, start, end)
                lists.hidden_rows += [first_row + position - start for position in wanted]
                pooled.append((len(rows), request, len(wanted)))
                rows.append((0, 0))
                continue
            if request.params.prompt_logprobs is not None:
                first = max(start, request.num_scored_tokens)
                scored = range(first, min(end, request.num_prompt_tokens - 1))
                num_scored = len(scored)
                logit_rows += [first_row + place - start for place in scored]
                entries += [_score_row(request, place) for place in scored]
                has_logprobs = has_logprobs or num_scored > 0
            if end == len(request.tokens):
                num_drawn = 1 + len(scheduled.draft_tokens)
                last_row = first_row + num_tokens - 1
                if num_drawn == 1:
                    logit_rows.append(last_row)
                    entries.append(self._draw_row(request, slot))
                else:
                    logit_rows += range(last_row - num_drawn + 1, last_row + 1)
                    entries += self._draft_rows(request, slot, scheduled)
                has_logprobs = has_logprobs or slot.row.num_logprobs >= 0
            rows.append((num_scored, num_drawn))
        return self._arrays(lists), Layout(rows, entries, has_logprobs, pooled)

    def read(self, layout: Layout, output: StepOutput) -> list[Drawn]:
        """Row results by request, as plain numbers."""
        sampled = output.sampled.tolist()
        logprobs = _read_logprobs(layout, output, sampled) if layout.has_logprobs else None
        drawn: list[Drawn] = []
        at = 0
        for num_scored, num_drawn in layout.rows:
            first, end = at + num_scored, at + num_scored + num_drawn
            if end == at:
                drawn.append(_NOTHING)
            elif logprobs is None:
                drawn.append(Drawn(tuple(sampled[at:end])))
            else:
                wants = num_drawn > 0 and layout.entries[first].num_logprobs >= 0
                drawn.append(
                    Drawn(
                        tuple(sampled[first:end]),
                        tuple(logprobs[first:end]) if wants else None,
                        tuple(logprobs[at:first]) if num_scored else None,
                    )
                )
            at = end
        at = 0
        for place, request, count in layout.pooled:
            embedding = self._pooler.take(request, output.taps["hidden"][at : at + count]) if count else None
            drawn[place] = Drawn(num_pooled=count, embedding=embedding)
            at += count
        return drawn

    def forget(self, request_id: str) -> None:
        """The request has ended. Harmless if it was never seen."""
        self._pooler.forget(request_id)
        slot = self._slots.pop(request_id, None)
        if slot is not None:
            self._free_slots.append(slot.index)

    def _arrays(self, lists: _Lists) -> StepInput:
        shape = self._shape
        if shape is None or not shape.fits(lists):
            shape = self._shape = self._shape_of(lists)
        num_rows = len(lists.tokens)
        start = np.array(lists.starts, np.int32)
        if num_rows == len(lists.counts):
            positions = start
            context_len = np.array([start + 1 for start in lists.starts], np.int32)
        else:
            if num_rows > len(self._counting):
                self._counting = np.arange(2 * num_rows, dtype=np.int32)
            first = np.repeat(start - shape.query_start[:-1], shape.count)
            positions = first + self._counting[:num_rows]
            context_len = start + shape.count
        return StepInput(
            tokens=np.array(lists.tokens, np.int32),
            positions=positions,
            query_start=shape.query_start,
            context_len=context_len,
            block_tables=shape.block_tables,
            logit_rows=shape.logit_row,
            sampling=self._rows.make(lists.entries),
            taps=("hidden",) if lists.hidden_rows else (),
            hidden_rows=np.array(lists.hidden_rows, np.int32) if lists.hidden_rows else None,
        )

    def _shape_of(self, lists: _Lists) -> _Shape:
        count = np.array(lists.counts, np.int32)
        query_start = np.zeros(len(count) + 1, np.int32)
        np.cumsum(count, out=query_start[1:])
        slots = np.array(lists.slots, np.intp)
        return _Shape(
            lists.counts,
            lists.slots,
            lists.logit_rows,
            lists.width,
            count,
            query_start,
            np.array(lists.logit_rows, np.int32),
            tuple(table[slots, : lists.width] for table in self._tables),
        )

    def _open(self, request: Request) -> _Slot:
        index = self._free_slots.pop() if self._free_slots else len(self._slots)
        for g, table in enumerate(self._tables):
            if index >= len(table):
                self._tables[g] = np.zeros((2 * index + 8, table.shape[1]), np.int32)
                self._tables[g][: len(table)] = table
        params = request.params
        row = RowRequest(
            params=params,
            seed=request.seed,
            position=0,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            num_logprobs=-1 if params.logprobs is None else params.logprobs,
        )
        changes_bans = params.min_tokens > 0 or bool(request.bad_token_ids)
        slot = _Slot(index, (), row, changes_bans)
        self._slots[request.request_id] = slot
        return slot

    def _draw_row(self, request: Request, slot: _Slot) -> RowRequest:
        row = slot.row
        row.position = len(request.output_tokens)
        if slot.changes_bans:
            row.banned = _banned_ids(request, request.output_tokens)
        if request.grammar is not None and self._grammars is not None:
            row.mask = self._grammars.mask(request)
        return row

    def _draft_rows(self, request: Request, slot: _Slot, scheduled: ScheduledRequest) -> list[RowRequest]:
        """One row after each draft, each with the history it would have without drafting."""
        drafts = scheduled.draft_tokens
        masks: Sequence[Mask | None] = [None] * (len(drafts) + 1)
        if request.grammar is not None and self._grammars is not None:
            masks = self._grammars.masks_after(request, drafts)
        rows: list[RowRequest] = []
        for count, mask in enumerate(masks):
            output_tokens = [*request.output_tokens, *drafts[:count]]
            rows.append(
                RowRequest(
                    params=request.params,
                    seed=request.seed,
                    position=len(output_tokens),
                    prompt_tokens=request.prompt_tokens,
                    output_tokens=output_tokens,
                    banned=_banned_ids(request, output_tokens),
                    num_logprobs=slot.row.num_logprobs,
                    mask=mask,
                )
            )
        return rows

    def _write_tables(self, slot: _Slot, block_ids: tuple[tuple[int, ...], ...]) -> None:
        """Places beyond the request's own keep old numbers: no row looks there."""
        num_places = len(block_ids[0])
        for g, ids in enumerate(block_ids):
            table = self._tables[g]
            if num_places > table.shape[1]:
                self._tables[g] = np.zeros((len(table), 2 * num_places), np.int32)
                self._tables[g][:, : table.shape[1]] = table
            self._tables[g][slot.index, :num_places] = ids
        slot.block_ids = block_ids
        self._shape = None


def _score_row(request: Request, place: int) -> RowRequest:
    return RowRequest(
        params=_SCORE,
        seed=0,
        position=0,
        target=request.prompt_tokens[place + 1],
        num_logprobs=request.params.prompt_logprobs or 0,
    )


def _read_logprobs(layout: Layout, output: StepOutput, sampled: list[int]) -> list[TokenLogprobs]:
    logprob, rank = output.logprob.tolist(), output.rank.tolist()
    top_token, top_logprob = output.top_token.tolist(), output.top_logprob.tolist()
    found: list[TokenLogprobs] = []
    for r, entry in enumerate(layout.entries):
        of_row: TokenLogprobs = {}
        if entry.num_logprobs >= 0:
            of_row[sampled[r]] = (logprob[r], rank[r])
            for k in range(entry.num_logprobs):
                of_row.setdefault(top_token[r][k], (top_logprob[r][k], k + 1))
        found.append(of_row)
    return found


def _banned_ids(request: Request, output_tokens: Sequence[int]) -> list[int]:
    """Ids that may not come next: stop ids before min_tokens, the last of a bad word whose others came."""
    held_back = request.stop_ids if len(output_tokens) < request.params.min_tokens else ()
    return sorted({*held_back, *banned_now(request.bad_token_ids, output_tokens)})
