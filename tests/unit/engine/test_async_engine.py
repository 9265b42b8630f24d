"""AsyncEngine with the embedded model: deadlines, readers that are slow or leave, the queue, draining."""

import asyncio
import gc
import time

import pytest
from tests.fakes.faulty_engine import command
from tests.fakes.served import PATIENT, ask, call_for, served, until

from penstock.config import EngineConfig
from penstock.engine.liveness import rss_bytes
from penstock.engine.serving import EngineState, Limits
from penstock.errors import (
    ContextLengthError,
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    ShuttingDownError,
    SlowReaderError,
)

pytestmark = pytest.mark.slow  # each starts a process
LONG = "def f("
SILENT = command(is_silent=True)
SLOW = command(step_s=0.05)


def run(body, limits=PATIENT, **options):
    async def main():
        async with served(limits, **options) as engine:
            await body(engine)
            await until(lambda: len(engine._desk.journal) == 0)
            room = engine._desk.room
            assert (room.num_waiting, room.num_bytes, engine._desk.dispatcher.given) == (0, 0, [])
            assert engine._desk._tickets == {}

    asyncio.run(main())


async def until_idle(engine):
    """The engine itself says that nobody runs and no block is used."""
    await until(
        lambda: (
            (beat := engine._supervisor.engine.watch.beat) is not None
            and (beat.num_running, beat.num_waiting, beat.kv_usage, beat.turn_began_s) == (0, 0, 0.0, None)
        )
    )


def test_an_answer_has_a_receipt_and_the_metrics_add_up():
    async def body(engine):
        last = None

        def keep(news):
            nonlocal last
            last = news

        first = await ask(engine, LONG, max_tokens=9, n=2, seed=3, temperature=0.5, on_news=keep)
        receipt = engine.receipt(last)
        assert sum(map(len, first.ids.values())) == 18
        assert receipt.prefill_ms > 0 < receipt.decode_ms
        assert receipt.kv_bytes == (18 + len(last.prompt_token_ids)) * engine.facts.kv_bytes_per_token
        assert (receipt.energy_source, receipt.exactness) == ("none", "exact")
        with pytest.raises(InvalidRequestError):
            await ask(engine, LONG, temperature=3.0)
        assert engine.metrics.output_tokens._value.get() == 18
        assert engine.metrics.ended.labels("length")._value.get() == 1
        assert await engine.probe()
        assert engine.health().ready
        assert "penstock_output_tokens_total 19.0" in engine.metrics.render()  # the probe had one

    run(body)


def test_what_can_never_be_run_is_refused_before_it_is_queued():
    async def body(engine):
        with pytest.raises(ContextLengthError), engine.admit(9) as ticket:
            engine.stream(ticket, call_for(engine, [1] * 2048))
        with pytest.raises(InvalidRequestError, match="no id of this model"), engine.admit(9) as ticket:
            engine.stream(ticket, call_for(engine, [engine.facts.vocab_size]))
        with pytest.raises(InvalidRequestError, match="no 32-bit integer"):
            call_for(engine, [2**31])
        with pytest.raises(InvalidRequestError, match="no 32-bit integer"):
            call_for(engine, [1.5])

    run(body)


def test_one_reads_as_it_comes_and_one_who_comes_late_gets_all_of_it_at_once():
    async def body(engine):
        quick, pieces = [], []
        whole = await ask(engine, LONG, max_tokens=200, seed=1, on_news=quick.append)
        late = await ask(engine, LONG, max_tokens=200, seed=1, on_news=pieces.append, pause_s=0.1)
        assert late == whole
        assert len(pieces) < len(quick)

    run(body)


def test_leaving_aborts_and_the_blocks_are_free():
    async def body(engine):
        async def leave_after(count):
            with engine.admit(9) as ticket:
                async with engine.stream(ticket, call_for(engine, LONG, max_tokens=1900)) as pieces:
                    async for _ in pieces:
                        count -= 1
                        if count < 0:
                            return

        await asyncio.gather(*(leave_after(i % 7) for i in range(40)))
        cancelled = [asyncio.create_task(ask(engine, LONG, max_tokens=1900)) for _ in range(40)]
        await asyncio.sleep(0.05)
        for task in cancelled:
            task.cancel()
        await asyncio.gather(*cancelled, return_exceptions=True)
        await until_idle(engine)
        assert engine.metrics.ended.labels("abort")._value.get() == 80

    run(body)


