"""AsyncEngine: the face that a server uses. Calls in, news out; the engine runs in a process of its own.

One event loop. Refuses at the door what cannot wait; what was let in ends in one way: an answer, or one
PenstockError. When the engine process dies the answers go on where they were, with the same bits.
"""

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import msgspec

from penstock.config import EngineConfig, Plan
from penstock.engine.admission import Admission
from penstock.engine.answer import Answer
from penstock.engine.bookkeeper import Bookkeeper, receipt_of
from penstock.engine.call_desk import CallDesk
from penstock.engine.journal import Entry
from penstock.engine.locate import locate
from penstock.engine.memory_guard import MemoryGuard, Pressure, memory_share
from penstock.engine.metrics import Metrics
from penstock.engine.prompts import PromptReader, load_reader
from penstock.engine.serving import Call, EngineState, Health, Limits, ModelFacts, Receipt
from penstock.engine.stream import Stream
from penstock.engine.supervisor import COMMAND, RunningEngine, Supervisor
from penstock.engine.waiting_room import Ticket
from penstock.engine.wire import Fault, Message, Ready, Step, error_of
from penstock.errors import (
    ContextLengthError,
    EngineError,
    EngineRestartingError,
    OverloadedError,
    PenstockError,
    ShuttingDownError,
)
from penstock.event_log import EventLog
from penstock.request import RequestOutput, SamplingParams
from penstock.text.grammar import spec_of
from penstock.text.grammar_prover import GrammarProver
from penstock.text.grammar_tokens import vocabulary_of
from penstock.text.tokenizer import Tokenizer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
TICK_S = 1.0
PROBE_EVERY_S = 1.0
PROBE_PRIORITY = -(2**31)


