"""Runs a mix of calls through the engine's own scheduler and loop, under given circumstances.

Everything between the executor and LLM is the real thing; only `forward` is wrapped, to keep a digest of the
logits behind every token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from random import Random

import msgspec
from tests.exactness.compare import Completion, Outcome, completion, outcome
from tests.exactness.mixes import Ask, Circumstances

from penstock.engine.admission import Admission
from penstock.engine.answer import Answer
from penstock.engine.assemble import make_core
from penstock.engine.build import Loaded
from penstock.engine.core import EngineCore
from penstock.request import Request
from penstock.step import Executor, StepInput, StepOutput

MAX_DISTURBANCES = 40  # of a run; each may throw away a long prompt's work


@dataclass(slots=True)
class Run:
    """What came out, and how much happened on the way. None: that call was aborted."""

    outcomes: list[Outcome | None]
    num_steps: int = 0
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    largest_batch: int = 0


class Recorder:
    """An executor's `forward` that keeps a digest of the logits of every row that drew a token.

    The key is (seed, output position). A row that is computed again must have the same bits again.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.digests: dict[int, dict[int, bytes]] = {}
        self.num_steps = self.largest_batch = 0

    def __call__(self, step: StepInput) -> StepOutput:
        output = self._executor.forward(replace(step, taps=("logits",)))
        rows = step.sampling
        for r, logits in enumerate(output.taps["logits"]):
            if rows.target[r] >= 0:
                continue
            digest = blake2b(logits.tobytes(), digest_size=8).digest()
            position = int(rows.position[r])
            kept = self.digests.setdefault(int(rows.seed[r]), {}).setdefault(position, digest)
            assert kept == digest, f"output position {position} was computed twice, with other bits"
        self.num_steps += 1
        self.largest_batch = max(self.largest_batch, len(step.context_len))
        return output


def run_alone(loaded: Loaded, asks: Sequence[Ask]) -> list[Outcome]:
    """The reference: one request at a time, whole prompts, nothing cached. Completions of one call too."""
    runner = Runner(loaded, Circumstances(), asks)
    for index in range(len(asks)):
        for request in runner.requests[index]:
            runner.core.add_request(request)
            runner.drain()
    return [one for one in runner.finish().outcomes if one is not None]


def run_mix(engines: Mapping[int, Loaded], asks: Sequence[Ask], circumstances: Circumstances) -> Run:
    """`engines`: the loaded model by its number of threads."""
    loaded = engines[circumstances.threads]
    if circumstances.starts_dirty:
        fill_kv(loaded, 0xFF)  # NaN, as float32 and as bfloat16
    runner = Runner(loaded, circumstances, asks)
    if circumstances.is_warm:
        runner.warm_up()
    random = Random(f"run {circumstances.seed}")
    waiting = list(range(len(asks)))
    if circumstances.is_permuted:
        random.shuffle(waiting)
    while waiting or runner.core.has_requests:
        arriving = random.choice((0, 1, 1, 3)) if circumstances.arrives_apart else len(waiting)
        for index in waiting[:arriving]:
            for request in runner.requests[index]:
                runner.core.add_request(request)
        del waiting[:arriving]
        runner.disturb(random)
        runner.step()
    return runner.finish()


def fill_kv(loaded: Loaded, byte: int) -> None:
    """Set every byte of the KV memory: as if the blocks came from anybody."""
    for pool in loaded.executor.kv_pools:  # type: ignore[attr-defined]  # of the cpu backend
        pool[:] = byte