def test_a_cancelled_request_has_left_within_two_steps():
    async def body(engine):
        task = asyncio.create_task(ask(engine, LONG, max_tokens=1900))
        await until(lambda: engine.metrics.output_tokens._value.get() > 3)
        steps = engine.metrics.step_tokens
        seen = sum(bucket.get() for bucket in steps._buckets)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.5)
        assert sum(bucket.get() for bucket in steps._buckets) - seen <= 2
        await until_idle(engine)

    run(body, command=SLOW)


def test_deadlines_are_kept_and_can_only_be_lowered():
    async def body(engine):
        began_s = time.monotonic()
        with pytest.raises(DeadlineError, match=r"not done within its 1 s"):
            await ask(engine, LONG, max_tokens=1900, timeout_s=600.0)
        assert 0.9 < time.monotonic() - began_s < 1.6
        with pytest.raises(DeadlineError, match=r"not done within its 0.3 s"):
            await ask(engine, LONG, max_tokens=1900, timeout_s=0.3)
        await until_idle(engine)
        assert engine.metrics.ended.labels("deadline")._value.get() == 2

    run(body, Limits(total_s=1.0), command=SLOW)


def test_who_cannot_begin_in_time_is_told_so():
    async def body(engine):
        running = [asyncio.create_task(ask(engine, LONG, max_tokens=1900)) for _ in range(5)]
        await until(lambda: len(engine._desk.dispatcher.given) == 5)
        with pytest.raises(DeadlineError, match=r"could not begin within 0.5 s"):
            await ask(engine, LONG)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    run(body, Limits(queue_wait_s=0.5), command=SILENT, config=EngineConfig(max_requests=1))


def test_a_reader_that_does_not_read_is_ended():
    async def body(engine):
        with engine.admit(9) as ticket:
            async with engine.stream(ticket, call_for(engine, LONG, max_tokens=1900)) as pieces:
                await anext(pieces)
                await asyncio.sleep(3.5)
                await anext(pieces)  # what came before the end can still be read
                with pytest.raises(SlowReaderError):
                    await anext(pieces)
        await until_idle(engine)

    run(body, Limits(idle_write_s=1.0), command=SLOW)


def test_what_nobody_reads_is_bounded():
    async def body(engine):
        options = {"max_tokens": 1900, "logprobs": 20}
        with engine.admit(9) as ticket:
            async with engine.stream(ticket, call_for(engine, LONG, **options)) as pieces:
                await until(lambda: engine.metrics.output_tokens._value.get() > 100)
                await until(lambda: engine._desk.dispatcher.given == [])
                with pytest.raises(SlowReaderError, match="left 65,"):
                    while True:
                        await anext(pieces)

    run(body)


def test_the_queue_is_bounded_refuses_quickly_and_is_small():
    """1,000 waiting prompts of 2,000 tokens in 64 MiB; the 1,001st within 20 ms."""
    prompt = [i % 4000 for i in range(2000)]

    async def body(engine):
        gc.collect()
        before = rss_bytes()
        tasks = []
        for number in range(1000 + 5):  # a few are the engine's
            tasks.append(asyncio.create_task(ask(engine, prompt, max_tokens=4)))
            if number % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: engine._desk.room.num_waiting == 1000)
        grown = rss_bytes() - before
        began_s = time.perf_counter()
        with pytest.raises(OverloadedError) as raised:
            engine.admit(8000)
        assert time.perf_counter() - began_s < 0.02
        assert raised.value.retry_after_s >= 1.0
        assert grown < 64 << 20
        assert engine.health().reasons == ["the queue is full"]
        assert engine.metrics.refused.labels("queue")._value.get() == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    patient = Limits(hang_s=1000.0)  # it is silent, and to be left in peace
    run(body, patient, command=SILENT, config=EngineConfig(max_requests=1))


