"""Grammars are tried where they can do no harm: in a process that is killed when they cost too much."""

import json
import os
import signal
import time

import pytest

from penstock.engine.locate import embedded_models
from penstock.errors import GrammarLimitError, InvalidRequestError
from penstock.request import GrammarSpec
from penstock.text import grammar_prover
from penstock.text.grammar_prover import GrammarProver
from penstock.text.grammar_tokens import vocabulary_of
from penstock.text.tokenizer import Tokenizer

TINY = Tokenizer.load(embedded_models()["penstock-tiny"], 8192)
HUGE = GrammarSpec(
    "json_schema",
    json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5_000)}}),
)


@pytest.fixture(scope="module")
def prover():
    made = GrammarProver(lambda: vocabulary_of(TINY, 8192, [1, 7]))
    yield made
    made.close()


def test_a_grammar_that_compiles_is_proved_and_remembered(prover):
    spec = GrammarSpec("json_schema", '{"type":"object","title":"remembered"}')
    prover.prove(spec)
    began_s = time.perf_counter()
    for _ in range(100):
        prover.prove(spec)

    assert time.perf_counter() - began_s < 0.05


def test_a_grammar_that_does_not_compile_is_refused_with_the_reason_and_the_name(prover):
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match=r"^response_format cannot .*unclosed") as caught:
            prover.prove(GrammarSpec("regex", "[a-z"), param="response_format")

        assert caught.value.param == "response_format"
    with pytest.raises(InvalidRequestError, match="Unknown format: zork"):
        prover.prove(GrammarSpec("json_schema", '{"type":"string","format":"zork"}'))


@pytest.mark.slow
def test_a_grammar_above_a_second_is_a_limit_in_a_second_and_a_half_and_the_next_is_proved(prover):
    prover.prove(GrammarSpec("json_object"))
    began_s = time.perf_counter()
    with pytest.raises(GrammarLimitError) as caught:
        prover.prove(HUGE)

    assert time.perf_counter() - began_s < 1.6
    assert caught.value.code == "grammar_limit"
    prover.prove(GrammarSpec("regex", "after that"))


def test_a_worker_that_died_is_replaced(prover):
    prover.prove(GrammarSpec("regex", "before"))
    os.kill(prover._worker.pid, signal.SIGKILL)
    prover._worker.wait()
    prover.prove(GrammarSpec("regex", "afterwards"))


def test_a_worker_that_stands_still_costs_one_grammar(prover, monkeypatch):
    prover.prove(GrammarSpec("regex", "moving"))
    monkeypatch.setattr(grammar_prover, "PROOF_LIMIT_S", 0.2)
    os.kill(prover._worker.pid, signal.SIGSTOP)
    with pytest.raises(GrammarLimitError):
        prover.prove(GrammarSpec("regex", "stands still"))
    monkeypatch.undo()
    prover.prove(GrammarSpec("regex", "moves again"))


def test_what_is_remembered_is_bounded(prover, monkeypatch):
    monkeypatch.setattr(grammar_prover, "MAX_REMEMBERED_BYTES", 2_000)
    for index in range(12):
        prover.prove(GrammarSpec("regex", f"number {index}"))

    assert 0 < prover._num_bytes <= 2_000
    assert len(prover._verdicts) <= 2_000 // 256


def test_the_worker_ends_with_its_prover():
    made = GrammarProver(lambda: vocabulary_of(TINY, 8192, [1, 7]))
    made.prove(GrammarSpec("json_object"))
    worker = made._worker
    del made

    assert worker.poll() is not None
