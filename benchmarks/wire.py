"""What the process boundary costs: the same calls through AsyncEngine and through LLM, by turns.

    python -m benchmarks.wire MODEL [--clients 32] [--tokens 128] [--rounds 3]

MODEL is a folder or a name; prefix caching is off. Prints the tokens per second of both, round by round, and
the ratio of their medians.
"""

import argparse
import asyncio
import statistics
import sys
import time

from penstock import LLM, SamplingParams
from penstock.config import EngineConfig
from penstock.engine.async_engine import AsyncEngine
from penstock.engine.serving import Call, Limits

PROMPT_TOKENS = 32


def prompts(count: int) -> list[list[int]]:
    return [[5 + (7 * i + j) % 400 for j in range(PROMPT_TOKENS)] for i in range(count)]


def in_process(llm: LLM, clients: int, params: SamplingParams) -> float:
    began_s = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts(clients)], params, use_tqdm=False)
    taken_s = time.perf_counter() - began_s
    return sum(len(o.outputs[0].token_ids) for o in outputs) / taken_s


async def through_the_wire(engine: AsyncEngine, clients: int, params: SamplingParams) -> float:
    async def one(tokens: list[int]) -> int:
        count = 0
        with engine.admit(100) as ticket:
            call = Call(request_id="wire", prompt_tokens=tokens, params=params)
            async with engine.stream(ticket, call) as pieces:
                async for news in pieces:
                    count += sum(len(o.token_ids) for o in news.outputs)
        return count

    began_s = time.perf_counter()
    counts = await asyncio.gather(*(one(p) for p in prompts(clients)))
    return sum(counts) / (time.perf_counter() - began_s)


async def run(args: argparse.Namespace) -> None:
    params = SamplingParams(max_tokens=args.tokens, temperature=0.0, ignore_eos=True)
    options = {"prefix_cache": False, "max_context": 1024, "seed": 1, "weights": args.weights}
    llm = LLM(args.model, **options)
    engine = await AsyncEngine.start(args.model, EngineConfig(**options), Limits())
    ours, theirs = [], []
    in_process(llm, 2, params)
    await through_the_wire(engine, 2, params)
    for number in range(args.rounds):
        ours.append(await through_the_wire(engine, args.clients, params))
        theirs.append(in_process(llm, args.clients, params))
        print(f"round {number}: wire {ours[-1]:.0f} tok/s, in-process {theirs[-1]:.0f} tok/s", flush=True)
    await engine.stop()
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"{args.model}, {args.clients} clients: {ratio:.1%} of the in-process engine")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", default="auto")
    args = parser.parse_args()
    asyncio.run(run(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
