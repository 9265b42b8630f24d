"""A request goes on where it stopped, and a call says the same in every way of asking it.

Replay gives the emitted tokens back apart from the prompt, so that penalties, min_tokens, stop strings and
the place of the noise see the same history. Restart, streams and `n` completions change nothing either.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.exactness.compare import differences
from tests.exactness.conftest import FORMATS, Engines, Load
from tests.exactness.drive import Runner, run_alone
from tests.exactness.mixes import Ask, Circumstances, make_mix

from penstock import LLM, SamplingParams
from penstock.engine.build import Loaded
from penstock.request import Request
from penstock.sampling.params import seeds_of

pytest.importorskip("penstock._native", reason="this build has no native backend")

EVERYTHING = SamplingParams(
    temperature=0.9,
    top_k=60,
    repetition_penalty=1.2,
    presence_penalty=0.5,
    frequency_penalty=0.7,
    min_tokens=9,
    max_tokens=16,
    stop=("zzzz", "qq"),
    stop_token_ids=tuple(range(100, 160)),
    bad_words=("a", "in"),
    logit_bias={3: 2.0, 9: -4.0},
    logprobs=3,
    seed=77,
)


def replay(
    loaded: Loaded, ask: Ask, emitted: tuple[int, ...], circumstances: Circumstances
) -> tuple[Request, Runner]:
    """The request resumed after `emitted`, beside a neighbour that is not looked at."""
    neighbour = Ask((4, 4, 8), SamplingParams(max_tokens=9, seed=1, ignore_eos=True))
    runner = Runner(loaded, circumstances, [replace(ask, emitted=emitted), neighbour])
    (request,), (other,) = runner.requests
    runner.core.add_request(other)
    runner.step()
    runner.core.add_request(request)
    runner.drain()
    return request, runner


@pytest.mark.parametrize("model", FORMATS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_replayed_request_goes_on_as_if_nothing_had_happened(engines: Engines, model, temperature):
    loaded = engines(model)[1]
    params = msgspec.structs.replace(EVERYTHING, temperature=temperature)
    ask = Ask(tuple(range(20, 110)), params)
    (whole,) = run_alone(loaded, [ask])[0].completions
    for cut in range(1, len(whole.token_ids)):
        circumstances = Circumstances(
            max_requests=2, max_step_tokens=(7, 64, 512)[cut % 3], prefix_cache=True
        )
        request, runner = replay(loaded, ask, whole.token_ids[:cut], circumstances)
        again = runner.answer(0)

        assert tuple(request.output_tokens) == whole.token_ids
        assert again.token_ids == whole.token_ids[cut:]
        assert again.logprobs == whole.logprobs[cut:]
        assert again.logits == whole.logits[cut:]
        assert again.ending == whole.ending


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_stop_string_that_began_before_the_cut_is_found(engines: Engines, cut):
    loaded = engines("int8")[1]
    first, second = (loaded.tokenizer.encode(text, add_special=False) for text in ("xy", "yz"))
    allowed = tuple({*first, *second})
    free = SamplingParams(max_tokens=40, allowed_token_ids=allowed, seed=5, ignore_eos=True)
    (drawn,) = run_alone(loaded, [Ask((1, 2), free)])[0].completions
    stop = drawn.text[cut - 1 : cut + 4]
    ask = Ask((1, 2), msgspec.structs.replace(free, stop=(stop,)))
    (whole,) = run_alone(loaded, [ask])[0].completions

    assert whole.ending == ("stop", stop)

    request, runner = replay(loaded, ask, whole.token_ids[:cut], Circumstances())

    assert tuple(request.output_tokens) == whole.token_ids
    assert runner.answer(0).ending == whole.ending


@pytest.mark.parametrize("model", FORMATS)
def test_n_completions_are_those_of_n_seeds(engines: Engines, model):
    loaded = engines(model)[2]
    params = msgspec.structs.replace(EVERYTHING, n=4, prompt_logprobs=2)
    ask = Ask(tuple(range(150)), params)
    signed = [seed - 2**64 if seed >= 2**63 else seed for seed in seeds_of(77, 4)]
    singles = [Ask(ask.prompt_tokens, msgspec.structs.replace(params, n=1, seed=seed)) for seed in signed]

    llm = LLM.from_loaded(loaded)
    together = llm.generate({"prompt_token_ids": ask.prompt_tokens}, params, use_tqdm=False)[0]
    one_by_one = run_alone(loaded, singles)

    assert signed[0] == 77
    assert [tuple(o.token_ids) for o in together.outputs] == [o.completions[0].token_ids for o in one_by_one]
    assert run_alone(loaded, [ask])[0].completions == tuple(o.completions[0] for o in one_by_one)
    assert {o.prompt_logprobs for o in one_by_one} == {run_alone(loaded, [ask])[0].prompt_logprobs}


@pytest.mark.parametrize("model", FORMATS)
def test_a_model_loaded_again_gives_the_same_bytes(engines: Engines, load: Load, model):
    loaded, again = engines(model)[1], load(model)
    mix = make_mix(51, vocab_size=loaded.spec.vocab_size, num_asks=5, longest=90, num_long=0)

    assert differences(run_alone(loaded, mix), list(run_alone(again, mix))) == []
    assert again.fingerprint == loaded.fingerprint


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_says_what_generate_says(engines: Engines, temperature):
    llm = LLM.from_loaded(engines("int4_g64")[1])
    params = msgspec.structs.replace(EVERYTHING, temperature=temperature, n=2, stop=("e", "s"))
    whole = llm.generate("def spread(values):", params, use_tqdm=False)[0]
    pieces = list(llm.stream("def spread(values):", params))

    assert pieces[-1].finished
    for output in whole.outputs:
        mine = [o for piece in pieces for o in piece.outputs if o.index == output.index]

        assert "".join(o.text for o in mine) == output.text
        assert [token for o in mine for token in o.token_ids] == output.token_ids
        assert [row for o in mine for row in o.logprobs or ()] == output.logprobs
        assert mine[-1].finish_reason == output.finish_reason
        assert mine[-1].cumulative_logprob == output.cumulative_logprob


OTHER_PROCESS = """
import json, sys
from penstock import LLM, SamplingParams
from tests.exactness.conftest import load_small
llm = LLM.from_loaded(load_small(sys.argv[1], "int4_g64", threads=int(sys.argv[2])))
params = SamplingParams(temperature=0.9, max_tokens=24, logprobs=2, seed=3, ignore_eos=True)
answers = llm.generate([f"def f{i}(" for i in range(int(sys.argv[3]))], params, use_tqdm=False)
print(json.dumps([[o.outputs[0].token_ids, o.outputs[0].cumulative_logprob.hex()] for o in answers]))
"""


@pytest.mark.slow
def test_other_processes_with_other_threads_and_batches_give_the_same_bytes():
    def ask(threads: int, num_prompts: int) -> list[object]:
        done = subprocess.run(
            [sys.executable, "-c", OTHER_PROCESS, "penstock-tiny", str(threads), str(num_prompts)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
            text=True,
        )
        answers: list[object] = json.loads(done.stdout)
        return answers

    expected = ask(1, 12)

    assert ask(2, 12) == expected
    assert ask(2, 3) == expected[:3]
