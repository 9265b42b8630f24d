"""The engine process dies or hangs, over and over: no stream loses, repeats or changes a token."""

import asyncio
import contextlib
import os
import signal
import time
from random import Random

import pytest
from tests.fakes.faulty_engine import command
from tests.fakes.served import PATIENT, ask, engine_pid, served, until

from penstock import LLM, SamplingParams
from penstock.engine.serving import EngineState, Limits
from penstock.errors import EngineError, EngineRestartingError, ModelLoadError, RequestPoisonedError

pytestmark = pytest.mark.slow
PROMPT = "def fib(n):\n    "
LONG = 240
MIX = (  # every kind of state that a replay must find again
    {"max_tokens": LONG},
    {"max_tokens": LONG, "temperature": 0.9, "seed": 5},
    {"max_tokens": LONG, "temperature": 0.8, "seed": 6, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"max_tokens": LONG, "temperature": 1.0, "seed": 7, "min_tokens": 150, "ignore_eos": False},
    {"max_tokens": LONG, "temperature": 0.7, "seed": 8, "n": 2, "logprobs": 2, "prompt_logprobs": 1},
    {"max_tokens": LONG, "temperature": 1.1, "seed": 9, "stop": ("self.", "zzqq"), "min_tokens": 60},
    {"max_tokens": LONG, "temperature": 0.9, "seed": 10, "bad_words": ("return",), "top_k": 50},
)


@pytest.fixture(scope="module")
def expected():
    """What an engine that nobody disturbs gives, in this process."""
    llm = LLM("penstock-tiny", seed=11, max_requests=16)
    outputs = []
    for options in MIX:
        params = SamplingParams(**({"temperature": 0.0, "ignore_eos": True} | options))
        outputs.append(llm.generate(PROMPT, params, use_tqdm=False)[0])
    return outputs


def assert_same(outcome, output):
    for one in output.outputs:
        assert outcome.ids[one.index] == one.token_ids
        assert outcome.text[one.index] == one.text
        assert outcome.ends[one.index] == (one.finish_reason, one.stop_reason)
        if one.logprobs is not None:
            assert outcome.logprobs[one.index] == one.logprobs
    assert outcome.prompt_logprobs == output.prompt_logprobs


def num_tokens(engine):
    return engine.metrics.output_tokens._value.get()


async def kill_at_random(engine, num_kills, random, silences):
    """kill -9, wait for the first new token of anybody, and again; some die while they load."""
    for number in range(num_kills):
        await until(lambda: engine_pid(engine) is not None)
        if number % 5 == 4:
            await asyncio.sleep(random.uniform(0, 0.4))
        else:
            await until(lambda: engine.health().state is EngineState.READY)
            await asyncio.sleep(random.uniform(0.0, 0.3))
        pid = engine_pid(engine)
        if pid is None:
            continue
        before, began_s = num_tokens(engine), time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await until(lambda before=before: num_tokens(engine) > before)
        silences.append(time.monotonic() - began_s)


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_at_twenty_random_points_changes_no_token(expected, seed):
    silences = []

    async def run():
        async with served(PATIENT) as engine:
            killing = asyncio.create_task(kill_at_random(engine, 20, Random(seed), silences))

            async def keep_asking(options, output):
                count = 0
                while not killing.done():
                    assert_same(await ask(engine, PROMPT, **options), output)
                    count += 1
                return count

            counts = await asyncio.gather(*(keep_asking(o, w) for o, w in zip(MIX, expected, strict=True)))
            await killing
            assert min(counts) > 0
            assert engine.metrics.replays._value.get() > 0
            assert engine._supervisor.num_restarts >= 20

    asyncio.run(run())
    assert len(silences) >= 18
    assert max(silences) < 3 + 5  # 3 s and a load; this machine may be busy with other things


@pytest.mark.parametrize("how", ["kill", "segv", "abort", "raise", "exit"])
@pytest.mark.parametrize("at_step", [1, 30])  # prefill, decode
def test_every_way_to_die_is_survived(expected, how, at_step, tmp_path):
    faulty = command(how=how, at_step=at_step, once=str(tmp_path / "died"))

    async def run():
        async with served(PATIENT, command=faulty) as engine:
            outcomes = await asyncio.gather(*(ask(engine, PROMPT, **options) for options in MIX[:3]))
            assert engine._supervisor.num_restarts == 1
            return outcomes

    for outcome, output in zip(asyncio.run(run()), expected[:3], strict=True):
        assert_same(outcome, output)
    assert (tmp_path / "died").exists()


