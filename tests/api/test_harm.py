"""What was done to other servers, tried on this one: the numbers are those of the table in README.md.

Resource use, isolation and side channels; shapes of refusals are in test_bad_bodies.py, framing in
test_http.py.
"""

import concurrent.futures
import contextlib
import json
import os
import random
import signal
import statistics
import threading
import time

import pytest
from benchmarks.served import served
from tests.api.conftest import Started
from tests.api.wire import CHAT, TEXT, connect, exchange, head, post, status

from penstock import SamplingParams

P, C = "/v1/completions", "/v1/chat/completions"
MANY_TOOLS = [
    {"type": "function", "function": {"name": f"f{i}", "parameters": {"type": "object"}}}
    for i in range(10_000)
]
AMPLIFIERS = {
    "34: a million answers": (P, {**TEXT, "n": 10**6}),
    "34: best of a million": (P, {**TEXT, "best_of": 10**6}),
    "34: a hundred thousand prompts": (P, {**TEXT, "prompt": ["x"] * 10**5}),
    "34: sixty-four prompts, three answers each": (P, {**TEXT, "prompt": ["x"] * 64, "n": 3}),
    "35: logprobs of the whole vocabulary": (P, {**TEXT, "logprobs": 8192}),
    "35: top_logprobs of the whole vocabulary": (C, {**CHAT, "logprobs": True, "top_logprobs": 8192}),
    "38: two billion tokens": (P, {**TEXT, "max_tokens": 2**31}),
    "38: two billion tokens of a chat": (C, {**CHAT, "max_tokens": 2**31 - 1}),
    "39: ten thousand tools": (C, {**CHAT, "tools": MANY_TOOLS}),
    "43: a length beyond 64 bits": (P, {**TEXT, "max_tokens": 2**64}),
}


@pytest.mark.parametrize("name", AMPLIFIERS)
def test_what_would_grow_is_refused_at_once(tiny, name):
    path, body = AMPLIFIERS[name]
    data = post(path, body)
    taken_s = []
    for _ in range(5):
        began_s = time.perf_counter()
        answer = exchange(tiny.port, data)
        taken_s.append(time.perf_counter() - began_s)
        assert status(answer) == 400
    sent_s = len(data) / 5e6  # a body of megabytes is sent and parsed first

    assert min(taken_s) <= 0.020 + sent_s


def test_39_a_hundred_thousand_messages_are_refused_or_too_long(tiny):
    body = {**CHAT, "messages": CHAT["messages"] * 50_000}
    answer = json.loads(exchange(tiny.port, post(C, body)).partition(b"\r\n\r\n")[2])

    assert answer["error"]["code"] in ("context_length_exceeded", "request_too_large", "template_limit")
    assert status(exchange(tiny.port, post(C, {**body, "messages": CHAT["messages"] * 130_000}))) == 413


@pytest.mark.parametrize(
    "name",
    ["../penstock-tiny", "/etc/passwd", "file:///etc/passwd", "penstock-tiny/../x", "penstock-tiny\x00", "~"],
)
def test_45_names_of_models_are_compared_and_never_opened(tiny, name):
    for path, body in ((P, TEXT), (C, CHAT)):
        answer = exchange(tiny.port, post(path, {**body, "model": name}))
        assert status(answer) in (400, 404)
        assert b"root:" not in answer
        code = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
        assert code in ("model_not_found", "invalid_json", "invalid_value")


BOMBS = ("a", " ", "\u0301", "<|end|>", "<|", "\U0001f469\u200d")
MAX_BYTES = 4 << 20


