"""Restarts, the memory guard and the metrics: small rules, fake clocks."""

import pytest

from penstock.engine.memory_guard import MemoryGuard, Pressure, memory_share
from penstock.engine.metrics import ALIASES, Metrics
from penstock.engine.serving import Limits
from penstock.engine.supervisor import Restarts, count_oom_kills


def test_the_pause_doubles_from_half_a_second_to_thirty_and_begins_anew_after_work():
    restarts = Restarts(Limits(restart_failures=100))
    pauses = [restarts.died(float(now)) for now in range(9)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]

    restarts.worked()
    assert restarts.died(10.0) == 0.5


def test_five_deaths_within_a_minute_are_the_end_and_more_slowly_they_are_not():
    restarts = Restarts(Limits())
    assert [restarts.died(now) is None for now in (0.0, 10.0, 20.0, 30.0, 59.0)] == [False] * 4 + [True]

    patient = Restarts(Limits())
    for number in range(50):
        patient.worked()
        assert patient.died(number * 15.1) == 0.5


@pytest.mark.parametrize(
    ("share", "pressure"),
    [
        (0.1, Pressure.NONE),
        (0.8999, Pressure.NONE),
        (0.9, Pressure.SHED),
        (0.95, Pressure.ABORT),
        (1.0, Pressure.ABORT),
    ],
)
def test_memory_sheds_at_ninety_percent_and_aborts_at_ninety_five(share, pressure):
    assert MemoryGuard(Limits(), lambda: share).look() is pressure


def test_the_share_of_memory_and_the_kernels_kills_can_be_read_here():
    assert 0.0 < memory_share() < 1.0
    assert count_oom_kills() is None or count_oom_kills() >= 0


def test_every_alias_is_told_with_the_value_of_what_it_stands_for():
    metrics = Metrics('a "model"\n')
    metrics.describe_cache(block_size=64, num_blocks=9, prefix_cache=True)
    metrics.running.set(3)
    metrics.output_tokens.inc(7)
    metrics.ended.labels("stop").inc(2)
    metrics.gap.observe(0.02)
    text = metrics.render()

    assert "penstock_requests_running 3.0" in text
    label = 'model_name="a \\"model\\"\\n"'
    assert f"vllm:num_requests_running{{{label}}} 3.0" in text
    assert f"vllm:generation_tokens_total{{{label}}} 7.0" in text
    assert f'vllm:request_success_total{{finished_reason="stop",{label}}} 2.0' in text
    assert f"vllm:inter_token_latency_seconds_count{{{label}}} 1.0" in text
    for alias in ALIASES.values():
        assert f"\n{alias}" in text, alias
    assert "_created" not in text


def test_the_metrics_do_not_grow_with_what_is_observed():
    metrics = Metrics("m")
    before = len(metrics.render())
    for number in range(1000):
        metrics.ttft.observe(number)
        metrics.ended.labels("abort").inc()

    assert len(metrics.render()) < before + 2000