def test_keys_do_not_share_cached_beginnings_and_one_key_does():
    prompt = [i % 4000 for i in range(300)]

    async def body(engine):
        async def cached(**options):
            found = []
            await ask(engine, prompt, on_news=lambda news: found.append(news.num_cached_tokens), **options)
            return found[-1]

        assert await cached(key_id="a") == 0
        assert await cached(key_id="a") == 256
        assert await cached(key_id="b") == 0
        assert await cached() == 0
        assert await cached(key_id="a", cache_salt="x") == 0
        assert await cached(key_id="ax") == 0  # no pair of key and salt spells another

    run(body)


def test_memory_sheds_first_and_then_ends_the_youngest():
    share = 0.5

    async def body(engine):
        nonlocal share
        old = asyncio.create_task(ask(engine, LONG, max_tokens=100))
        await until(lambda: engine.metrics.output_tokens._value.get() > 2)
        young = asyncio.create_task(ask(engine, LONG, max_tokens=1900))
        await asyncio.sleep(0.1)
        share = 0.92
        await until(lambda: not engine.health().ready)
        with pytest.raises(OverloadedError, match="92% of the memory"):
            engine.admit(1)
        assert not young.done()
        share = 0.97
        with pytest.raises(OverloadedError, match="youngest"):
            await young
        share = 0.5
        assert len((await old).ids[0]) == 100
        await until(lambda: engine.health().ready)

    run(body, command=SLOW, share=lambda: share)


def test_draining_lets_in_nobody_and_lets_all_finish():
    async def body(engine):
        tasks = [asyncio.create_task(ask(engine, LONG, max_tokens=40)) for _ in range(4)]
        await until(lambda: engine.metrics.output_tokens._value.get() > 2)
        draining = asyncio.create_task(engine.drain(20.0))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDownError):
            engine.admit(1)
        assert engine.health().state is EngineState.DRAINING
        await draining
        for outcome in await asyncio.gather(*tasks):
            assert outcome.ends == {0: ("length", None)}

    run(body, command=SLOW)


def test_draining_has_an_end():
    async def body(engine):
        task = asyncio.create_task(ask(engine, LONG, max_tokens=1900))
        await until(lambda: engine.metrics.output_tokens._value.get() > 2)
        began_s = time.monotonic()
        await engine.drain(0.3)
        assert time.monotonic() - began_s < 1.5
        with pytest.raises(ShuttingDownError):
            await task

    run(body, command=SLOW)


def test_a_deep_look_costs_one_token_a_second_however_many_ask():
    async def body(engine):
        tokens = engine.metrics.output_tokens
        began_s = time.monotonic()
        for _ in range(20):
            assert all(await asyncio.gather(*(engine.probe() for _ in range(50))))
            await asyncio.sleep(0.05)
        assert tokens._value.get() <= 1 + (time.monotonic() - began_s) / 1.0

    run(body)


def test_a_deep_look_at_a_silent_engine_fails_in_time():
    async def body(engine):
        began_s = time.monotonic()
        assert not await engine.probe(0.3)
        assert time.monotonic() - began_s < 1.0
        engine._probe.cancel()

    run(body, command=SILENT)


def test_a_stream_that_is_never_entered_holds_nothing():
    async def body(engine):
        with engine.admit(9) as ticket:
            engine.stream(ticket, call_for(engine, LONG))

    run(body)


def test_the_gauges_of_the_queue_are_read_when_they_are_asked_for():
    def gauge(engine, name):
        lines = engine.metrics.render().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name + " "))

    async def body(engine):
        with engine.admit(10) as ticket:
            assert gauge(engine, "penstock_requests_waiting") == 1
            async with engine.stream(ticket, call_for(engine, LONG, max_tokens=400)) as pieces:
                await anext(aiter(pieces))
                assert gauge(engine, "penstock_requests_waiting") == 0
                assert gauge(engine, "penstock_requests_running") == 1
        assert gauge(engine, "penstock_requests_running") == 0
        assert gauge(engine, "penstock_requests_waiting_bytes") == 0

    run(body)