@pytest.mark.slow
@pytest.mark.parametrize("unit", BOMBS, ids=lambda unit: repr(unit)[:12])
def test_37_tokenizing_takes_time_in_proportion_to_length(tiny, unit):
    def seconds(num_bytes: int) -> float:
        text = unit * (num_bytes // len(unit.encode()))
        began_s = time.thread_time()
        tiny.engine.tokenizer.encode(text, add_special=False)
        return time.thread_time() - began_s

    seconds(1 << 16)
    for _ in range(3):  # the processor's caches belong to others, too
        once, twice = seconds(MAX_BYTES // 2), seconds(MAX_BYTES)
        if twice / once <= 2.3 and twice / MAX_BYTES <= 1e-6:
            return

    assert twice / once <= 3.0, (once, twice)  # in proportion it is 2, squared 4
    assert twice / MAX_BYTES <= 3e-6, f"{1e6 * twice / MAX_BYTES:.2f} us a byte"


def test_37_bytes_that_are_no_text_are_refused_whole(tiny):
    body = json.dumps({**TEXT, "prompt": "MARK"}).encode().replace(b"MARK", b"\xff" * ((4 << 20) - 200))
    assert status(exchange(tiny.port, post(P, body))) == 400


@pytest.mark.slow
def test_37_a_long_text_does_not_hold_up_the_others(tiny):
    big = post("/tokenize", {"prompt": "e\u0301" * 500_000})
    lags: list[float] = []
    done = threading.Event()

    def probe() -> None:
        while not done.is_set():
            began_s = time.perf_counter()
            exchange(tiny.port, head("GET", "/live"))
            lags.append(time.perf_counter() - began_s)
            time.sleep(0.005)

    thread = threading.Thread(target=probe)
    thread.start()
    for _ in range(3):
        assert status(exchange(tiny.port, big)) in (200, 400)
    done.set()
    thread.join()

    assert statistics.median(lags) <= 0.2, f"{len(lags)} probes"


PATTERNS = {
    "36: nested repeats": {"guided_regex": "(a+)+$"},
    "36: alternatives of the same": {"guided_regex": "(a|a)*b"},
    "36: repeats of ranges": {"guided_regex": "(.{1,1000}){1000}"},
    "36: ten thousand branches": {"guided_regex": "|".join(f"a{i}" for i in range(10_000))},
    "36: as many branches as are read": {"guided_regex": "|".join(f"a{i}" for i in range(600))},
    "36: a schema in itself": {"guided_json": {"$ref": "#"}},
    "36: a huge enumeration": {"guided_json": {"enum": [f"e{i}" for i in range(2000)]}},
    "36: a deep schema": {"guided_json": json.loads('{"items":' * 40 + "{}" + "}" * 40)},
    "36: an array of a billion": {"guided_json": {"type": "array", "minItems": 10**9}},
    "36: a pattern that doubles": {"guided_regex": "(a|b)*a" + "(a|b)" * 18},
    "36: a grammar of a billion": {"guided_grammar": 'start: "a"{1000000000}'},
    "36: in a tool": {
        "messages": CHAT["messages"], "tool_choice": "required",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+$"}}}}}],
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
def test_what_cannot_be_compiled_cheaply_costs_little(served_server, name):
    asked = PATTERNS[name]
    path, base = (C, CHAT) if "messages" in asked else (P, TEXT)

    def ask(body: dict) -> tuple[int, dict, float]:
        began_s = time.perf_counter()
        status_, answer = served_server.post(path, {**base, **body, "max_tokens": 2})
        return status_, answer, time.perf_counter() - began_s

    ask({"guided_regex": "[ab]"})  # the compiler is there
    before_bytes, before_cpu_s = served_server.memory_bytes(), served_server.cpu_s()
    code, answer, taken_s = ask(asked)
    cpu_s = served_server.cpu_s() - before_cpu_s

    assert code in (200, 400)
    if code == 400:
        assert answer["error"]["code"] in ("grammar_limit", "invalid_value", "array_above_max_length")
    assert cpu_s <= 1.5, f"{cpu_s:.2f} s of processor time"
    assert taken_s <= 5.0, f"{taken_s:.1f} s, on a machine that is shared"
    assert served_server.memory_bytes() - before_bytes <= 24 << 20
    assert served_server.engine().pid == served_server.first_engine


@pytest.mark.slow
def test_38_an_answer_without_a_limit_takes_no_memory_before_it_is_there(served_server):
    engine = served_server.engine()
    before = engine.memory_info().rss
    for _ in range(4):
        assert served_server.ask({**TEXT, "max_tokens": 2000, "stop": "\n"}).status_code == 200
    assert engine.memory_info().rss - before < 48 << 20


NUM_SESSIONS = 1000


@pytest.fixture(scope="module")
def crowded_server():
    """A cache so small that requests are preempted all the time."""
    config = "[engine]\nmax_context = 128\nmax_requests = 24\nmemory_bytes = 4194304\n"
    with served(config=config) as server, contextlib.closing(Started(server)) as started:
        yield started


@pytest.mark.slow
def test_47_a_thousand_sessions_never_see_anothers_secret(llm, crowded_server):
    """Each prompt holds its own number over and over, behind a beginning that all share.

    What is answered in company, with requests that are left, preempted and replayed after a kill of the
    engine, is what an engine with room and no server around it answered; so no other session's number can be
    in it.
    """

    def body(number: int) -> dict:
        text = "def f(a, b):\n" + f"secret {number:04d} " * 8 + "\nsecret"
        return {**TEXT, "prompt": text, "max_tokens": 14, "temperature": 0, "n": 1 + (number % 8 == 1)}

    def answer(number: int) -> list[str]:
        reply = crowded_server.ask(body(number))
        assert reply.status_code == 200
        return [choice["text"] for choice in reply.json()["choices"]]

    def leave(number: int) -> None:
        with connect(crowded_server.server.port) as wire:
            wire.sendall(post(P, {**body(number), "stream": True, "max_tokens": 60}))
            time.sleep(number % 7 / 100)

    def visit(number: int) -> list[str]:
        if number % 10 == 3:
            leave(number)
        if number == NUM_SESSIONS // 2:
            os.kill(crowded_server.engine().pid, signal.SIGKILL)
        return answer(number)

    first_engine = crowded_server.engine().pid
    order = random.Random(47).sample(range(NUM_SESSIONS), NUM_SESSIONS)
    bodies = [body(number) for number in range(NUM_SESSIONS)]
    params = [SamplingParams(max_tokens=14, temperature=0.0, n=asked["n"]) for asked in bodies]
    peace = llm.generate([asked["prompt"] for asked in bodies], params)
    alone = [[output.text for output in outputs.outputs] for outputs in peace]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        together = list(pool.map(visit, order))

    assert [number for number, got in zip(order, together, strict=True) if got != alone[number]] == []
    assert crowded_server.engine().pid != first_engine
    gauges = crowded_server.server.gauges()
    assert gauges["penstock_preemptions_total"] > 0, gauges


def chance_of_less(some: list[float], others: list[float]) -> float:
    """The area under the curve: 0.5 where neither is told from the other, 1 where always."""
    return sum((a < b) + 0.5 * (a == b) for a in some for b in others) / (len(some) * len(others))


NUM_PAIRS = 500
PAIRS_AT_ONCE = 50  # whose prompts the first key asks in one call


@pytest.mark.slow
def test_48_one_key_cannot_tell_by_time_or_count_what_another_has_asked(guarded_server):
    """Also 49: cached_tokens never counts another key's blocks."""
    shuffle = random.Random(48)
    prompt = [40 + i for i in range(66)]  # with what is before it one block, and some
    known, unknown, own = [], [], []

    def prompt_of(number: int, base: int) -> list[int]:
        return [50 + number % 200, 40 + number // 200, base, *prompt]

    def ask_pairs(numbers: range) -> float:
        """The chance that a prompt of the other key is answered faster than a new one."""
        for number in numbers:
            mine, theirs = prompt_of(number, 50), prompt_of(number, 51)
            if number % PAIRS_AT_ONCE == 0:
                asked_first = [prompt_of(number + i, 50) for i in range(PAIRS_AT_ONCE)]
                body = {**TEXT, "prompt": asked_first, "max_tokens": 1}
                assert guarded_server.ask(body, "key-one-of-the-test").status_code == 200
            pair = [(mine, known), (theirs, unknown)]
            shuffle.shuffle(pair)  # whoever comes second finds warmer processor caches
            for asked, times in pair:
                taken_s, num_cached = guarded_server.seconds(asked, "key-two-of-the-test")
                assert num_cached == 0
                times.append(taken_s)
            if number % 10 == 0:
                own_s, num_own = guarded_server.seconds(mine, "key-one-of-the-test")
                assert num_own == 64
                own.append(own_s)
        return chance_of_less(known, unknown)

    auc = ask_pairs(range(NUM_PAIRS))
    if not 0.45 <= auc <= 0.55:  # once in 150 runs by chance; what leaks, leaks again
        auc = ask_pairs(range(NUM_PAIRS, 2 * NUM_PAIRS))

    assert 0.45 <= auc <= 0.55, f"AUC {auc:.3f} over {len(known)} pairs"
    print(f"AUC {auc:.3f} over {len(known)}, of hits {chance_of_less(own, unknown):.3f}")
    assert chance_of_less(own, unknown) >= 0.85, "what leaks would be seen: one's own hits are"
