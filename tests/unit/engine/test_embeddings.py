"""Embeddings across the process boundary: the bits of the in-process engine, typed refusals, kills."""

import asyncio
import os
import signal
from contextlib import ExitStack

import numpy as np
import pytest
from tests.fakes.served import engine_pid, served, until

from penstock import LLM
from penstock.engine.serving import Call
from penstock.errors import ContextLengthError, InvalidRequestError, ModelLoadError
from penstock.model.matryoshka import read_sizes
from penstock.request import SamplingParams

TEXTS = ["def f(x):", "import os\n" * 60, "class A:\n    pass\n"]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("penstock-tiny", threads=1, memory_bytes=64 << 20, max_context=512)


def call_of(ids, pooling) -> Call:
    return Call(request_id="e", prompt_tokens=ids, params=SamplingParams(), pooling=pooling)


async def embed(engine, calls):
    with ExitStack() as held:
        tickets = [held.enter_context(engine.admit(10)) for _ in calls]
        return await engine.embed(tickets, calls)


@pytest.mark.slow
def test_the_process_boundary_changes_no_bit_and_a_kill_neither(llm):
    ids = [llm.tokenizer.encode(text) for text in TEXTS]
    expected = {
        pooling: [o.outputs.embedding for o in llm.embed(TEXTS, pooling=pooling, use_tqdm=False)]
        for pooling in ("last", "mean")
    }

    async def body():
        async with served() as engine:
            assert engine.facts.embedding_size == len(expected["last"][0])
            for pooling, vectors in expected.items():
                got = await embed(engine, [call_of(one, pooling) for one in ids])
                assert [list(vector) for vector in got] == vectors
            asking = asyncio.create_task(embed(engine, [call_of(one, "mean") for one in ids * 5]))
            await asyncio.sleep(0)
            os.kill(engine_pid(engine), signal.SIGKILL)
            assert [list(vector) for vector in await asking] == expected["mean"] * 5
            with pytest.raises(ContextLengthError):
                await embed(engine, [call_of([3] * (engine.facts.max_context + 1), "last")])
            with pytest.raises(InvalidRequestError):
                await embed(engine, [call_of(ids[0], "max")])
            leaving = asyncio.create_task(embed(engine, [call_of(ids[1], "mean")] * 8))
            await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            await until(lambda: len(engine._desk.journal) == 0)
            assert engine._desk.room.num_waiting == 0

    asyncio.run(body())


def test_vectors_have_length_one_and_differ(llm):
    for pooling in ("last", "mean"):
        vectors = [np.array(o.outputs.embedding) for o in llm.embed(TEXTS, pooling=pooling, use_tqdm=False)]
        for vector in vectors:
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        assert vectors[0] @ vectors[1] < 0.999


def test_a_prompt_may_fill_the_context_and_no_more(llm):
    most = llm.loaded.plan.max_context
    (one,) = llm.embed({"prompt_token_ids": [5] * most}, pooling="mean", use_tqdm=False)
    assert len(one.prompt_token_ids) == most
    with pytest.raises(ContextLengthError):
        llm.embed({"prompt_token_ids": [5] * (most + 1)}, use_tqdm=False)


@pytest.mark.parametrize("bad", ["", "max", "MEAN"])
def test_a_pooling_that_is_not_known_is_refused(llm, bad):
    with pytest.raises(InvalidRequestError, match="pooling"):
        llm.embed("x", pooling=bad, use_tqdm=False)


def test_an_empty_prompt_is_refused_before_any_is_computed(llm):
    with pytest.raises(InvalidRequestError):
        llm.embed(["x", {"prompt_token_ids": []}], use_tqdm=False)
    assert not llm.core.has_requests


def test_sizes_to_which_vectors_may_be_cut_are_those_the_checkpoint_names():
    assert read_sizes({"is_matryoshka": True}, 4) == (1, 2, 3)
    assert read_sizes({"is_matryoshka": False}, 4) == ()
    assert read_sizes({"matryoshka_dimensions": [4, 2, 1]}, 4) == (1, 2)
    for bad in ([5], "4", [True], [0]):
        with pytest.raises(ModelLoadError, match="matryoshka_dimensions"):
            read_sizes({"matryoshka_dimensions": bad}, 4)
