"""A model that is a hash: the next token follows from the tokens that its rows really read in their blocks.

Whatever goes wrong with blocks (a lost reference, another tenant's tokens, an off-by-one) becomes a wrong
token or a failed assertion here. It runs on schedules alone (FakeModel) or as an Executor (FakeExecutor).
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from penstock.kv.groups import KVGroup
from penstock.kv.manager import KVManager
from penstock.kv.retention import exact_for
from penstock.model.spec import KVGroupSpec
from penstock.request import Request, SamplingParams
from penstock.scheduler.policy import POLICIES
from penstock.scheduler.scheduler import Scheduler
from penstock.step import Drawn, RequestDelta, Schedule, StepInput, StepOutput

STATE = -1  # in the place of a window: a recurrent state
Windows = Sequence[int | None]


def draw(read: Sequence[Sequence[int]], seed: int, position: int, vocab_size: int) -> int:
    """The token that follows what each KV group's row read."""
    return hash((tuple(map(tuple, read)), seed, position)) % vocab_size


def reads(tokens: Sequence[int], windows: Windows) -> list[Sequence[int]]:
    return [tokens if window in (None, STATE) else tokens[-window:] for window in windows]


def specs_of(windows: Windows) -> tuple[KVGroupSpec, ...]:
    return tuple(
        KVGroupSpec((g,), None if window == STATE else window, is_state=window == STATE)
        for g, window in enumerate(windows)
    )


def expected_tokens(
    prompt: Sequence[int], seed: int, count: int, *, windows: Windows = (None,), vocab_size: int = 5
) -> list[int]:
    """What a request must give: nothing but its own tokens matters."""
    tokens = list(prompt)
    for position in range(count):
        tokens.append(draw(reads(tokens, windows), seed, position, vocab_size))
    return tokens[len(prompt) :]


