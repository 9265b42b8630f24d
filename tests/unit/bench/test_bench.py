"""`penstock bench`: the rows that were asked for, that agree with each other, and one line of JSON."""

import json

import numpy as np
import pytest
from tests.unit.cli.conftest import here  # noqa: F401  # the command line in this process

from penstock.bench.workload import Bench, Step, decode_of
from penstock.config import EngineConfig
from penstock.engine.build import load_model

QUICK = ("penstock-tiny", "--repeats", "1", "--output-tokens", "4", "--context", "64")


def rows_of(result):
    assert result.code == 0, result.err
    return json.loads(result.out.splitlines()[-1])


def test_latency_prints_prefill_and_decode_beside_their_floors(here):  # noqa: F811
    result = here("bench", "latency", *QUICK, "--prompt-tokens", "16,100")
    report = rows_of(result)

    assert [(row["metric"], row.get("tokens")) for row in report["rows"]] == [
        ("prefill", 16), ("prefill", 100), ("decode", None),
    ]  # fmt: skip
    for row in report["rows"]:
        seconds = row.get("seconds") or row["step_seconds"]
        assert row["floor_ratio"] == pytest.approx(row["floor_seconds"] / seconds)
        assert row["floor_ratio"] > 0
    assert "prefill    100 tokens" in result.out
    assert "% of the" in result.out
    assert report["read_bytes_per_s"] > 0


def test_throughput_sweeps_batches_and_reports_what_python_costs(here):  # noqa: F811
    report = rows_of(here("bench", "throughput", *QUICK, "--batch", "1,3"))

    assert [row["batch"] for row in report["rows"]] == [1, 3]
    for row in report["rows"]:
        assert row["step_seconds"] == pytest.approx(row["forward_seconds"] + row["python_seconds"])
        assert 0 < row["python_seconds"] < row["step_seconds"]
        assert 64 <= row["context"] <= 64 + 4 + 2


@pytest.fixture(scope="module")
def bench():
    return Bench(load_model("penstock-tiny", EngineConfig(max_step_tokens=64, threads=1)))


def test_every_timed_step_has_every_request_and_one_token_of_each(bench):
    decode = bench.decode(batch=5, context=40, num_tokens=6)
    timed = [step for step in bench._timed.steps if step.num_rows == step.num_logit_rows == 5]

    assert len(timed) >= 6
    assert bench.num_prefill_steps(5, 40) == 4
    assert decode.batch == 5
    assert decode.tokens_per_s == 5 / decode.step_s
    assert bench.loaded.executor.describe() == bench._timed.describe()


def test_prompts_never_repeat(bench):
    prompts = [tuple(prompt["prompt_token_ids"]) for prompt in bench.prompts(50, 3)]

    assert len(set(prompts)) == 50
    assert len(bench.prefill(20, 2)) == 2


def test_steps_without_a_follower_of_the_same_kind_are_not_timed():
    steps = [
        Step(9, 2, np.array([5], np.int32), 0.0, 1.0),
        Step(2, 2, np.array([6], np.int32), 2.0, 2.5),
        Step(2, 2, np.array([7], np.int32), 3.0, 3.5),
        Step(1, 1, np.array([8], np.int32), 9.0, 9.5),
    ]
    decode = decode_of(steps, 2)

    assert (decode.step_s, decode.forward_s, decode.python_s, decode.context) == (1.0, 0.5, 0.5, 6)
