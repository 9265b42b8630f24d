"""Who runs this step, with how many tokens: one pass over those that run, then over those that wait.

The engine core calls add, abort, schedule and update, from one thread. There is no prefill and no decode: a
request has computed tokens and is given some more. Plain integers; knows no text, no tensor and no clock.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from penstock.errors import ConfigError, ContextLengthError, EngineError, InvalidRequestError
from penstock.kv.manager import KVManager
from penstock.request import Request
from penstock.scheduler.budget import Budget
from penstock.scheduler.policy import SchedulingPolicy
from penstock.scheduler.waiting_line import WaitingLine
from penstock.step import Drawn, RequestDelta, Schedule, ScheduledRequest


class Guidance(Enum):
    """What a request's grammar says of a token that was drawn for it."""

    GO_ON = "go on"
    COMPLETE = "complete"  # the text is whole with it, and nothing may follow
    STUCK = "stuck"  # it fits, and nothing can follow
    REFUSED = "refused"  # it does not fit: nothing was allowed


class _Turn(Enum):
    """What came of it when it was a waiting request's turn."""

    TAKEN = "taken"
    PASSED = "passed"  # it stays, and others may go before it
    NO_ROOM = "no room"  # it stays, and nobody may


class _End(NamedTuple):
    finish_reason: str
    stop_reason: int | str | None = None
    is_stop_id: bool = False


Guide = Callable[[Request, int], Guidance]  # asked once for each token, before it is appended
DEAD_END = "grammar_dead_end"
StopChecker = Callable[[Request], str | None]  # the stop string that the latest output token completed
MAX_SCORED_ROWS = 256  # per step; their logits are 256 x V x 4 bytes: 128 MiB at V = 128,256


def accept(drafts: Sequence[int], drawn: Sequence[int]) -> tuple[int, ...]:
    """What a step yields: the drafts that the target would have drawn anyway, then its own next token.

    Noise is keyed by output position, so `drawn[i]` is what the target would have drawn without drafts.

    >>> accept([7, 8, 9], [7, 8, 1, 5])
    (7, 8, 1)
    """
    agreed = 0
    while agreed < len(drafts) and drafts[agreed] == drawn[agreed]:
        agreed += 1
    return tuple(drawn[: agreed + 1])


def owes_rows(request: Request) -> bool:
    """Whether prompt rows of this request still have to be scored."""
    return (
        request.params.prompt_logprobs is not None
        and request.num_scored_tokens < request.num_prompt_tokens - 1
    )