def test_a_stopped_engine_is_taken_for_hung_and_replaced(expected):
    limits = Limits(hang_s=4.0, heartbeat_s=1.5, restart_backoff_s=0.05)

    async def run():
        async with served(limits) as engine:
            asking = asyncio.create_task(ask(engine, PROMPT, **MIX[1]))
            await until(lambda: num_tokens(engine) > 5)
            os.kill(engine_pid(engine), signal.SIGSTOP)
            await until(lambda: not engine.health().ready)
            assert "heartbeat" in engine.health().reasons[0]
            return await asking

    assert_same(asyncio.run(run()), expected[1])


def test_a_step_that_never_ends_is_found_though_the_heart_beats(expected, tmp_path):
    faulty = command(how="hang", at_step=20, once=str(tmp_path / "hung"))
    limits = Limits(hang_s=2.0, restart_backoff_s=0.05)

    async def run():
        async with served(limits, command=faulty) as engine:
            return await ask(engine, PROMPT, **MIX[1])

    assert_same(asyncio.run(run()), expected[1])


@pytest.mark.parametrize("faults", [{"is_mute": True}, {"forgets": 2}], ids=["its greeting", "its calls"])
def test_an_engine_that_waits_for_what_was_lost_is_replaced_though_its_heart_beats(
    expected, faults, tmp_path
):
    limits = Limits(hang_s=4.0, heartbeat_s=4.0, restart_backoff_s=0.05)

    async def run():
        async with served(limits, command=command(**faults, once=str(tmp_path / "waits"))) as engine:
            outcomes = await asyncio.gather(*(ask(engine, PROMPT, **options) for options in MIX[:3]))
            assert engine._supervisor.num_restarts >= 1
            return outcomes

    for outcome, output in zip(asyncio.run(run()), expected[:3], strict=True):
        assert_same(outcome, output)


def test_a_request_that_ends_the_engine_twice_is_quarantined_and_the_innocent_finish(expected):
    poison = 3333
    limits = Limits(restart_backoff_s=0.05)

    async def run():
        async with served(limits, command=command(on_token=poison, how="segv")) as engine:
            innocents = [asyncio.create_task(ask(engine, PROMPT, **MIX[i % 3])) for i in range(12)]
            await until(lambda: num_tokens(engine) > 20)
            with pytest.raises(RequestPoisonedError, match="ended the engine process 2 times"):
                await ask(engine, [5, 6, poison, 7])
            assert engine._supervisor.num_restarts <= 3
            return await asyncio.gather(*innocents)

    for i, outcome in enumerate(asyncio.run(run())):
        assert_same(outcome, expected[i % 3])


def test_a_lonely_poisonous_request_is_run_twice_and_no_more():
    async def run():
        async with served(
            Limits(restart_backoff_s=0.05), command=command(on_token=3333, how="raise")
        ) as engine:
            with pytest.raises(RequestPoisonedError):
                await ask(engine, [5, 3333])
            await until(lambda: engine.health().ready)
            assert engine._supervisor.num_restarts == 2
            assert (await ask(engine, [5, 6])).ends == {0: ("length", None)}

    asyncio.run(run())


def test_without_resume_streams_end_with_an_error_and_the_server_goes_on():
    async def run():
        async with served(PATIENT, resume=False) as engine:
            asking = asyncio.create_task(ask(engine, PROMPT, max_tokens=1500))
            await until(lambda: num_tokens(engine) > 5)
            os.kill(engine_pid(engine), signal.SIGKILL)
            with pytest.raises(EngineRestartingError) as raised:
                await asking
            assert raised.value.retry_after_s > 0
            await until(lambda: engine.health().ready)
            await ask(engine, PROMPT)

    asyncio.run(run())


def test_an_engine_that_dies_again_and_again_is_given_up():
    limits = Limits(restart_backoff_s=0.02, restart_failures=3)

    async def run():
        async with served(limits, command=command(at_step=40)) as engine:
            asks = [asyncio.create_task(ask(engine, PROMPT, max_tokens=1800)) for _ in range(3)]
            failure = await asyncio.wait_for(engine.wait_stopped(), 30)
            assert isinstance(failure, EngineError)
            assert failure.exit_code != 0
            assert engine.health().state is EngineState.STOPPED
            for outcome in await asyncio.gather(*asks, return_exceptions=True):
                assert isinstance(outcome, EngineError)

    asyncio.run(run())


def test_a_crash_loop_at_load_ends_the_start_with_an_error():
    async def run():
        limits = Limits(restart_backoff_s=0.02, restart_failures=3)
        with pytest.raises(EngineError, match="died 3 times within 60 s"):
            async with served(limits, command=command(at_load=True)):
                pass

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded_is_said_at_once_with_its_own_error():
    async def run():
        began_s = time.monotonic()
        with pytest.raises(ModelLoadError) as raised:
            async with served(Limits(), command=command(load_error=True)):
                pass
        assert (raised.value.code, raised.value.exit_code, str(raised.value)) == (
            "truncated",
            65,
            "on purpose",
        )
        assert time.monotonic() - began_s < 10

    asyncio.run(run())
