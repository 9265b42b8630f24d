"""What was asked and what was emitted, in the front end's memory: enough to go on when the engine dies.

A request is replayed with `prompt_tokens` and `output_tokens` apart, so that penalties, min_tokens, noise
positions, stop strings and grammars see the history they had. Emitted logprobs are in the answer already.
"""

from array import array
from asyncio import Future, TimerHandle
from collections.abc import Iterator

from penstock.engine.admission import Terms
from penstock.engine.answer import Answer
from penstock.engine.serving import Call
from penstock.engine.wire import Submit, pack_tokens
from penstock.errors import PenstockError
from penstock.step import RequestDelta

TOKEN_BYTES = 4
LOGPROB_BYTES = 16  # of one id in one row that nobody has read yet


class Entry:
    """One call under way: what was asked, what came of it, who waits for it."""

    __slots__ = (
        "answer",
        "arrival_s",
        "call",
        "error",
        "is_open",
        "key",
        "num_strikes",
        "num_unread_bytes",
        "output_tokens",
        "salt",
        "scored",
        "terms",
        "timers",
        "unread_since_s",
        "waiter",
    )

    def __init__(self, key: str, call: Call, terms: Terms, answer: Answer, *, salt: str) -> None:
        self.key = key
        self.call = call
        self.terms = terms
        self.answer = answer
        self.salt = salt
        self.arrival_s = answer.metrics.arrival_s
        self.output_tokens = [array("i") for _ in terms.seeds]
        self.scored = [0] * len(terms.seeds)  # prompt rows whose logprobs were given
        self.is_open = [True] * len(terms.seeds)
        self.num_strikes = 0  # deaths of the engine that it alone can have caused, since it last got on
        self.error: PenstockError | None = None
        self.waiter: Future[None] | None = None
        self.unread_since_s: float | None = None
        self.num_unread_bytes = 0
        self.timers: list[TimerHandle] = []

    @property
    def request_id(self) -> str:
        """For ordering: policies break ties by it."""
        return self.key

    @property
    def priority(self) -> int:
        return self.call.priority

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.call.prompt_tokens)

    @property
    def has_ended(self) -> bool:
        return self.answer.finished or self.error is not None

    def request_ids(self) -> Iterator[str]:
        """Of those of its n requests that have not ended, as the engine knows them."""
        for index, is_open in enumerate(self.is_open):
            if is_open:
                yield _request_id(self.key, index)

    def submits(self) -> Iterator[Submit]:
        """All that has not ended, from where it is."""
        call, terms = self.call, self.terms
        prompt = pack_tokens(call.prompt_tokens)
        for index, seed in enumerate(terms.seeds):
            if self.is_open[index]:
                yield Submit(
                    request_id=_request_id(self.key, index),
                    prompt=prompt,
                    output=pack_tokens(self.output_tokens[index]),
                    params=call.params,
                    seed=seed,
                    arrival_s=self.arrival_s + index * 1e-9,
                    max_output_tokens=terms.max_output_tokens,
                    stop_ids=tuple(terms.stop_ids),
                    priority=call.priority,
                    cache_salt=self.salt,
                    key_id=call.key_id,
                    bad_token_ids=terms.bad_token_ids,
                    num_scored_tokens=self.scored[index],
                    grammar=call.grammar,
                    pooling=call.pooling,
                )

    def take(self, index: int, delta: RequestDelta, now_s: float) -> float | None:
        """Keep what one step did. Gives the seconds since its last tokens."""
        self.output_tokens[index].extend(delta.tokens)
        if delta.prompt_logprobs:
            self.scored[index] += len(delta.prompt_logprobs)
        if delta.finish_reason is not None:
            self.is_open[index] = False
        self.num_unread_bytes += TOKEN_BYTES * len(delta.tokens)
        if delta.text is not None:
            self.num_unread_bytes += len(delta.text)
        if delta.logprobs is not None:
            self.num_unread_bytes += sum(LOGPROB_BYTES * len(row) for row in delta.logprobs)
        return self.answer.take(index, delta, now_s)

    def wake(self, now_s: float) -> None:
        """There is news. Whoever reads already is woken; from now on others are slow."""
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)
        if self.unread_since_s is None:
            self.unread_since_s = now_s

    def fail(self, error: PenstockError, now_s: float) -> None:
        """End it with an error, unless it has ended. What came before can still be read."""
        if not self.has_ended:
            self.error = error
        self.wake(now_s)


class Journal:
    """All calls under way, and which of their n requests the engine means by an id."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._num_keys = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def new_key(self) -> str:
        """Ours, and never used twice: what clients call their requests is not for the engine."""
        self._num_keys += 1
        return str(self._num_keys)

    def open(self, entry: Entry) -> None:
        self._entries[entry.key] = entry

    def close(self, entry: Entry) -> bool:
        """False: it was closed before."""
        for timer in entry.timers:
            timer.cancel()
        return self._entries.pop(entry.key, None) is not None

    def find(self, request_id: str) -> tuple[Entry, int] | None:
        """The call and the index among its n. None: it was closed, or the id is nobody's."""
        key, _, index = request_id.partition("/")
        entry = self._entries.get(key)
        if entry is None:
            return None
        number = int(index) if index.isdecimal() else 0
        if number >= len(entry.is_open) or not entry.is_open[number]:
            return None
        return entry, number


def _request_id(key: str, index: int) -> str:
    return f"{key}/{index}" if index else key