class Runner:
    """One engine core over a loaded model, and the answers of the calls put to it."""

    def __init__(self, loaded: Loaded, circumstances: Circumstances, asks: Sequence[Ask]) -> None:
        self._circumstances = circumstances
        self._asks = asks
        self._loaded = _replan(loaded, circumstances, asks)
        self._recorder = Recorder(loaded.executor)
        self.core: EngineCore = make_core(replace(self._loaded, executor=_Forward(self._recorder)))
        self._num_disturbances = 0
        self._aborted: set[int] = set()
        self.requests, self._answers, self._by_request = self._admit("")

    def step(self) -> None:
        for delta in self.core.step() or ():
            index = self._by_request.get(delta.request_id)
            if index is not None:
                ids = [request.request_id for request in self.requests[index]]
                self._answers[index].take(ids.index(delta.request_id), delta, 0.0)

    def drain(self) -> None:
        while self.core.has_requests:
            self.step()

    def warm_up(self) -> None:
        """Run the whole mix once, under other names."""
        requests, _, _ = self._admit("warm-up ")
        for request in (one for call in requests for one in call):
            self.core.add_request(request)
        self.drain()

    def disturb(self, random: Random) -> None:
        """Preempt somebody, abort somebody, forget what is cached; or not."""
        if self._num_disturbances >= MAX_DISTURBANCES:
            return
        c, scheduler = self._circumstances, self.core.scheduler
        ids = list(scheduler.requests)
        if ids and random.random() < c.preempt_chance:
            self._num_disturbances += scheduler.force_preempt(random.choice(ids))
        if ids and random.random() < c.abort_chance:
            index = self._by_request[random.choice(ids)]
            self._aborted.add(index)
            for request in self.requests[index]:
                self.core.abort(request.request_id)
        if random.random() < c.reset_chance:
            scheduler.reset_prefix_cache()

    def finish(self) -> Run:
        outcomes: list[Outcome | None] = []
        for index, answer in enumerate(self._answers):
            digests = [self._recorder.digests.get(request.seed, {}) for request in self.requests[index]]
            outcomes.append(None if index in self._aborted else outcome(answer.news(), digests))
        return Run(
            outcomes,
            num_steps=self._recorder.num_steps,
            num_preemptions=self.core.scheduler.num_preemptions,
            num_cached_tokens=sum(r.num_cached_tokens for call in self.requests for r in call),
            largest_batch=self._recorder.largest_batch,
        )

    def answer(self, index: int) -> Completion:
        """What came of a call with one completion, since it was added here."""
        (request,) = self.requests[index]
        (output,) = self._answers[index].news().outputs
        return completion(output, self._recorder.digests.get(request.seed, {}))

    def _admit(self, prefix: str) -> tuple[list[list[Request]], list[Answer], dict[str, int]]:
        loaded = self._loaded
        admission = Admission(
            tokenizer=loaded.tokenizer,
            vocab_size=loaded.spec.vocab_size,
            max_context=loaded.plan.max_context,
            eos_ids=frozenset(loaded.defaults.eos_token_ids),
            seed=0,
        )
        requests: list[list[Request]] = []
        answers: list[Answer] = []
        by_request: dict[str, int] = {}
        for index, ask in enumerate(self._asks):
            call_id = f"{prefix}{index}"
            admitted = admission.admit(
                call_id,
                ask.prompt_tokens,
                ask.params,
                arrival_s=0.0,
                priority=ask.priority,
                cache_salt=ask.cache_salt,
                output_tokens=ask.emitted,
            )
            requests.append(admitted)
            answers.append(
                Answer(
                    call_id,
                    admitted[0].prompt_tokens,
                    ask.params,
                    loaded.tokenizer,
                    seed=admitted[0].seed,
                    arrival_s=0.0,
                    prompt=None,
                    fingerprint="",
                )
            )
            by_request |= {request.request_id: index for request in admitted}
        return requests, answers, by_request


class _Forward:
    """An executor that is nothing but a `forward`."""

    def __init__(self, forward: Callable[[StepInput], StepOutput]) -> None:
        self.forward = forward

    def describe(self) -> Mapping[str, str]:
        return {}


def _replan(loaded: Loaded, c: Circumstances, asks: Sequence[Ask]) -> Loaded:
    """The same model and memory, with other limits. Never above those it was loaded with."""
    plan = loaded.plan
    assert c.max_requests <= plan.max_requests
    assert c.max_step_tokens <= plan.max_step_tokens
    num_blocks = plan.num_kv_blocks
    if c.is_short_of_blocks:
        most = max(len(ask.prompt_tokens) + (ask.params.max_tokens or 0) for ask in asks)
        num_blocks = tuple(min(have, most // plan.block_size + 4) for have in num_blocks)
    plan = msgspec.structs.replace(
        plan,
        max_requests=c.max_requests,
        max_step_tokens=c.max_step_tokens,
        num_kv_blocks=num_blocks,
        prefix_cache=c.prefix_cache,
        policy=c.policy,
    )
    return replace(loaded, plan=plan)