class Scheduler:
    """Continuous batching under `max_step_tokens` and `max_requests`.

    The request that has run longest is never preempted and is served every step, so every request ends.
    `computes_whole`: rows read what comes after them, so that a prompt is computed in one step, or waits.
    """

    def __init__(
        self,
        kv: KVManager,
        policy: SchedulingPolicy,
        *,
        max_step_tokens: int,
        max_requests: int,
        find_stop: StopChecker | None = None,
        guide: Guide | None = None,
        max_scored_rows: int = MAX_SCORED_ROWS,
        computes_whole: bool = False,
    ) -> None:
        if max_step_tokens < max_requests:
            raise ConfigError(
                f"max_step_tokens={max_step_tokens} is less than max_requests={max_requests}: not every "
                "running request could have its token each step. Raise the first or lower the second."
            )
        self._kv = kv
        self._policy = policy
        self._max_step_tokens = max_step_tokens
        self._max_requests = max_requests
        self._max_scored_rows = max_scored_rows
        self._computes_whole = computes_whole
        self._find_stop = find_stop
        self._guide = guide
        self._requests: dict[str, Request] = {}
        self._waiting: WaitingLine[Request] = WaitingLine()
        self._waiting.order_by(policy, 0.0)
        self._running: dict[str, Request] = {}  # longest-running first
        self._unsettled: Schedule | None = None  # given out, not yet updated
        self.num_preemptions = 0

    @property
    def requests(self) -> Mapping[str, Request]:
        """All that are not finished, by id: a view, not to be changed."""
        return self._requests

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def kv_usage(self) -> float:
        """Share of the fullest group's blocks that somebody uses."""
        pairs = zip(self._kv.num_free_blocks, self._kv.num_usable_blocks, strict=True)
        return max(1 - free / usable for free, usable in pairs)

    def max_request_tokens(self, most: int) -> int:
        """The longest prompt and output together, up to `most`, that `add` does not refuse."""
        # the last token of a request is never computed: the first length that does not fit is one too many
        return bisect.bisect_left(range(most), True, lo=1, key=lambda n: not self._kv.fits_ever(n))

    @property
    def has_ready(self) -> bool:
        """Whether a step has something to do: not all that is here waits for its grammar."""
        return bool(self._running) or any(request.is_ready for request in self._waiting)

    def add(self, request: Request) -> None:
        """Queue a request. Refused: an id in use, and what can never fit (ContextLengthError)."""
        if request.request_id in self._requests:
            raise InvalidRequestError(
                f"request id {request.request_id!r} is in use; give every request its own.",
                param="request_id",
            )
        num_tokens = request.num_prompt_tokens + request.max_output_tokens - 1  # the last is not computed
        if not self._kv.fits_ever(num_tokens):
            raise ContextLengthError(
                f"prompt has {request.num_prompt_tokens:,} tokens and {request.max_output_tokens:,} more are "
                f"asked for; the KV cache holds {self._kv.capacity_tokens:,} in all. Ask for less, or raise "
                "memory_bytes."
            )
        if self._computes_whole and request.num_prompt_tokens > self._max_step_tokens:
            raise ContextLengthError(
                f"the text has {request.num_prompt_tokens:,} tokens, which this model reads at once; a step "
                f"holds {self._max_step_tokens:,}. Shorten it or raise max_step_tokens.",
                param="input",
            )
        self._requests[request.request_id] = request
        self._waiting.add(request, request.arrival_s)

    def abort(self, request_id: str) -> RequestDelta | None:
        """End a request in whatever state it is; its blocks are free at once. None: it has ended before."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        self._end(request)
        return RequestDelta(request_id, finish_reason="abort", num_cached_tokens=request.num_cached_tokens)

    def schedule(self, now_s: float) -> Schedule | None:
        """Choose the next step's requests and give them blocks. None: there is nothing to do.

        If the step then fails before `update`, asking again is safe: nothing was counted as computed.
        """
        self._take_back_failed_step()
        budget = Budget(self._max_step_tokens, self._max_scored_rows)
        chosen: dict[str, ScheduledRequest] = {}
        preempted: list[str] = []
        self._continue_running(budget, chosen, preempted)
        if self._waiting and not preempted:
            self._admit_waiting(budget, chosen, now_s)
        if not chosen and not preempted:
            return None
        self._unsettled = Schedule(tuple(chosen.values()), tuple(preempted))
        return self._unsettled

    def update(self, schedule: Schedule, drawn: Sequence[Drawn]) -> list[RequestDelta]:
        """Count what was computed, append what was drawn, end what is finished.

        Requests that were aborted or preempted since `schedule` are passed over.
        """
        self._unsettled = None
        deltas: list[RequestDelta] = []
        for scheduled, result in zip(schedule.requests, drawn, strict=True):
            request = self._running.get(scheduled.request_id)
            if request is None or request.num_computed_tokens != scheduled.start:
                continue
            tokens = result.tokens
            if scheduled.draft_tokens:
                if self._kv.has_states:
                    raise EngineError(
                        "drafts were run on a recurrent state, which cannot go back to before a wrong one; "
                        "run this model without speculation."
                    )
                tokens = accept(scheduled.draft_tokens, tokens)
            num_kept, end = self._append(request, tokens)
            num_wrong = len(scheduled.draft_tokens) + 1 - num_kept if scheduled.draft_tokens else 0
            request.num_computed_tokens += scheduled.num_tokens - num_wrong
            if result.prompt_logprobs:
                request.num_scored_tokens += len(result.prompt_logprobs)
            request.num_pooled_tokens += result.num_pooled
            if result.embedding is not None:
                end = _End("stop")
            self._kv.commit(request)
            if end is not None:
                self._end(request)
            if num_kept or end is not None or result.prompt_logprobs:
                logprobs = result.logprobs
                deltas.append(
                    RequestDelta(
                        request.request_id,
                        tokens if num_kept == len(tokens) else tokens[:num_kept],
                        None if logprobs is None else logprobs[:num_kept],
                        result.prompt_logprobs,
                        None if end is None else end.finish_reason,
                        None if end is None else end.stop_reason,
                        request.num_cached_tokens,
                        request.num_preemptions,
                        request.first_scheduled_s,
                        ends_with_stop_id=end is not None and end.is_stop_id,
                        embedding=result.embedding,
                    )
                )
        return deltas

    def force_preempt(self, request_id: str) -> bool:
        """Preempt a running request now, whatever the blocks: for tests and drills."""
        request = self._running.get(request_id)
        if request is None:
            return False
        self._preempt(request)
        return True

    def reset_prefix_cache(self) -> None:
        """Forget all cached beginnings; running requests go on."""
        self._kv.reset_prefix_cache()

    def _take_back_failed_step(self) -> None:
        """Who ran in a step that came to nothing may have a state that has moved on: it begins again."""
        failed, self._unsettled = self._unsettled, None
        for scheduled in failed.requests if failed is not None and self._kv.has_states else ():
            request = self._running.get(scheduled.request_id)
            if request is not None and request.num_computed_tokens == scheduled.start:
                self._preempt(request)

    def _continue_running(
        self, budget: Budget, chosen: dict[str, ScheduledRequest], preempted: list[str]
    ) -> None:
        """Every running request gets its next token, longer remainders what the budget leaves."""
        order = list(self._running.values())
        for index, request in enumerate(order):
            if request.request_id not in self._running:
                continue  # preempted for one that has run longer
            owes = owes_rows(request)
            wanted = len(request.tokens) - request.num_computed_tokens
            offer = budget.offer(wanted, num_to_serve=len(order) - index - 1, owes_rows=owes)
            if offer == 0:
                continue  # only where prompt rows are rationed: another request has this step's share
            num_tokens = self._grant(request, offer, budget, chosen, preempted)
            if num_tokens > 0:
                self._choose(request, num_tokens, budget, chosen, owes=owes)

    def _grant(
        self,
        request: Request,
        wanted: int,
        budget: Budget,
        chosen: dict[str, ScheduledRequest],
        preempted: list[str],
    ) -> int:
        """Find blocks for up to `wanted` tokens, taken from others if need be. 0: it was itself preempted."""
        while True:
            if self._kv.allocate(request, wanted):
                return wanted
            fewer = min(wanted, self._kv.max_new_tokens(request, self._kv.no_hit))
            if fewer > 0 and self._kv.allocate(request, fewer):
                return fewer
            oldest, *others = self._running.values()
            if not others:
                raise EngineError(
                    f"request {oldest.request_id} has all blocks for itself and too few of them, which "
                    "admission rules out; this is a defect of penstock, please report it."
                )
            victim = self._policy.victim(others)
            lost = chosen.pop(victim.request_id, None)
            if lost is not None:
                budget.refund(lost.num_tokens, owes_rows=owes_rows(victim))
            self._preempt(victim)
            preempted.append(victim.request_id)
            if victim is request:
                return 0

    def _admit_waiting(self, budget: Budget, chosen: dict[str, ScheduledRequest], now_s: float) -> None:
        """In the policy's order, until the first that has no room: nobody overtakes it to take the blocks."""
        stay: list[Request] = []
        try:
            while self._waiting and len(self._running) < self._max_requests and budget.tokens > 0:
                stay.append(self._waiting.pop(now_s))
                turn = self._admit(stay[-1], budget, chosen, now_s)
                if turn is _Turn.TAKEN:
                    del stay[-1]
                elif turn is _Turn.NO_ROOM:
                    break
        finally:  # whatever failed, nobody is lost
            for request in stay:
                if request.request_id not in self._running:
                    self._waiting.add(request, now_s)

    def _admit(
        self, request: Request, budget: Budget, chosen: dict[str, ScheduledRequest], now_s: float
    ) -> _Turn:
        if not request.is_ready:
            return _Turn.PASSED
        hit = self._kv.find_prefix(request)
        if hit.is_growing:
            return _Turn.PASSED  # what it would compute is being computed: next step it takes it over
        owes = owes_rows(request)
        offer = budget.offer(len(request.tokens) - hit.num_tokens, num_to_serve=0, owes_rows=owes)
        if offer == 0:
            return _Turn.PASSED  # prompt rows are rationed: another request has this step's share
        if self._computes_whole and offer < len(request.tokens):
            return _Turn.PASSED  # it begins the next step, when the budget is whole
        num_tokens = min(offer, self._kv.max_new_tokens(request, hit))
        if num_tokens == 0 or (self._computes_whole and num_tokens < offer):
            return _Turn.NO_ROOM
        if not self._kv.has_room(request, hit, self._running.values()):
            return _Turn.NO_ROOM
        if not self._kv.allocate(request, num_tokens, hit):
            return _Turn.NO_ROOM
        request.num_computed_tokens = hit.num_tokens
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now_s
            request.num_cached_tokens = hit.num_tokens
        self._running[request.request_id] = request
        self._choose(request, num_tokens, budget, chosen, owes=owes)
        return _Turn.TAKEN

    def _choose(
        self,
        request: Request,
        num_tokens: int,
        budget: Budget,
        chosen: dict[str, ScheduledRequest],
        *,
        owes: bool,
    ) -> None:
        budget.spend(num_tokens, owes_rows=owes)
        request_id = request.request_id
        chosen[request_id] = ScheduledRequest(
            request_id, request.num_computed_tokens, num_tokens, self._kv.block_ids(request)
        )

    def _append(self, request: Request, tokens: Sequence[int]) -> tuple[int, _End | None]:
        """Append tokens up to the one that ends the request: how many, and how it ends."""
        guidance = Guidance.GO_ON
        for count, token in enumerate(tokens, 1):
            if request.grammar is not None and self._guide is not None:
                guidance = self._guide(request, token)
                if guidance is Guidance.REFUSED:
                    return count - 1, _End("error", DEAD_END)
            request.append(token)
            if token in request.stop_ids:
                reason = token if token in request.params.stop_token_ids else None
                return count, _End("stop", reason, is_stop_id=True)
            if request.params.stop and self._find_stop is not None:
                stop = self._find_stop(request)
                if stop is not None:
                    return count, _End("stop", stop)
            if guidance is not Guidance.GO_ON:
                return count, _End("stop") if guidance is Guidance.COMPLETE else _End("error", DEAD_END)
            if len(request.output_tokens) >= request.max_output_tokens:
                return count, _End("length")
        return len(tokens), None

    def _preempt(self, request: Request) -> None:
        """Its blocks are free, its tokens stay: recomputing them gives the same bits."""
        self._kv.free(request)
        del self._running[request.request_id]
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self._waiting.add(request, request.arrival_s)
        self.num_preemptions += 1

    def _end(self, request: Request) -> None:
        self._kv.free(request)
        del self._requests[request.request_id]
        self._waiting.discard(request.request_id)
        self._running.pop(request.request_id, None)
