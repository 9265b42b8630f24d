"""The grammars of the requests that have one: built beside the loop, advanced by it, token by token.

Called by the engine core from one thread; a thread of its own builds. What was proved at admission is built
again under the same fuel; a grammar that fails all the same ends its request, never the engine.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from penstock.errors import InvalidRequestError
from penstock.request import GrammarSpec, Request
from penstock.scheduler.scheduler import Guidance
from penstock.text.grammar import spec_of
from penstock.text.grammar_compiler import GrammarCompiler, GrammarMatcher, Mask, most_bytes

MAX_LIVE_BYTES = 1 << 30  # of all matchers at once, each counted for the most that its worker let it take
BUILD_LIMIT_S = 60.0  # a build is a second at most; this is for a machine that stands still


@dataclass(slots=True)
class _Live:
    """What a request holds; `matcher` None: it is being built, or could not be."""

    num_bytes: int
    request: Request
    matcher: GrammarMatcher | None = None


class Grammars:
    """One matcher for each request, which nobody shares: what it allows follows from its own tokens alone.

    `make_compiler` is asked once, with the first grammar. `eos_ids` end a text; a request that ignores them
    goes on while its grammar can.
    """

    def __init__(
        self,
        make_compiler: Callable[[], GrammarCompiler],
        *,
        vocab_size: int,
        eos_ids: Sequence[int],
        max_live_bytes: int = MAX_LIVE_BYTES,
    ) -> None:
        self._make_compiler = make_compiler
        self._compiler: GrammarCompiler | None = None
        self._no_tokens = np.zeros(-(-vocab_size // 32), np.uint32)
        self._not_eos = ~self._no_tokens
        for token in eos_ids:
            self._not_eos[token // 32] &= ~np.uint32(1 << token % 32)
        self._max_live_bytes = max_live_bytes
        self._live: dict[str, _Live] = {}
        self._building: dict[str, Future[GrammarMatcher | None]] = {}
        self._waiting: deque[Request] = deque()
        self._num_bytes = 0
        self._threads: ThreadPoolExecutor | None = None

    def begin(self, request: Request) -> None:
        """Build the request's matcher, and take it through what was emitted. Until then it is not ready."""
        if request.grammar is None:
            request.grammar = spec_of(request.params.structured_outputs)
        if request.grammar is not None:
            request.is_ready = False
            self._waiting.append(request)
            self._build_waiting()

    def settle(self, *, waits: bool) -> None:
        """Requests whose matchers are built are ready. `waits`: until there is one, if any is being built."""
        if not self._building:
            return
        if waits:
            wait(self._building.values(), timeout=BUILD_LIMIT_S, return_when=FIRST_COMPLETED)
        for request_id in [name for name, building in self._building.items() if building.done()]:
            building = self._building.pop(request_id)
            live = self._live.get(request_id)
            if live is not None:
                live.matcher = None if building.exception() is not None else building.result()
                live.request.is_ready = True

    def mask(self, request: Request) -> Mask | None:
        """What may come after the request's output tokens; None: it has no grammar."""
        if request.grammar is None:
            return None
        matcher = self._live[request.request_id].matcher
        return self._no_tokens if matcher is None else self._heed_eos(request, matcher.mask())

    def masks_after(self, request: Request, drafts: Sequence[int]) -> list[Mask | None]:
        """The masks after each beginning of `drafts`, the empty one first. Behind a wrong draft: anything."""
        if request.grammar is None:
            return [None] * (len(drafts) + 1)
        masks = [self.mask(request)]
        matcher = self._live[request.request_id].matcher
        num_accepted = 0
        for token in drafts:
            if matcher is None or num_accepted < len(masks) - 1 or not matcher.accept([token]):
                masks.append(masks[-1])
                continue
            num_accepted += 1
            masks.append(self._heed_eos(request, matcher.mask()))
        if matcher is not None:
            matcher.roll_back(num_accepted)
        return masks

    def guide(self, request: Request, token: int) -> Guidance:
        """The scheduler's question before it appends a token: advances the matcher by it."""
        matcher = self._live[request.request_id].matcher
        if matcher is None or not matcher.accept([token]):
            return Guidance.REFUSED
        if matcher.is_complete:
            return Guidance.COMPLETE
        return Guidance.GO_ON if self._heed_eos(request, matcher.mask()).any() else Guidance.STUCK

    def forget(self, request_id: str) -> None:
        """The request has ended. Harmless if it never had a grammar."""
        live = self._live.pop(request_id, None)
        if live is not None:
            self._num_bytes -= live.num_bytes
        elif self._waiting:
            self._waiting = deque(r for r in self._waiting if r.request_id != request_id)
        if self._waiting:
            self._build_waiting()

    def _heed_eos(self, request: Request, mask: Mask) -> Mask:
        return mask & self._not_eos if request.params.ignore_eos else mask

    def _build_waiting(self) -> None:
        """First come, first built, as long as there is room; one is built whatever it takes."""
        while self._waiting:
            request = self._waiting[0]
            assert request.grammar is not None, "only those with one wait"
            num_bytes = most_bytes(request.grammar)
            if self._live and self._num_bytes + num_bytes > self._max_live_bytes:
                return
            if self._threads is None:
                self._threads = ThreadPoolExecutor(1, thread_name_prefix="grammars")
            emitted = tuple(request.output_tokens)
            self._building[request.request_id] = self._threads.submit(self._built, request.grammar, emitted)
            self._live[request.request_id] = _Live(num_bytes, request)
            self._num_bytes += num_bytes
            self._waiting.popleft()

    def _built(self, spec: GrammarSpec, emitted: Sequence[int]) -> GrammarMatcher | None:
        """A matcher behind `emitted`, with the same masks asked for on the way: they cost fuel, too."""
        try:
            if self._compiler is None:
                self._compiler = self._make_compiler()
            matcher = self._compiler.compile(spec)
        except InvalidRequestError:
            return None
        for token in emitted:
            matcher.mask()
            if not matcher.accept([token]):
                return None
        return matcher
