"""The embedded model behind `LLM`, loaded once: what users meet, with nothing faked."""

import pytest

from penstock import LLM, SamplingParams


@pytest.fixture(scope="session")
def shared_llm():
    return LLM("penstock-tiny", seed=11)


@pytest.fixture
def llm(shared_llm):
    """The engine, idle before the test and after it."""
    assert_idle(shared_llm)
    yield shared_llm
    assert_idle(shared_llm)


def assert_idle(llm):
    kv = llm.core.scheduler._kv
    kv.check_integrity()

    assert not llm.core.has_requests
    assert kv.num_free_blocks == kv.num_usable_blocks


def params(**options):
    """Twelve greedy tokens, whatever they are."""
    return SamplingParams(**({"temperature": 0.0, "max_tokens": 12, "ignore_eos": True} | options))


def one(llm, prompt, **options):
    """The single answer to a single prompt."""
    (output,) = llm.generate(prompt, params(**options), use_tqdm=False)
    return output.outputs[0]
