"""Engines for the HTTP front's tests: the real one in this process, and one that says what it was told."""

import asyncio
import contextlib
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from penstock.engine.llm import LLM
from penstock.engine.serving import Call, EngineState, Health, Limits, ModelFacts, Receipt
from penstock.errors import OverloadedError, PenstockError, ShuttingDownError
from penstock.request import CompletionOutput, RequestMetrics, RequestOutput


class Ticket(contextlib.nullcontext[None]):
    """A place in the queue, counted."""

    def __init__(self, engine: "ScriptedEngine") -> None:
        super().__init__()
        self._engine = engine
        engine.num_tickets += 1

    def __exit__(self, *_: object) -> None:
        self._engine.num_tickets -= 1


class NoMetrics:
    def render(self) -> str:
        return "# HELP fake_up One.\n# TYPE fake_up gauge\nfake_up 1\n"


class ScriptedEngine:
    """Answers every call with `pieces` (texts, or errors to raise), `gap_s` apart; `hangs`: and never ends.

    Tokenizer, template and facts are those of penstock-tiny. `aborted` and `calls` say what happened.
    """

    def __init__(
        self,
        llm: LLM,
        pieces: Sequence[str | Exception] = ("Hello", " world"),
        *,
        gap_s: float = 0.0,
        hangs: bool = False,
        limits: Limits | None = None,
        refuses: PenstockError | None = None,
        finish_reason: str = "stop",
    ) -> None:
        self.limits = limits or Limits()
        self.tokenizer = llm.tokenizer
        self.reader = llm._reader
        self.metrics = NoMetrics()
        self.facts = facts_of(llm)
        self.pieces = list(pieces)
        self.gap_s = gap_s
        self.hangs = hangs
        self.refuses = refuses
        self.finish_reason = finish_reason
        self.calls: list[Call] = []
        self._ids: dict[str, list[int]] = {}
        self.num_open = self.num_tickets = self.num_aborted = self.num_probes = 0
        self.state = EngineState.READY
        self.failure: asyncio.Future[PenstockError | None] | None = None

    def admit(self, num_bytes: int) -> Ticket:
        if self.state is EngineState.DRAINING:
            raise ShuttingDownError("the server is draining; ask another.")
        if self.refuses is not None:
            raise self.refuses
        if self.num_tickets >= self.limits.queued_requests:
            raise OverloadedError("too many wait; ask again later.", retry_after_s=3)
        return Ticket(self)

    async def offload(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(function, *arguments)

    @contextlib.asynccontextmanager
    async def stream(self, ticket: Ticket, call: Call) -> AsyncIterator[AsyncIterator[RequestOutput]]:
        self.calls.append(call)
        self.num_open += 1
        is_whole = False

        async def pieces() -> AsyncIterator[RequestOutput]:
            nonlocal is_whole
            for number, piece in enumerate(self.pieces):
                if self.gap_s:
                    await asyncio.sleep(self.gap_s)
                if isinstance(piece, Exception):
                    raise piece
                is_last = number == len(self.pieces) - 1
                yield self._output(call, piece, is_last=is_last and not self.hangs)
            if self.hangs:
                await asyncio.Event().wait()
            is_whole = True

        try:
            yield pieces()
        finally:
            self.num_open -= 1
            self.num_aborted += not is_whole

    def _ids_of(self, text: str) -> list[int]:
        """Each piece is tokenized once: hundreds of streams may be given the same."""
        ids = self._ids.get(text)
        if ids is None:
            ids = self._ids[text] = self.tokenizer.encode(text, add_special=False)
        return ids

    def _output(self, call: Call, text: str, *, is_last: bool) -> RequestOutput:
        outputs = [
            CompletionOutput(
                index=index,
                text=text,
                token_ids=self._ids_of(text),
                cumulative_logprob=None,
                logprobs=None,
                finish_reason=self.finish_reason if is_last else None,
            )
            for index in range(call.params.n)
        ]
        now_s = time.monotonic()
        return RequestOutput(
            request_id=call.request_id,
            prompt=call.prompt,
            prompt_token_ids=list(call.prompt_tokens),
            prompt_logprobs=None,
            outputs=outputs,
            finished=is_last,
            metrics=RequestMetrics(now_s, now_s, now_s, now_s),
            seed=1,
            system_fingerprint=self.facts.fingerprint,
        )

    def receipt(self, output: RequestOutput) -> Receipt:
        return Receipt(
            queue_ms=0.0, prefill_ms=0.0, decode_ms=0.0, cached_tokens=0, kv_bytes=0, exactness="exact",
            config_hash="",
        )  # fmt: skip

    async def embed(self, tickets: Sequence[Ticket], calls: Sequence[Call]) -> list["array[float]"]:
        return [
            array("f", [float(len(call.prompt_tokens)), 0.5, -1.0 if call.pooling == "mean" else 1.0])
            for call in calls
        ]

    async def probe(self, timeout_s: float = 2.0) -> bool:
        self.num_probes += 1
        return True

    def health(self) -> Health:
        is_ready = self.state is EngineState.READY
        return Health(
            state=self.state, ready=is_ready, reasons=[] if is_ready else [str(self.state)],
            heartbeat_age_s=0.1, num_running=self.num_open, num_queued=0, queued_bytes=0, kv_usage=0.0,
        )  # fmt: skip

    async def drain(self, limit_s: float) -> None:
        self.state = EngineState.DRAINING
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.num_open:
                    await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.state = EngineState.STOPPED

    async def wait_stopped(self) -> PenstockError | None:
        self.failure = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self.failure)


class LocalEngine(ScriptedEngine):
    """The same face over an LLM in this process: its steps run in one thread, in which nothing else runs."""

    def __init__(self, llm: LLM, limits: Limits | None = None) -> None:
        super().__init__(llm, limits=limits)
        size = llm.loaded.spec.hidden_size
        self.facts = msgspec.structs.replace(self.facts, embedding_size=size, embedding_cuts=())
        self._llm = llm
        self._thread = ThreadPoolExecutor(1)

    @contextlib.asynccontextmanager
    async def stream(self, ticket: Ticket, call: Call) -> AsyncIterator[AsyncIterator[RequestOutput]]:
        loop = asyncio.get_running_loop()
        prompt = {"prompt_token_ids": list(call.prompt_tokens), "cache_salt": call.cache_salt}
        generator = await loop.run_in_executor(self._thread, self._llm.stream, prompt, call.params)
        self.num_open += 1

        async def pieces() -> AsyncIterator[RequestOutput]:
            while (piece := await loop.run_in_executor(self._thread, next, generator, None)) is not None:
                yield piece

        try:
            yield pieces()
        finally:
            self.num_open -= 1
            await loop.run_in_executor(self._thread, generator.close)

    async def embed(self, tickets: Sequence[Ticket], calls: Sequence[Call]) -> list["array[float]"]:
        def run() -> list["array[float]"]:
            prompts = [{"prompt_token_ids": list(call.prompt_tokens)} for call in calls]
            outputs = self._llm.embed(prompts, pooling=calls[0].pooling, use_tqdm=False)
            return [array("f", output.outputs.embedding) for output in outputs]

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)


def facts_of(llm: LLM) -> ModelFacts:
    plan = llm.loaded.plan
    return ModelFacts(
        name="penstock-tiny", max_context=plan.max_context, vocab_size=llm.loaded.spec.vocab_size,
        fingerprint=llm.loaded.fingerprint, exactness="exact", config_hash="c0ffee", kv_bytes_per_token=1024,
        plan={"backend": plan.backend}, defaults=llm.default_params, embedding_size=3, embedding_cuts=(2,),
    )  # fmt: skip
