"""An embedding's bits depend on its prompt alone: alone, in company, in chunks, after a hit, after a loss."""

import numpy as np
import pytest
from tests.exactness.conftest import Engines

from penstock import LLM
from penstock.engine.build import Loaded

native = pytest.importorskip("penstock._native", reason="this build has no native backend")
MODELS = ["bfloat16", "int4_g64", "qwen2_windows"]
POOLINGS = ["last", "mean"]


def prompts_of(loaded: Loaded) -> list[dict[str, list[int]]]:
    rng = np.random.default_rng(5)
    shared = rng.integers(3, loaded.spec.vocab_size, 150).tolist()
    lengths = (1, 64, 65, 200, 333)
    lists = [rng.integers(3, loaded.spec.vocab_size, n).tolist() for n in lengths]
    return [{"prompt_token_ids": ids} for ids in (*lists, shared, shared + lists[0], shared[:128])]


def llm_of(loaded: Loaded, **plan: int | bool) -> LLM:
    """A fresh engine over the model: nothing is cached."""
    from dataclasses import replace

    import msgspec

    return LLM.from_loaded(replace(loaded, plan=msgspec.structs.replace(loaded.plan, **plan)))


def vectors(llm: LLM, prompts, pooling: str) -> list[bytes]:
    outputs = llm.embed(prompts, pooling=pooling, use_tqdm=False)
    return [np.array(output.outputs.embedding, np.float32).tobytes() for output in outputs]


def alone(loaded: Loaded, prompts, pooling: str) -> list[bytes]:
    return [vectors(llm_of(loaded, prefix_cache=False), prompt, pooling)[0] for prompt in prompts]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("model", MODELS)
def test_company_chunks_threads_and_cached_beginnings_change_no_bit(engines: Engines, model, pooling):
    one, two = engines(model)[1], engines(model)[2]
    prompts = prompts_of(one)
    expected = alone(one, prompts, pooling)
    llm = llm_of(one)

    assert vectors(llm, prompts, pooling) == expected
    again = llm.embed(prompts, pooling=pooling, use_tqdm=False)
    assert [np.array(o.outputs.embedding, np.float32).tobytes() for o in again] == expected
    assert any(output.num_cached_tokens for output in again) is (pooling == "last")
    assert vectors(llm_of(two, max_step_tokens=48, max_requests=4), prompts, pooling) == expected


@pytest.mark.parametrize("pooling", POOLINGS)
def test_beside_generation_and_after_preemptions_the_bits_are_the_same(engines: Engines, pooling):
    loaded = engines("bfloat16")[1]
    prompts = prompts_of(loaded)
    expected = alone(loaded, prompts, pooling)
    llm = llm_of(loaded, max_step_tokens=32, max_requests=3)
    step, count = llm.core.step, 0

    def disturbed():
        nonlocal count
        count += 1
        ids = list(llm.core.scheduler.requests)
        if count % 3 == 0 and count < 60:
            llm.core.scheduler.force_preempt(ids[count % len(ids)])
        return step()

    llm.core.step = disturbed
    stream = llm.stream({"prompt_token_ids": list(range(5, 90))})
    next(stream)

    assert vectors(llm, prompts, pooling) == expected
    assert llm.core.scheduler.num_preemptions > 3
    stream.close()
    assert not llm.core._inputs._pooler._sums


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_sum_that_depends_on_the_number_of_rows_is_noticed(engines: Engines, pooling):
    loaded = engines("bfloat16")[1]
    prompts = prompts_of(loaded)
    native.set_break(1)
    try:
        assert vectors(llm_of(loaded, max_step_tokens=48, max_requests=4), prompts, pooling) != alone(
            loaded, prompts, pooling
        )
    finally:
        native.set_break(0)


def test_the_mean_is_that_of_all_rows_and_the_last_is_the_last(engines: Engines):
    loaded = engines("bfloat16")[1]
    llm = llm_of(loaded)
    ids = prompts_of(loaded)[3]["prompt_token_ids"]
    rows = []
    forward = loaded.executor.forward

    def keep(step):
        output = forward(step)
        rows.extend(output.taps["hidden"])
        return output

    llm.core._forward = keep
    (mean,) = llm.embed({"prompt_token_ids": ids}, pooling="mean", use_tqdm=False)
    total = np.sum(rows, axis=0, dtype=np.float64)

    assert len(rows) == len(ids)
    np.testing.assert_allclose(mean.outputs.embedding, total / np.linalg.norm(total), rtol=1e-6, atol=1e-8)
    rows.clear()
    (last,) = llm.embed({"prompt_token_ids": ids}, use_tqdm=False)
    assert len(rows) == 1
    np.testing.assert_allclose(
        last.outputs.embedding, rows[0] / np.linalg.norm(rows[0]), rtol=1e-6, atol=1e-8
    )
