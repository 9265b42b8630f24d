"""Which share of the experts stays in memory: all that fit, what was asked for, or a refusal with numbers."""

from dataclasses import replace

import pytest
from tests.unit.planner.test_plan import GB, MACHINE, facts, plan, spec

from penstock.errors import ConfigError, OutOfMemoryError
from penstock.model.spec import ModelSpec, MoESpec
from penstock.planner.experts import ExpertFacts

MIXTURE = ExpertFacts(lambda weight_format: [6 * GB // 10] * 3, "")  # of 2 GB as bfloat16


def mixture(num_experts: int = 16, top_k: int = 2) -> ModelSpec:
    dense = spec(windows=(None,) * 4)
    experts = MoESpec(num_experts, top_k, 64)
    return replace(dense, layers=tuple(replace(layer, mlp=experts) for layer in dense.layers[:3]))


def given(experts: ExpertFacts = MIXTURE) -> object:
    return replace(facts(num_layers=3), experts=experts)


def test_all_experts_stay_where_they_fit():
    made = plan(mixture(), given())

    assert made.resident_experts == 16
    assert made.reasons["resident_experts"] == "all fit"


def test_a_model_without_experts_has_none_to_keep():
    assert plan().resident_experts == 0
    with pytest.raises(ConfigError, match="no experts"):
        plan(expert_bytes=GB)


def test_where_they_do_not_fit_as_many_stay_as_leave_room_for_keys_and_values():
    machine = replace(MACHINE, available_bytes=17 * GB // 10)
    made = plan(mixture(), given(), machine)

    # 1.7 GB without 0.2 of other weights: a fifth for keys and values, one layer whole, the rest of 1.8 GB
    assert made.resident_experts == int(16 * (1.5 * 0.8 - 0.6) / 1.8)
    assert made.kv_bytes > 0
    assert made.kv_bytes + 0.2 * GB + made.resident_experts / 16 * 1.8 * GB + 0.6 * GB <= 1.7 * GB
    assert "read from disk" in made.reasons["resident_experts"]


def test_memory_asked_for_keys_and_values_is_left_to_them():
    machine = replace(MACHINE, available_bytes=17 * GB // 10)
    less = plan(mixture(), given(), machine, memory_bytes=GB // 2, max_context=64)

    assert less.resident_experts == int(16 * (1.5 - 0.5 - 0.6) / 1.8)


def test_expert_bytes_are_kept_to_also_where_more_is_free():
    made = plan(mixture(), given(), expert_bytes=15 * GB // 10)

    assert made.resident_experts == int(16 * (1.5 - 0.6) / 1.8)
    assert plan(mixture(), given(), expert_bytes=2 * GB).resident_experts == 16


@pytest.mark.parametrize("asked", [0, -1])
def test_no_memory_is_nothing_to_ask_for(asked):
    with pytest.raises(ConfigError, match="must be positive"):
        plan(mixture(), given(), expert_bytes=asked)


def test_a_row_needs_its_experts_and_the_refusal_says_how_much():
    with pytest.raises(OutOfMemoryError, match=r"at least 0\.83 GB.*0\.70 GB are there"):
        plan(mixture(), given(), expert_bytes=7 * GB // 10)


def test_without_a_file_to_read_from_all_must_fit():
    why = "nothing is kept on disk. Leave pack_cache on."
    cannot = given(ExpertFacts(MIXTURE.layer_bytes, why))
    assert plan(mixture(), cannot).resident_experts == 16
    with pytest.raises(OutOfMemoryError, match=r"1\.80 GB.*Leave pack_cache on"):
        plan(mixture(), cannot, replace(MACHINE, available_bytes=15 * GB // 10))