class AsyncEngine:
    """Made by `start`. `tokenizer`, `reader`, `facts` and `limits` are for whoever speaks with clients."""

    facts: ModelFacts
    tokenizer: Tokenizer
    reader: PromptReader

    def __init__(
        self, name: str, limits: Limits, *, resume: bool, share: Callable[[], float], log: EventLog
    ) -> None:
        self.limits = limits
        self.metrics = Metrics(name)
        self.log = log
        self._name = name
        self._books = Bookkeeper(self.metrics, self.log)
        self._desk = CallDesk(limits, self._books, resume=resume)
        self._guard = MemoryGuard(limits, share)
        room, dispatcher = self._desk.room, self._desk.dispatcher
        self.metrics.running.set_function(lambda: len(dispatcher.given))
        self.metrics.waiting.set_function(lambda: room.num_waiting)
        self.metrics.waiting_bytes.set_function(lambda: room.num_bytes)
        self._workers = ThreadPoolExecutor(limits.offload_threads, "penstock-text")
        self._loop = asyncio.get_running_loop()
        self._first_ready: asyncio.Future[Ready] = self._loop.create_future()
        self._state = EngineState.STARTING
        self._plan: Plan | None = None
        self._admission: Admission | None = None
        self._max_request_tokens = 0
        self._failure: PenstockError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._probe: asyncio.Task[bool] | None = None
        self._probed_s = float("-inf")
        self._prover: GrammarProver | None = None
        self._supervisor: Supervisor

    @classmethod
    async def start(
        cls,
        model: str,
        config: EngineConfig,
        limits: Limits,
        *,
        resume: bool = True,
        command: Sequence[str] = COMMAND,
        share: Callable[[], float] = memory_share,
        log: EventLog | None = None,
    ) -> "AsyncEngine":
        """Spawn the engine and wait until it is ready; the tokenizer is read meanwhile.

        `command` is what the engine process runs, `share` how full the memory is: tests hand in others.
        `log` is for what happens to the engine; without one it is on standard error.
        """
        loop = asyncio.get_running_loop()
        folder = await loop.run_in_executor(None, locate, model, config.revision)
        engine = cls(model, limits, resume=resume, share=share, log=log or EventLog())
        await engine._start(folder, config, command)
        return engine

    async def _start(self, folder: Path, config: EngineConfig, command: Sequence[str]) -> None:
        self._config = config
        self._supervisor = Supervisor(
            self, name=self._name, folder=folder, config=config, limits=self.limits, log=self.log,
            command=command,
        )  # fmt: skip
        self._tasks.append(self._loop.create_task(self._supervisor.run()))
        try:
            reading = self._loop.run_in_executor(self._workers, load_reader, folder)
            ready = await self._first_ready
            self.tokenizer, self.reader, _ = await reading
        except BaseException:
            await self.stop()
            raise
        self._admission = Admission(
            tokenizer=self.tokenizer,
            vocab_size=ready.facts.vocab_size,
            max_context=ready.facts.max_context,
            eos_ids=frozenset(ready.eos_ids),
            seed=ready.plan.seed,
            has_head=ready.facts.has_head,
        )
        self._prover = GrammarProver(
            partial(vocabulary_of, self.tokenizer, ready.facts.vocab_size, ready.eos_ids)
        )
        self._tasks.append(self._loop.create_task(self._tick()))

    # for those who speak with clients

    def admit(self, num_bytes: int) -> Ticket:
        """A place in the queue for one call of about `num_bytes`. Refuses in constant time."""
        if self._state in (EngineState.DRAINING, EngineState.STOPPED):
            self.metrics.refused.labels("draining").inc()
            raise ShuttingDownError("the server is shutting down; ask another, or later.", retry_after_s=5.0)
        if self._guard.pressure is not Pressure.NONE:
            self.metrics.refused.labels("memory").inc()
            raise OverloadedError(
                f"{self._guard.share:.0%} of the memory is in use; ask again later.", retry_after_s=5.0
            )
        try:
            return self._desk.room.enter(num_bytes)
        except OverloadedError:
            self.metrics.refused.labels("queue").inc()
            raise

    async def offload(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run what takes long (tokenizing, templates) on one of a few threads."""
        return await self._loop.run_in_executor(self._workers, function, *arguments)

    def stream(self, ticket: Ticket, call: Call) -> Stream:
        """The answer to `call` as it comes: enter to queue it, leave to end it. Refuses here, before that.

        Only what compiles a grammar is refused when it is entered: that is done in a process of its own.
        """
        entry = self._entry(call)
        tokens = 4 * len(call.prompt_tokens)
        ticket.resize(tokens + len(call.prompt or ""))
        if call.grammar is None and call.params.structured_outputs is None:
            return Stream(self._desk, entry, ticket, self._loop)
        prove = partial(self.offload, self._prove, call)
        return Stream(self._desk, entry, ticket, self._loop, prepare=prove)

    async def embed(self, tickets: Sequence[Ticket], calls: Sequence[Call]) -> "list[array[float]]":
        """The embeddings that calls with `pooling` ask for, in their order: float32, of length 1."""
        entries = [self._entry(call) for call in calls]
        async with AsyncExitStack() as stack:
            streams = []
            for ticket, entry in zip(tickets, entries, strict=True):
                ticket.resize(4 * len(entry.call.prompt_tokens) + len(entry.call.prompt or ""))
                stream = Stream(self._desk, entry, ticket, self._loop)
                streams.append(await stack.enter_async_context(stream))
            for stream in streams:
                async for _ in stream:
                    pass
        return [_vector_of(entry) for entry in entries]

    def receipt(self, output: RequestOutput) -> Receipt:
        """What the answer cost so far, by its latest piece."""
        return receipt_of(output, self.facts)

    async def probe(self, timeout_s: float = 2.0) -> bool:
        """Whether one real token comes in time. Shared, and at most one a second."""
        if self._probe is None or (self._probe.done() and time.monotonic() - self._probed_s > PROBE_EVERY_S):
            self._probed_s = time.monotonic()
            self._probe = self._loop.create_task(self._one_token())
        try:
            return await asyncio.wait_for(asyncio.shield(self._probe), timeout_s)
        except TimeoutError:
            return False

    def health(self) -> Health:
        room, engine = self._desk.room, self._supervisor.engine
        reasons: list[str] = []
        if self._state is not EngineState.READY:
            reasons.append(f"the engine is {self._state}")
        elif engine is None or not engine.watch.is_fresh:
            reasons.append("the engine's heartbeat is late")
        if room.num_waiting >= self.limits.queued_requests:
            reasons.append("the queue is full")
        if self._guard.pressure is not Pressure.NONE:
            reasons.append(f"{self._guard.share:.0%} of the memory is in use")
        beat = None if engine is None else engine.watch.beat
        return Health(
            state=self._state,
            ready=not reasons,
            reasons=reasons,
            heartbeat_age_s=None if engine is None or beat is None else round(engine.watch.age_s, 3),
            num_running=len(self._desk.dispatcher.given),
            num_queued=room.num_waiting,
            queued_bytes=room.num_bytes,
            kv_usage=0.0 if beat is None else beat.kv_usage,
        )

    async def drain(self, limit_s: float) -> None:
        """Let in nobody; return when all have ended, or fail the rest after `limit_s`."""
        if self._state is not EngineState.STOPPED:
            self._state = EngineState.DRAINING
        end_s = time.monotonic() + limit_s
        while (len(self._desk.journal) or self._desk.room.num_waiting) and time.monotonic() < end_s:
            await asyncio.sleep(min(0.05, limit_s))
        self._desk.fail_all(ShuttingDownError("the server is shutting down; send the request again."))

    async def stop(self) -> None:
        """End the engine process and everything that still runs. Harmless a second time."""
        self._state = EngineState.STOPPED
        self._desk.fail_all(ShuttingDownError("the server is shutting down; send the request again."))
        await self._supervisor.stop()
        supervising, *others = self._tasks
        for task in others:
            task.cancel()
        await asyncio.gather(supervising, *others, return_exceptions=True)
        self._workers.shutdown(wait=False, cancel_futures=True)
        if self._prover is not None:
            self._prover.close()

    async def wait_stopped(self) -> PenstockError | None:
        """Until the engine is gone for good: None after `stop`, else why this server must give up."""
        await asyncio.wait(self._tasks[:1])
        return self._failure

    # for the supervisor

    @property
    def num_given(self) -> int:
        return len(self._desk.dispatcher.given)

    def on_ready(self, ready: Ready, engine: RunningEngine) -> None:
        if self._plan is None:
            self._adopt(ready)
        elif ready.facts.fingerprint != self.facts.fingerprint:
            self._desk.fail_all(
                EngineRestartingError("the engine came back with other weights; send the request again.")
            )
            self.facts = ready.facts
        self.log.write("engine_ready", pid=engine.process.pid, fingerprint=ready.facts.fingerprint)
        self.metrics.engine_up.set(1)
        if self._state in (EngineState.STARTING, EngineState.ENGINE_DOWN):
            self._state = EngineState.READY
        self._desk.engine_ready(engine.send, ready.plan)

    def on_message(self, message: Message) -> None:
        if isinstance(message, Step):
            self._supervisor.worked()
            self._desk.take_step(message)
        elif isinstance(message, Fault):
            self._desk.refuse(message.request_id, error_of(message))

    def on_lost(self, *, of_itself: bool) -> None:
        self.metrics.engine_up.set(0)
        self.metrics.restarts.inc()
        if self._state is EngineState.READY:
            self._state = EngineState.ENGINE_DOWN
        self._desk.engine_lost(of_itself=of_itself)

    def on_gave_up(self, error: PenstockError) -> None:
        self._failure = error
        self._state = EngineState.STOPPED
        self.log.write("gave_up", reason=str(error))
        if not self._first_ready.done():
            self._first_ready.set_exception(error)
        self._desk.fail_all(EngineError(str(error)))

    def _adopt(self, ready: Ready) -> None:
        """What the first engine decided holds for all that follow it."""
        plan = self._plan = ready.plan
        self.facts = ready.facts
        self._max_request_tokens = ready.max_request_tokens
        self._supervisor.pin(
            msgspec.structs.replace(
                self._config,
                max_context=plan.max_context,
                max_requests=plan.max_requests,
                max_step_tokens=plan.max_step_tokens,
                memory_bytes=plan.kv_bytes,
                threads=plan.threads,
                seed=plan.seed,
            )
        )
        self.metrics.describe_cache(
            block_size=plan.block_size, num_blocks=sum(plan.num_kv_blocks), prefix_cache=plan.prefix_cache
        )
        for note in ready.notes:
            self.log.write("note", text=note)
        self._first_ready.set_result(ready)

    # inside

    def _entry(self, call: Call) -> Entry:
        assert self._admission is not None, "start() returns when it is there"
        terms = self._admission.judge(call.prompt_tokens, call.params, pooling=call.pooling)
        num_tokens = len(call.prompt_tokens) + (0 if call.pooling else terms.max_output_tokens)
        if num_tokens > self._max_request_tokens:
            raise ContextLengthError(
                f"prompt has {len(call.prompt_tokens):,} tokens and {terms.max_output_tokens:,} more are "
                f"asked for; the KV cache holds {self._max_request_tokens:,} in all. Ask for less."
            )
        answer = Answer(
            call.request_id,
            call.prompt_tokens,
            call.params,
            self.tokenizer,
            seed=terms.seeds[0],
            arrival_s=self._admission.next_arrival_s(time.monotonic()),
            prompt=call.prompt,
            fingerprint=self.facts.fingerprint,
        )
        salt = f"{len(call.key_id)}:{call.key_id}{call.cache_salt}" if call.key_id else call.cache_salt
        return Entry(self._desk.journal.new_key(), call, terms, answer, salt=salt)

    def _prove(self, call: Call) -> None:
        """On a thread: that the call's grammar compiles within its fuel."""
        grammar = call.grammar or spec_of(call.params.structured_outputs)
        assert self._prover is not None, "start() returns when it is there"
        if grammar is not None:
            self._prover.prove(grammar, param=call.grammar_param)

    async def _one_token(self) -> bool:
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        pooling = "" if self.facts.has_head else "last"
        call = Call(
            request_id="probe", prompt_tokens=[0], params=params, priority=PROBE_PRIORITY, pooling=pooling
        )
        try:
            async with Stream(self._desk, self._entry(call), None, self._loop) as news:
                async for _ in news:
                    pass
        except PenstockError:
            return False
        return True

    async def _tick(self) -> None:
        """Once a second: readers, memory, gauges."""
        while True:
            await asyncio.sleep(TICK_S)
            self._desk.sweep()
            if self._guard.look() is Pressure.ABORT:
                self._desk.abort_youngest()
            engine = self._supervisor.engine
            self._books.heard(
                None if engine is None else engine.watch.beat,
                0.0 if engine is None else engine.watch.age_s,
                self._supervisor.count_malformed(),
            )


def _vector_of(entry: Entry) -> "array[float]":
    packed = entry.answer.embedding
    if packed is None:
        raise EngineError("a request for an embedding ended without one; this is a defect of penstock.")
    vector = array("f")
    vector.frombytes(packed)
    return vector
