"""The clients of the soak: who asks what, and a tally of what they were answered.

Lengths are those of the azure-conv-23 trace, a sixteenth of them. 20 % of the calls ask for NUM_TINY tiny
answers at once: nearly all requests are theirs, nearly all tokens those of the others.
"""

import asyncio
import contextlib
import itertools
import math
from collections import Counter
from random import Random

from benchmarks.client import Reply, ask, open_socket, post
from benchmarks.served import Served

TRACE_SHARE = 16  # lengths are divided by it
INPUT_TOKENS = ((0, 29), (10, 207), (25, 396), (50, 1020), (75, 1189), (90, 2734), (95, 4083), (99, 4142))
OUTPUT_TOKENS = ((0, 16), (10, 54), (25, 85), (50, 129), (75, 395), (90, 424), (95, 451), (99, 601))
NUM_TINY = 64  # prompts of one call
NUM_CROWD = 300  # clients at once, before anything is counted: more than wait where an engine dies
FAILED = (" 504", " failed", " wrong")  # let in and not answered
NUM_QUEUED = 1000  # what the server lets wait
MODEL = "soaked"
CANARIES = (
    {"prompt": "def fib(n):\n", "temperature": 0, "max_tokens": 40},
    {"prompt": "class Stack:\n", "temperature": 1, "seed": 7, "max_tokens": 30},
    {"prompt": "import os\n", "temperature": 0.8, "seed": 3, "max_tokens": 25, "repetition_penalty": 1.2},
    {"prompt": "for i in range(", "temperature": 0.9, "seed": 5, "max_tokens": 30, "stop": ["):"]},
)
BAD = (
    b"", b"{", b"[]", b'{"model": "soaked"}', b'{"model":"soaked","prompt":"a","n":99}',
    b'{"model":"soaked","prompt":"a","temperature":NaN}', b'{"model":"other","prompt":"a"}',
    b'{"model":"soaked","prompt":[999999]}', b'{"model":"soaked","prompt":"a","best":1}',
    b'{"model":"soaked","prompt":"a","guided_regex":"(((("}', b"\xff\xfe" * 50,
)  # fmt: skip
PHRASES = (
    "x = ",
    "the cat sat ",
    "return self.",
    "3.14159 ",
    "\n    def ",
    "list of words ",
    "élan ",
    "if a > b:",
)


def drawn(random: Random, points: tuple[tuple[int, int], ...]) -> int:
    """A length: the inverse of the trace's distribution, log-linear between its percentiles."""
    share = random.uniform(0, 99)
    for (low, a), (high, b) in itertools.pairwise(points):
        if share <= high:
            length = math.exp(math.log(a) + (math.log(b) - math.log(a)) * (share - low) / (high - low))
            return max(1, round(length / TRACE_SHARE))
    raise AssertionError("the last point is beyond every share")


