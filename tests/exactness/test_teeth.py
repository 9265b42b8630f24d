"""The checker notices: row-independence is broken on purpose, in the kernels and above them, and it says so."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.exactness.compare import differences
from tests.exactness.conftest import MODELS
from tests.exactness.drive import run_alone, run_mix
from tests.exactness.mixes import Circumstances, make_mix

native = pytest.importorskip("penstock._native", reason="this build has no native backend")

LINEAR_SUMS_DEPEND_ON_ROWS, KV_SPLIT_DEPENDS_ON_CONTEXT = 1, 2


@pytest.fixture
def set_break() -> Iterator[object]:
    yield native.set_break
    native.set_break(0)


def mix_of(loaded, **size):
    return make_mix(1, vocab_size=loaded[1].spec.vocab_size, **size)


@pytest.mark.parametrize("model", MODELS)
def test_sums_that_depend_on_the_number_of_rows_are_noticed(engines, model, set_break):
    loaded = engines(model)
    mix = mix_of(loaded, num_asks=6, longest=100, num_long=0)
    set_break(LINEAR_SUMS_DEPEND_ON_ROWS)
    alone = run_alone(loaded[1], mix)
    run = run_mix(loaded, mix, Circumstances(max_requests=6, max_step_tokens=64))

    assert any("logits" in line for line in differences(alone, run.outcomes))


@pytest.mark.parametrize("model", MODELS)
def test_a_kv_split_that_depends_on_the_context_is_noticed(engines, model, set_break):
    loaded = engines(model)
    mix = mix_of(loaded, num_asks=2, longest=100, num_long=1)
    set_break(KV_SPLIT_DEPENDS_ON_CONTEXT)
    alone = run_alone(loaded[1], mix)
    run = run_mix(loaded, mix, Circumstances(max_requests=2, max_step_tokens=40))

    assert any("logits" in line for line in differences(alone, run.outcomes))
