"""What tests ask of a served engine, and everything that came of it."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from penstock.config import EngineConfig
from penstock.engine.async_engine import AsyncEngine
from penstock.engine.serving import Call, Limits
from penstock.request import RequestOutput, SamplingParams

PATIENT = Limits(restart_failures=10**6, restart_backoff_s=0.05)


@asynccontextmanager
async def served(
    limits: Limits = PATIENT, *, model: str = "penstock-tiny", config: EngineConfig | None = None, **options
):
    """A model, by default the embedded one, behind an engine process."""
    engine = await AsyncEngine.start(
        model, config or EngineConfig(max_requests=16, seed=11), limits, **options
    )
    try:
        yield engine
    finally:
        await engine.stop()


@dataclass
class Outcome:
    """An answer put together from its pieces, per index."""

    ids: dict[int, list[int]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list] = field(default_factory=dict)
    ends: dict[int, tuple] = field(default_factory=dict)
    prompt_logprobs: list | None = None
    seed: int | None = None

    def take(self, news: RequestOutput) -> None:
        self.seed = news.seed
        self.prompt_logprobs = news.prompt_logprobs
        for output in news.outputs:
            i = output.index
            assert i not in self.ends, "news after the end"
            self.ids.setdefault(i, []).extend(output.token_ids)
            self.text[i] = self.text.get(i, "") + output.text
            if output.logprobs is not None:
                self.logprobs.setdefault(i, []).extend(output.logprobs)
            if output.finish_reason is not None:
                self.ends[i] = (output.finish_reason, output.stop_reason)


def call_for(engine: AsyncEngine, prompt, *, request_id: str = "a", **options) -> Call:
    named = {k: options.pop(k) for k in ("priority", "cache_salt", "timeout_s", "key_id") if k in options}
    tokens = engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    params = SamplingParams(**({"temperature": 0.0, "max_tokens": 12, "ignore_eos": True} | options))
    return Call(request_id=request_id, prompt_tokens=tokens, params=params, **named)


async def ask(
    engine: AsyncEngine, prompt, *, on_news=lambda _: None, pause_s: float = 0.0, **options
) -> Outcome:
    """One call, read to its end."""
    outcome = Outcome()
    with engine.admit(100) as ticket:
        async with engine.stream(ticket, call_for(engine, prompt, **options)) as pieces:
            async for news in pieces:
                outcome.take(news)
                on_news(news)
                if pause_s:
                    await asyncio.sleep(pause_s)
    return outcome


def engine_pid(engine: AsyncEngine) -> int | None:
    running = engine._supervisor.engine
    return None if running is None else running.process.pid


async def until(holds, limit_s: float = 20.0) -> None:
    """Wait for a condition; fail if it never comes true. A machine that stands still does not count."""
    for _ in range(int(limit_s / 0.01)):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited in vain")
