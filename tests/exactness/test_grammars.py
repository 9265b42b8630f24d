"""An answer held to a grammar is the same alone, in a batch, in chunks, after preemption and replay."""

import json
import re
from dataclasses import replace
from random import Random

import pytest
from tests.exactness.compare import differences
from tests.exactness.conftest import Engines
from tests.exactness.drive import Runner, run_alone, run_mix
from tests.exactness.mixes import Ask, Circumstances

from penstock import SamplingParams
from penstock.request import StructuredOutputsParams

pytest.importorskip("penstock._native", reason="this build has no native backend")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SHAPES = (
    StructuredOutputsParams(json=PERSON),
    StructuredOutputsParams(regex=r"\d{3}-\d{4} [a-z ]{2,30}!"),
    StructuredOutputsParams(choice=("yes, of course", "no, never", "nobody can know")),
    StructuredOutputsParams(grammar='start: "SELECT " /[a-z]{1,8}/ (", " /[a-z]{1,8}/)* " FROM t;"'),
    StructuredOutputsParams(json_object=True),
    None,
)
CIRCUMSTANCES = {
    "batch": Circumstances(max_requests=32, threads=2),
    "chunks": Circumstances(max_requests=5, max_step_tokens=7, prefix_cache=True),
    "preempted": Circumstances(
        max_requests=8, max_step_tokens=32, preempt_chance=0.4, is_short_of_blocks=True, prefix_cache=True
    ),
    "apart": Circumstances(max_requests=4, max_step_tokens=16, arrives_apart=True, abort_chance=0.02),
}


def make_asks(seed: int) -> list[Ask]:
    random = Random(seed)
    asks = []
    for index in range(12):
        params = SamplingParams(
            temperature=random.choice((0.0, 0.8, 1.2)),
            seed=seed * 100 + index,
            n=random.choice((1, 1, 2)),
            max_tokens=random.choice((9, 40)),
            min_tokens=random.choice((0, 0, 5)),
            stop=random.choice(((), ("7", "e t"))),
            bad_words=random.choice(((), ("a", "name"))),
            logit_bias=random.choice((None, {300: 4.0, 301: -5.0})),
            repetition_penalty=random.choice((1.0, 1.3)),
            logprobs=random.choice((None, 2)),
            structured_outputs=SHAPES[index % len(SHAPES)],
        )
        asks.append(Ask(tuple(random.choices(range(30, 4000), k=random.randrange(1, 60))), params))
    return asks


@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_company_and_circumstances_change_nothing(engines: Engines, name: str) -> None:
    loaded = engines("penstock-tiny")
    for seed in (1, 2):
        asks = make_asks(seed)
        alone = run_alone(loaded[1], asks)
        run = run_mix(loaded, asks, CIRCUMSTANCES[name])

        assert differences(alone, run.outcomes) == []
        if name == "preempted":
            assert run.num_preemptions > 0
        for ask, outcome in zip(asks, alone, strict=True):
            for one in outcome.completions:
                if ask.params.structured_outputs is SHAPES[0] and one.ending == ("stop", None):
                    assert set(json.loads(one.text)) == {"name", "age", "tags"}


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=lambda shape: str(shape)[24:40])
def test_a_replayed_request_goes_on_in_its_grammar(engines: Engines, shape: StructuredOutputsParams) -> None:
    loaded = engines("penstock-tiny")[1]
    params = SamplingParams(temperature=0.9, seed=6, max_tokens=30, structured_outputs=shape)
    ask = Ask(tuple(range(40, 60)), params)
    (whole,) = run_alone(loaded, [ask])[0].completions
    for cut in range(1, len(whole.token_ids)):
        runner = Runner(loaded, Circumstances(), [replace(ask, emitted=whole.token_ids[:cut])])
        ((request,),) = runner.requests
        runner.core.add_request(request)
        runner.drain()

        assert tuple(request.output_tokens) == whole.token_ids
        assert runner.answer(0).ending == whole.ending


def test_the_check_has_teeth(engines: Engines) -> None:
    """The same mix without its grammars gives other texts, and none that matches."""
    loaded = engines("penstock-tiny")[1]
    params = SamplingParams(temperature=0.9, seed=6, max_tokens=30, structured_outputs=SHAPES[1])
    held = Ask((40, 41), params)
    free = Ask((40, 41), SamplingParams(temperature=0.9, seed=6, max_tokens=30))
    (one,), (other,) = (run_alone(loaded, [ask])[0].completions for ask in (held, free))

    assert re.fullmatch(r"\d{3}-\d{4} [a-z ]{2,30}!|\d{3}-\d{4} [a-z ]*", one.text)
    assert one.text != other.text