def is_allowed(mask: np.ndarray | None, token: int) -> bool:
    return mask is None or bool(int(mask[token // 32]) >> token % 32 & 1)


class FakeModel:
    """Key-value memory that remembers which token of which position was written where.

    A state remembers all tokens that made it: `begin` loads it, and it is stored at the end of every place
    that has a block, and of the rows that were announced.
    """

    def __init__(self, *, windows: Windows = (None,), block_size: int = 2, vocab_size: int = 5) -> None:
        self.windows = windows
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.memory: list[dict[tuple[int, int], tuple[int, int]]] = [{} for _ in windows]
        self.states: list[dict[int, tuple[int, ...]]] = [{} for _ in windows]
        self._live: list[tuple[int, ...]] = [() for _ in windows]
        self._end = 0

    def begin(self, tables: Sequence[Sequence[int]], start: int, end: int) -> None:
        """Rows of one request from position `start` to before `end` come next."""
        self._end = end
        for g, window in enumerate(self.windows):
            if window == STATE:
                block_id = int(tables[g][(start - 1) // self.block_size]) if start else 0
                self._live[g] = self.states[g][block_id] if start else ()
                assert len(self._live[g]) == start, f"position {start} goes on from {len(self._live[g])}"

    def write(self, tables: Sequence[Sequence[int]], position: int, token: int) -> None:
        place, offset = divmod(position, self.block_size)
        for g, (memory, table) in enumerate(zip(self.memory, tables, strict=True)):
            block_id = int(table[place])
            if self.windows[g] == STATE:
                self._live[g] = (*self._live[g], token)
                is_last = position + 1 == self._end
                assert block_id or not is_last, "the state that a step ends with is lost"
                if block_id and (is_last or offset + 1 == self.block_size):
                    self.states[g][block_id] = self._live[g]
                continue
            assert block_id != 0, "the null block is written"
            memory[block_id, offset] = (position, token)

    def read(self, tables: Sequence[Sequence[int]], position: int) -> list[tuple[int, ...]]:
        seen: list[tuple[int, ...]] = []
        for g, (memory, table) in enumerate(zip(self.memory, tables, strict=True)):
            window = self.windows[g]
            if window == STATE:
                seen.append(self._live[g])
                continue
            first = 0 if window is None else max(0, position - window + 1)
            tokens = []
            for p in range(first, position + 1):
                place, offset = divmod(p, self.block_size)
                wrote, token = memory[int(table[place]), offset]
                assert wrote == p, f"position {p} reads what position {wrote} wrote"
                tokens.append(token)
            seen.append(tuple(tokens))
        return seen

    def published(self, group: int, block_id: int) -> tuple[int, ...]:
        """The tokens of the place whose block this is, as it remembers them."""
        if self.windows[group] == STATE:
            return self.states[group][block_id][-self.block_size :]
        return tuple(self.memory[group][block_id, offset][1] for offset in range(self.block_size))

    def run(self, schedule: Schedule, requests: Mapping[str, Request]) -> list[Drawn]:
        """One forward pass. Requests are run last first: none may lean on another of the same step."""
        drawn: list[Drawn] = []
        for scheduled in reversed(schedule.requests):
            request = requests[scheduled.request_id]
            known = [*request.tokens, *scheduled.draft_tokens]
            end = scheduled.start + scheduled.num_tokens
            tokens, prompt_logprobs = [], []
            self.begin(scheduled.block_ids, scheduled.start, end)
            for p in range(scheduled.start, end):
                self.write(scheduled.block_ids, p, known[p])
                seen = self.read(scheduled.block_ids, p)
                if p + 1 >= len(request.tokens):
                    drawn_position = p + 1 - request.num_prompt_tokens
                    tokens.append(draw(seen, request.seed, drawn_position, self.vocab_size))
                owed = request.params.prompt_logprobs is not None and p >= request.num_scored_tokens
                if owed and p + 1 < request.num_prompt_tokens:
                    prompt_logprobs.append({request.prompt_tokens[p + 1]: (float(hash(tuple(seen))), 1)})
            drawn.append(Drawn(tuple(tokens), None, tuple(prompt_logprobs) or None))
        return drawn[::-1]


class FakeExecutor:
    """The same behind StepInput: `forward` is what EngineCore is handed."""

    def __init__(self, model: FakeModel) -> None:
        self.model = model
        self.num_steps = 0

    def forward(self, step: StepInput) -> StepOutput:
        self.num_steps += 1
        seen: dict[int, list[tuple[int, ...]]] = {}
        num_requests = len(step.context_len)
        for b in reversed(range(num_requests)):
            tables = [table[b] for table in step.block_tables]
            first, end = int(step.query_start[b]), int(step.query_start[b + 1])
            assert step.positions[end - 1] + 1 == step.context_len[b]
            self.model.begin(tables, int(step.positions[first]), int(step.context_len[b]))
            for row in range(first, end):
                self.model.write(tables, int(step.positions[row]), int(step.tokens[row]))
                seen[row] = self.model.read(tables, int(step.positions[row]))
        rows, sampling = step.logit_rows.tolist(), step.sampling
        num_top = max([0, *sampling.num_logprobs.tolist()])
        sampled = np.zeros(len(rows), np.int32)
        logprob = np.full(len(rows), np.nan, np.float32)
        rank = np.zeros(len(rows), np.int32)
        top_token = np.full((len(rows), num_top), -1, np.int32)
        top_logprob = np.full((len(rows), num_top), np.nan, np.float32)
        for r, row in enumerate(rows):
            banned = sampling.bias_token[sampling.bias_start[r] : sampling.bias_start[r + 1]].tolist()
            sampled[r] = draw(
                seen[row], int(sampling.seed[r]), int(sampling.position[r]), self.model.vocab_size
            )
            allowed = None if sampling.allowed is None else sampling.allowed[r]
            for _ in range(self.model.vocab_size):
                if int(sampled[r]) not in banned and is_allowed(allowed, int(sampled[r])):
                    break
                sampled[r] = (sampled[r] + 1) % self.model.vocab_size
            if sampling.target[r] >= 0:
                sampled[r] = sampling.target[r]
            if sampling.num_logprobs[r] >= 0:
                logprob[r], rank[r] = -(hash((tuple(seen[row]), int(sampled[r]))) % 997) / 100, 2
            for k in range(int(sampling.num_logprobs[r])):
                top_token[r, k], top_logprob[r, k] = k, -0.5 - k
        return StepOutput(sampled, logprob, rank, top_token, top_logprob)

    def describe(self) -> Mapping[str, str]:
        return {"backend": "fake"}


def make_kv(
    *,
    num_blocks: int = 8,
    block_size: int = 2,
    windows: Windows = (None,),
    prefix_cache: bool = True,
    secret: bytes = b"test",
    checkpoint_blocks: int = 1,
    tenant_share: float = 1.0,
) -> KVManager:
    """A manager whose pools each have `num_blocks` usable blocks."""
    groups = [KVGroup(spec.layers, spec.window, exact_for(spec), 1) for spec in specs_of(windows)]
    return KVManager(
        groups,
        [num_blocks + 1] * len(groups),
        block_size=block_size,
        prefix_cache=prefix_cache,
        checkpoint_blocks=checkpoint_blocks,
        tenant_share=tenant_share,
        hash_secret=secret,
    )


def make_scheduler(
    kv: KVManager, *, policy: str = "fcfs", step_tokens: int = 8, requests: int = 4
) -> Scheduler:
    return Scheduler(kv, POLICIES[policy](), max_step_tokens=step_tokens, max_requests=requests)


def make_request(
    request_id: str,
    prompt: Iterable[int],
    *,
    max_tokens: int = 4,
    arrival_s: float = 0.0,
    priority: int = 0,
    salt: str = "",
    key_id: str = "",
    seed: int = 0,
    stop_ids: Iterable[int] = (),
    **params: object,
) -> Request:
    return Request(
        request_id=request_id,
        prompt_tokens=tuple(prompt),
        params=SamplingParams(max_tokens=max_tokens, **params),
        seed=seed,
        arrival_s=arrival_s,
        max_output_tokens=max_tokens,
        stop_ids=frozenset(stop_ids),
        priority=priority,
        cache_salt=salt,
        key_id=key_id,
    )


def run_step(scheduler: Scheduler, model: FakeModel, now_s: float = 0.0) -> list[RequestDelta] | None:
    schedule = scheduler.schedule(now_s)
    if schedule is None:
        return None
    return scheduler.update(schedule, model.run(schedule, scheduler.requests))


def run_to_end(scheduler: Scheduler, model: FakeModel, max_steps: int = 10_000) -> dict[str, list[int]]:
    """Output tokens of every request, once all have ended."""
    outputs: dict[str, list[int]] = {}
    for _ in range(max_steps):
        deltas = run_step(scheduler, model)
        if deltas is None:
            assert not scheduler.requests, "requests wait and none can run"
            return outputs
        for delta in deltas:
            outputs.setdefault(delta.request_id, []).extend(delta.tokens)
    raise AssertionError(f"not finished after {max_steps} steps")
