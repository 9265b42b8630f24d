"""The checker notices: exactness is broken on purpose, in the kernels and above them, and it says so."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from tests.exactness.compare import differences
from tests.exactness.conftest import MODELS, Engines, Load
from tests.exactness.drive import run_alone, run_mix
from tests.exactness.mixes import Ask, Circumstances, make_mix
from tests.exactness.sequences import KnownSequences

from penstock.errors import BackendError
from penstock.request import SamplingParams
from penstock.step import StepInput, StepOutput

native = pytest.importorskip("penstock._native", reason="this build has no native backend")

LINEAR_SUMS_DEPEND_ON_ROWS, KV_SPLIT_DEPENDS_ON_CONTEXT = 1, 2
STATES = ("mamba2", "mamba2_groups")  # which have no keys to split; what goes wrong there is a state


@pytest.fixture
def set_break() -> Iterator[Callable[[int], None]]:
    yield native.set_break
    native.set_break(0)


def lines_of(loaded, circumstances, **size):
    mix = make_mix(1, vocab_size=loaded.spec.vocab_size, longest=100, **size)
    alone = run_alone(loaded, mix)
    return differences(alone, run_mix({1: loaded}, mix, circumstances).outcomes)


@pytest.mark.parametrize("model", [*MODELS, *STATES])
def test_sums_that_depend_on_the_number_of_rows_are_noticed(engines: Engines, model, set_break):
    loaded = engines(model)[1]
    circumstances = Circumstances(max_requests=6, max_step_tokens=64)
    set_break(LINEAR_SUMS_DEPEND_ON_ROWS)

    assert any("logits" in line for line in lines_of(loaded, circumstances, num_asks=6, num_long=0))

    set_break(0)

    assert lines_of(loaded, circumstances, num_asks=6, num_long=0) == []


@pytest.mark.parametrize("model", MODELS)
def test_a_kv_split_that_depends_on_the_context_is_noticed(engines: Engines, model, set_break):
    loaded = engines(model)[1]
    circumstances = Circumstances(max_requests=2, max_step_tokens=40)
    set_break(KV_SPLIT_DEPENDS_ON_CONTEXT)

    assert any("logits" in line for line in lines_of(loaded, circumstances, num_asks=2, num_long=1))


@pytest.mark.parametrize("model", [*MODELS, *STATES])
def test_the_logits_of_rows_show_a_sum_that_depends_on_their_number(engines: Engines, model, set_break):
    lengths = [64, 128] if model in STATES else [3, 4]
    sequences = KnownSequences(engines(model)[1], lengths, extra=1)
    sequences.fill()
    set_break(LINEAR_SUMS_DEPEND_ON_ROWS)

    assert sequences.rows([0, 1])[0].tobytes() != sequences.rows([0])[0].tobytes()


@pytest.mark.parametrize("what", ["linear", "attention"])
def test_the_hidden_switch_breaks_the_engine_and_its_fingerprint(load: Load, monkeypatch, set_break, what):
    whole = load("bfloat16")
    monkeypatch.setenv("PENSTOCK_BREAK", what)
    broken = load("bfloat16")

    assert lines_of(broken, Circumstances(max_requests=2, max_step_tokens=40), num_asks=2, num_long=1)
    assert broken.fingerprint != whole.fingerprint
    assert any("PENSTOCK_BREAK" in note for note in broken.notes)


def test_a_switch_that_does_not_exist_is_refused(load: Load, monkeypatch):
    monkeypatch.setenv("PENSTOCK_BREAK", "everything")

    with pytest.raises(BackendError, match=r"PENSTOCK_BREAK=everything: .* linear, attention"):
        load("bfloat16")


class _Altered:
    """An executor that changes one thing in each step before it runs."""

    def __init__(self, executor, alter: Callable[[StepInput], StepInput]) -> None:
        self._executor = executor
        self._alter = alter

    def forward(self, step: StepInput) -> StepOutput:
        return self._executor.forward(self._alter(step))


def noise_by_place_in_batch(step: StepInput) -> StepInput:
    seed = step.sampling.seed + np.arange(len(step.sampling.seed), dtype=np.uint64)
    return replace(step, sampling=replace(step.sampling, seed=seed))


def noise_by_place_in_text(step: StepInput) -> StepInput:
    position = step.sampling.position + (len(step.tokens) > 1)
    return replace(step, sampling=replace(step.sampling, position=position))


def neighbours_history(step: StepInput) -> StepInput:
    start = np.minimum(step.sampling.history_start, len(step.sampling.history_token) // 2)
    return replace(step, sampling=replace(step.sampling, history_start=start))


@pytest.mark.parametrize(
    "alter", [noise_by_place_in_batch, noise_by_place_in_text, neighbours_history], ids=lambda f: f.__name__
)
def test_a_sampler_that_sees_its_neighbours_is_noticed(engines: Engines, alter):
    whole = engines("int8")[1]
    broken = replace(whole, executor=_Altered(whole.executor, alter))
    penalties = {"frequency_penalty": 2.0, "repetition_penalty": 1.5}
    few = {"allowed_token_ids": (7, 8, 9, 10, 11, 12), "ignore_eos": True}
    mix = [Ask((5 + i, 9, 9), SamplingParams(max_tokens=12, seed=i, **penalties, **few)) for i in range(4)]
    alone = run_alone(whole, mix)
    run = run_mix({1: broken}, mix, Circumstances())

    assert any("token_ids" in line for line in differences(alone, run.outcomes))


@pytest.mark.parametrize("model", STATES)
def test_a_state_that_is_taken_from_a_neighbour_is_noticed(engines: Engines, model):
    whole = engines(model)[1]
    steps = []

    def states_of_neighbours(step: StepInput) -> StepInput:
        steps.append(len(step.context_len))
        tables = step.block_tables
        if len(steps) % 2 and len(step.context_len) > 1:
            tables = tuple(np.roll(table, 1, axis=0) for table in tables)
        return replace(step, block_tables=tables)

    mix = [Ask((5 + i, 9, 9), SamplingParams(max_tokens=12, seed=i, ignore_eos=True)) for i in range(4)]
    alone = run_alone(whole, mix)
    broken = replace(whole, executor=_Altered(whole.executor, states_of_neighbours))
    run = run_mix({1: broken}, mix, Circumstances())

    assert max(steps) > 1
    assert any("token_ids" in line for line in differences(alone, run.outcomes))


def test_one_bit_of_one_logprob_is_noticed(engines: Engines):
    whole = engines("int8")[1]

    class OneBit:
        def forward(self, step: StepInput) -> StepOutput:
            output = whole.executor.forward(step)
            output.logprob.view(np.int32)[-1] ^= 1
            return output

    mix = [Ask((5, 9), SamplingParams(max_tokens=3, logprobs=2, seed=1))]
    run = run_mix({1: replace(whole, executor=OneBit())}, mix, Circumstances())
    lines = differences(run_alone(whole, mix), run.outcomes)

    assert any("logprobs" in line for line in lines)
    assert not any("token_ids" in line or "logits" in line for line in lines)
