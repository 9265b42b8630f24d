"""kill -9, SIGSTOP and SIGSEGV for the engine process at random points of a load, and every answer compared.

    python -m benchmarks.kills [--kills 200] [--clients 8] [--seed 1] [--model penstock-tiny]

Each client asks one kind of call over and over (greedy, sampled, penalties, min_tokens, stop strings,
logprobs, n = 2) and compares all of the answer with what an engine gave that nobody disturbed. Prints a line
now and then, the longest silence, and what differed; exits 1 if anything did.
"""

import argparse
import asyncio
import os
import signal
import statistics
import sys
import time
from collections import Counter
from random import Random

from penstock import LLM, SamplingParams
from penstock.config import EngineConfig
from penstock.engine.async_engine import AsyncEngine
from penstock.engine.serving import Call, EngineState, Limits
from penstock.request import RequestOutput

PROMPT = "def fib(n):\n    "
KINDS = (
    SamplingParams(max_tokens=300, temperature=0.0, ignore_eos=True),
    SamplingParams(max_tokens=300, temperature=0.9, seed=5, ignore_eos=True),
    SamplingParams(max_tokens=300, temperature=0.8, seed=6, repetition_penalty=1.3, frequency_penalty=0.4),
    SamplingParams(max_tokens=300, temperature=1.0, seed=7, min_tokens=150),
    SamplingParams(max_tokens=200, temperature=0.7, seed=8, n=2, logprobs=2, ignore_eos=True),
    SamplingParams(max_tokens=300, temperature=1.1, seed=9, stop=("self.", "zzqq"), min_tokens=60),
    SamplingParams(max_tokens=300, temperature=0.9, seed=10, bad_words=("return",), top_k=50),
)
Answer = list[tuple[list[int], str, object, str | None]]


def settled(output: RequestOutput) -> Answer:
    return [(list(o.token_ids), o.text, o.logprobs, o.finish_reason) for o in output.outputs]


async def ask(engine: AsyncEngine, params: SamplingParams, tokens: list[int]) -> Answer:
    """The whole answer, put together from its pieces."""
    answer: Answer = [([], "", [] if params.logprobs is not None else None, None) for _ in range(params.n)]
    with engine.admit(100) as ticket:
        call = Call(request_id="kills", prompt_tokens=tokens, params=params)
        async with engine.stream(ticket, call) as pieces:
            async for news in pieces:
                for o in news.outputs:
                    ids, text, logprobs, _ = answer[o.index]
                    more = None if o.logprobs is None else [*logprobs, *o.logprobs]  # type: ignore[misc]
                    answer[o.index] = (ids + list(o.token_ids), text + o.text, more, o.finish_reason)
    return answer


async def run(args: argparse.Namespace, expected: list[Answer]) -> bool:
    limits = Limits(restart_failures=10**9, restart_backoff_s=0.5, hang_s=2.0, heartbeat_s=2.0)
    config = EngineConfig(max_requests=16, seed=11)
    engine = await AsyncEngine.start(args.model, config, limits)
    tokens = engine.tokenizer.encode(PROMPT)
    random, done = Random(args.seed), asyncio.Event()
    counts, differing, silences = Counter[str](), Counter[int](), list[float]()

    async def client(number: int) -> None:
        kind = number % len(KINDS)
        while not done.is_set():
            counts["answers"] += 1
            if await ask(engine, KINDS[kind], tokens) != expected[kind]:
                differing[kind] += 1

    async def wait_for(holds) -> None:
        while not holds():
            for task in clients:
                if task.done():
                    task.result()  # what a client met is not to be hidden
            await asyncio.sleep(0.005)

    def given() -> float:
        return next(iter(engine.metrics.output_tokens.collect())).samples[0].value

    clients = [asyncio.create_task(client(i)) for i in range(args.clients)]
    for number in range(args.kills):
        how = random.choices(
            (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP), weights=(90, 7, 3 if args.stops else 0)
        )[0]
        if random.random() < 0.8:  # the others die while they load or begin
            await wait_for(lambda: engine.health().state is EngineState.READY)
        await asyncio.sleep(random.uniform(0.0, 0.5))
        running = engine._supervisor.engine
        if running is None or running.process.poll() is not None:
            counts["nobody there"] += 1
            continue
        before, began_s = given(), time.monotonic()
        os.kill(running.process.pid, how)
        counts[how.name] += 1
        await wait_for(lambda before=before: given() > before)
        if how is not signal.SIGSTOP:
            silences.append(time.monotonic() - began_s)
        if number % 20 == 19:
            print(
                f"{number + 1} kills, {counts['answers']} answers, {sum(differing.values())} differ",
                flush=True,
            )
    done.set()
    await asyncio.gather(*clients)
    await engine.stop()
    print(dict(counts))
    print(
        f"silence after a kill: median {statistics.median(silences):.2f} s, most {max(silences):.2f} s "
        f"(0.5 s of it is the pause before a restart)"
    )
    print(f"answers that differ: {sum(differing.values())} of {counts['answers']} {dict(differing) or ''}")
    return not differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="penstock-tiny")
    parser.add_argument("--stops", action="store_true", help="SIGSTOP too: a hang takes seconds to be found")
    args = parser.parse_args()
    llm = LLM(args.model, seed=11, max_requests=16)
    expected = [settled(llm.generate(PROMPT, params, use_tqdm=False)[0]) for params in KINDS]
    return 0 if asyncio.run(run(args, expected)) else 1


if __name__ == "__main__":
    sys.exit(main())