def body_of(random: Random) -> dict[str, object]:
    num_prompt, num_output = drawn(random, INPUT_TOKENS), drawn(random, OUTPUT_TOKENS)
    prompt = "".join(random.choice(PHRASES) for _ in range(num_prompt // 4 + 1))
    body: dict[str, object] = {
        "model": MODEL, "prompt": prompt, "max_tokens": num_output, "ignore_eos": True,
        "temperature": random.choice((0, 0.7, 1.0)), "seed": random.randrange(2**31),
        "stream": random.random() < 0.7,
    }  # fmt: skip
    if random.random() < 0.05:
        body["n"] = 2
    if random.random() < 0.05:
        body["logprobs"] = 3
    if random.random() < 0.03:
        body |= {"guided_regex": f"[a-z ]{{1,{random.randrange(20, 400)}}}", "ignore_eos": False}
    return body


class Traffic:
    """All clients, and the tally of what they saw."""

    def __init__(self, server: Served, seed: int) -> None:
        self.server = server
        self.random = Random(seed)
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.expected: list[str] = []
        self.num_requests = 0  # as the engine counts: prompts times n

    async def learn(self) -> None:
        """What the canaries are answered when nobody disturbs; and refusals: each status is counted once."""
        for data in BAD:
            await ask(self.server.port, post("/v1/completions", data))
        late = {"model": MODEL, "prompt": "x", "timeout": 1e-6}
        await ask(self.server.port, post("/v1/completions", late))
        for canary in CANARIES:
            reply = await ask(self.server.port, post("/v1/completions", {"model": MODEL, **canary}))
            self.expected.append(reply.text)

    async def crowd(self) -> None:
        """As many as may wait, and some that may not."""
        plain = (self._plain() for _ in range(NUM_CROWD))
        await asyncio.gather(*plain, *(self._many() for _ in range(NUM_QUEUED // NUM_TINY)))

    async def one(self) -> None:
        draw = self.random.random()
        if draw < 0.05:
            await self._leaver()
        elif draw < 0.07:
            await self._bad()
        elif draw < 0.08:
            await self._slow()
        elif draw < 0.18:
            await self._canary()
        elif draw < 0.38:
            await self._many()
        else:
            await self._plain()

    async def _plain(self) -> None:
        body = body_of(self.random)
        reply = await ask(self.server.port, post("/v1/completions", body))
        self._note("plain", reply, 2 if "n" in body else 1)

    def _note(self, kind: str, reply: Reply, num_requests: int) -> None:
        """A 200 is whole, or a stream whose one error event is the last thing in it: failed, and told so."""
        status = reply.status
        errors = [event["error"] for event in reply.events if "error" in event] if reply.is_stream else []
        if status == 200 and reply.is_whole and not errors:
            self.seen[f"{kind} 200"] += 1
            self.num_requests += num_requests
        elif status == 200 and not reply.is_whole and len(errors) == 1 and "error" in reply.events[-1]:
            self.seen[f"{kind} failed: {errors[0]['code']}"] += 1
        elif status in (503, 504):  # the queue may be full, a wait too long; nothing else
            self.seen[f"{kind} {status}"] += 1
        else:
            self.seen[f"{kind} wrong"] += 1
            self.wrong.append(f"{kind}: status {status}, whole {reply.is_whole}, {len(errors)} errors")

    @property
    def availability(self) -> float:
        """Whole answers among the calls that were let in."""
        whole = sum(count for name, count in self.seen.items() if name.endswith(" 200"))
        failed = sum(count for name, count in self.seen.items() if any(word in name for word in FAILED))
        return whole / max(1, whole + failed)

    async def _many(self) -> None:
        """Many prompts of a few words, a token for each."""
        prompts = ["".join(self.random.choices(PHRASES, k=2)) for _ in range(NUM_TINY)]
        body = {
            "model": MODEL, "prompt": prompts, "max_tokens": 1, "temperature": 1,
            "seed": self.random.randrange(2**31), "ignore_eos": True,
        }  # fmt: skip
        self._note("many", await ask(self.server.port, post("/v1/completions", body)), NUM_TINY)

    async def _canary(self) -> None:
        number = self.random.randrange(len(CANARIES))
        body = {"model": MODEL, **CANARIES[number], "stream": self.random.random() < 0.5}
        reply = await ask(self.server.port, post("/v1/completions", body))
        self._note("canary", reply, 1)
        if reply.status == 200 and reply.is_whole and reply.text != self.expected[number]:
            self.wrong.append(f"canary {number}: {reply.text!r} is not {self.expected[number]!r}")

    async def _bad(self) -> None:
        reply = await ask(self.server.port, post("/v1/completions", self.random.choice(BAD)))
        self.seen[f"bad {reply.status}"] += 1
        if not (400 <= reply.status < 500 or reply.status == 503):
            self.wrong.append(f"bad: status {reply.status}")

    async def _leaver(self) -> None:
        """Says what it wants, or a part of it, and is gone."""
        self.seen["leaver"] += 1
        data = post("/v1/completions", body_of(self.random))
        with contextlib.suppress(OSError):
            _, writer = await open_socket(self.server.port)
            writer.write(data[: self.random.randrange(len(data))] if self.random.random() < 0.3 else data)
            await asyncio.sleep(self.random.expovariate(5))
            writer.transport.abort()

    async def _slow(self) -> None:
        """Reads a few bytes now and then."""
        body = {**body_of(self.random), "stream": True, "logprobs": 5}
        got = b""
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await open_socket(self.server.port, 2048)
            writer.write(post("/v1/completions", body))
            async with asyncio.timeout(60):
                while piece := await reader.read(512):
                    got += piece
                    await asyncio.sleep(0.05)
            writer.close()
        self.seen["slow, whole" if b"data: [DONE]" in got else "slow, cut"] += 1
