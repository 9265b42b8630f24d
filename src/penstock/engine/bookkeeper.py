"""What happened to calls -> metrics and receipts. Decides nothing; sees no text.

Called by CallDesk and AsyncEngine, in the front end.
"""

from penstock.engine.journal import Entry
from penstock.engine.liveness import Beat, rss_bytes
from penstock.engine.metrics import Metrics
from penstock.engine.serving import ModelFacts, Receipt
from penstock.errors import (
    DeadlineError,
    EngineRestartingError,
    PenstockError,
    RequestPoisonedError,
    SlowReaderError,
)
from penstock.event_log import EventLog
from penstock.request import RequestOutput

OUTCOME_OF: dict[type[PenstockError], str] = {
    DeadlineError: "deadline",
    SlowReaderError: "slow_reader",
    RequestPoisonedError: "poisoned",
    EngineRestartingError: "restart",
}


class Bookkeeper:
    def __init__(self, metrics: Metrics, log: EventLog) -> None:
        self.metrics = metrics
        self._log = log
        self._last: Beat | None = None  # what this engine said of itself before
        self._num_malformed = 0
        self._num_dropped_logs = 0

    def began(self, entry: Entry) -> None:
        """It was let in and queued."""
        metrics, params = self.metrics, entry.call.params
        metrics.prompt_tokens.inc(len(entry.call.prompt_tokens))
        metrics.prompt_length.observe(len(entry.call.prompt_tokens))
        metrics.n.observe(params.n)
        metrics.max_tokens.observe(entry.terms.max_output_tokens)

    def first_token(self, entry: Entry) -> None:
        """Its first token of all has come, and with it what the engine says of its start."""
        metrics, times = self.metrics, entry.answer.metrics
        metrics.ttft.observe(times.ttft_s or 0.0)
        metrics.queried_tokens.inc(len(entry.call.prompt_tokens))
        metrics.cached_tokens.inc(times.num_cached_tokens)
        if times.first_scheduled_s is not None and times.first_token_s is not None:
            metrics.queue.observe(max(0.0, times.first_scheduled_s - times.arrival_s))
            metrics.prefill.observe(times.first_token_s - times.first_scheduled_s)

    def ended(self, entry: Entry, now_s: float) -> None:
        """It is over, in whatever way."""
        metrics, times = self.metrics, entry.answer.metrics
        outcome = outcome_of(entry)
        num_tokens = sum(map(len, entry.output_tokens))
        metrics.ended.labels(outcome).inc()
        metrics.total.observe(now_s - times.arrival_s)
        metrics.output_length.observe(num_tokens)
        if times.first_token_s is not None and times.last_token_s is not None:
            metrics.decode.observe(times.last_token_s - times.first_token_s)
            if times.first_scheduled_s is not None:
                metrics.inference.observe(times.last_token_s - times.first_scheduled_s)

    def heard(self, beat: Beat | None, age_s: float, num_malformed: int) -> None:
        """Gauges, once a second. `num_malformed`: frames that the front end dropped so far."""
        metrics = self.metrics
        metrics.front_rss.set(rss_bytes())
        metrics.dropped_logs.inc(self._log.num_dropped - self._num_dropped_logs)
        self._num_dropped_logs = self._log.num_dropped
        metrics.heartbeat_age.set(age_s)
        metrics.malformed.inc(num_malformed - self._num_malformed)
        self._num_malformed = num_malformed
        last, self._last = self._last, beat
        if beat is None:
            return
        metrics.kv_usage.set(beat.kv_usage)
        metrics.engine_rss.set(beat.rss_bytes)
        for counter, count, before in (
            (metrics.preemptions, beat.num_preemptions, last.num_preemptions if last else 0),
            (metrics.malformed, beat.num_malformed, last.num_malformed if last else 0),
        ):
            counter.inc(count - before if count >= before else count)  # fewer: it is another engine's


def outcome_of(entry: Entry) -> str:
    if entry.error is not None:
        return OUTCOME_OF.get(type(entry.error), "error")
    if not entry.answer.finished:
        return "abort"
    return entry.answer.finish_reason or "abort"


def receipt_of(output: RequestOutput, facts: ModelFacts) -> Receipt:
    """What an answer cost so far, by its metrics."""
    times = output.metrics
    num_tokens = len(output.prompt_token_ids) + times.num_output_tokens
    return Receipt(
        queue_ms=_ms(times.arrival_s, times.first_scheduled_s),
        prefill_ms=_ms(times.first_scheduled_s, times.first_token_s),
        decode_ms=_ms(times.first_token_s, times.last_token_s),
        cached_tokens=times.num_cached_tokens,
        kv_bytes=num_tokens * facts.kv_bytes_per_token,
        exactness=facts.exactness,
        config_hash=facts.config_hash,
    )


def _ms(begin_s: float | None, end_s: float | None) -> float:
    if begin_s is None or end_s is None:
        return 0.0
    return round(max(0.0, end_s - begin_s) * 1000, 3)
