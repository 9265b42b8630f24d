"""Matchers beside the loop: ready when they are built, advanced by tokens, dead ends that end one request."""

import numpy as np
import pytest
from tests.fakes.loaded import make_loaded
from tests.fakes.tokenizer import END, VOCAB_SIZE, make_tokenizer

from penstock import LLM, SamplingParams
from penstock.engine.assemble import make_grammars
from penstock.engine.grammars import Grammars
from penstock.errors import GrammarLimitError, InvalidRequestError
from penstock.request import GrammarSpec, Request, StructuredOutputsParams
from penstock.scheduler.scheduler import Guidance

A, B, C = 0, 1, 2


def make_request(
    pattern: str | None, *, output: tuple[int, ...] = (), ignore_eos: bool = False, name: str = "r"
) -> Request:
    return Request(
        request_id=name,
        prompt_tokens=(5,),
        params=SamplingParams(ignore_eos=ignore_eos),
        seed=0,
        arrival_s=0.0,
        max_output_tokens=9,
        stop_ids=frozenset({END}),
        grammar=None if pattern is None else GrammarSpec("regex", pattern),
        output_tokens=list(output),
    )


def begun(pattern: str, **options) -> tuple[Grammars, Request]:
    grammars = make_grammars(make_tokenizer(), VOCAB_SIZE, [END])
    request = make_request(pattern, **options)
    grammars.begin(request)

    assert not request.is_ready
    grammars.settle(waits=True)
    assert request.is_ready
    return grammars, request


def ids_of(mask: np.ndarray | None) -> list[int]:
    assert mask is not None
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def test_a_request_without_a_grammar_is_ready_and_unmasked():
    grammars = make_grammars(make_tokenizer(), VOCAB_SIZE, [END])
    request = make_request(None)
    grammars.begin(request)

    assert request.is_ready
    assert grammars.mask(request) is None
    grammars.forget("r")


def test_masks_follow_the_tokens_and_the_end_is_said():
    grammars, request = begun("ab|ac*")

    assert ids_of(grammars.mask(request)) == [A]
    assert grammars.guide(request, A) is Guidance.GO_ON
    assert ids_of(grammars.mask(request)) == [B, C, END]
    assert grammars.guide(request, B) is Guidance.COMPLETE
    grammars.forget("r")


def test_a_token_that_does_not_fit_is_refused():
    grammars, request = begun("ab")

    assert grammars.guide(request, C) is Guidance.REFUSED


def test_a_request_that_ignores_the_end_goes_on_while_the_grammar_can():
    grammars, request = begun("ac*", ignore_eos=True)
    grammars.guide(request, A)

    assert ids_of(grammars.mask(request)) == [C]


def test_a_resumed_request_stands_behind_what_it_emitted():
    grammars, request = begun("ab|ac*", output=(A, C))

    assert ids_of(grammars.mask(request)) == [C, END]


def test_drafts_are_masked_one_by_one_and_taken_back():
    grammars, request = begun("abc|ac*")
    grammars.guide(request, A)
    masks = [ids_of(mask) for mask in grammars.masks_after(request, [B, C, A])]

    assert masks[:2] == [[B, C, END], [C]]
    assert masks[2] == [END]
    assert ids_of(grammars.mask(request)) == [B, C, END]
    assert len(grammars.masks_after(request, [A, B])) == 3
    assert ids_of(grammars.mask(request)) == [B, C, END]
    assert grammars.masks_after(make_request(None), [A]) == [None, None]


def test_a_grammar_that_cannot_be_built_ends_its_request_alone():
    grammars, request = begun("[a-z")

    assert ids_of(grammars.mask(request)) == []
    assert grammars.guide(request, A) is Guidance.REFUSED


def test_matchers_are_built_within_the_room_that_there_is():
    grammars = make_grammars(make_tokenizer(), VOCAB_SIZE, [END])
    grammars._max_live_bytes = 9 << 20
    requests = [make_request("ab", name=str(index)) for index in range(4)]
    for request in requests:
        grammars.begin(request)
    for _ in range(3):
        grammars.settle(waits=True)

    assert [request.is_ready for request in requests] == [True, True, False, False]
    grammars.forget("3")
    grammars.forget("0")
    grammars.settle(waits=True)
    assert [request.is_ready for request in requests] == [True, True, True, False]
    for name in "12":
        grammars.forget(name)
    assert grammars._num_bytes == 0


def structured(**shape) -> SamplingParams:
    return SamplingParams(max_tokens=12, temperature=0.0, structured_outputs=StructuredOutputsParams(**shape))


@pytest.mark.parametrize("chunk", [8, 16])
def test_the_engine_masks_ends_and_says_so(chunk):
    loaded = make_loaded(max_step_tokens=chunk)
    llm = LLM.from_loaded(loaded)
    outputs = llm.generate(
        ["abcdefgh" * 3, "b", "c"],
        [structured(regex="(ab){2}c"), structured(choice=("yes", "no")), SamplingParams(max_tokens=3)],
        use_tqdm=False,
    )

    assert outputs[0].outputs[0].text == "ababc"
    assert (outputs[0].outputs[0].finish_reason, outputs[0].outputs[0].stop_reason) == ("stop", None)
    assert outputs[1].outputs[0].text in ("yes", "no")
    assert not llm.core.has_requests
    assert llm.core._grammars._live == {}


def test_a_dead_end_is_a_typed_end_and_nothing_wrong_is_shown():
    llm = LLM.from_loaded(make_loaded())
    params = SamplingParams(
        max_tokens=12,
        allowed_token_ids=(A, C),
        structured_outputs=StructuredOutputsParams(regex="ab"),
    )
    (one,) = llm.generate("b", params, use_tqdm=False)[0].outputs

    assert (one.text, one.finish_reason, one.stop_reason) == ("a", "error", "grammar_dead_end")


def test_a_bad_grammar_is_refused_before_anything_is_queued():
    llm = LLM.from_loaded(make_loaded())
    for shape, error in (({"regex": "[a-z"}, InvalidRequestError), ({"regex": "(a+)+"}, GrammarLimitError)):
        with pytest.raises(error):
            llm.generate(["a", "b"], [SamplingParams(), structured(**shape)], use_tqdm=False)

        assert not llm.core.has_requests


def test_an_abort_while_a_grammar_is_built_leaves_nothing():
    llm = LLM.from_loaded(make_loaded())
    stream = llm.stream("a", structured(regex="ab"))
    with pytest.raises(InvalidRequestError):
        llm.generate("a", structured(regex="[a"), use_tqdm=False)
    stream.close()
    core = llm.core
    core.add_request(make_request("ab"))
    core.abort("r")

    assert core.step() is None
    assert core._grammars._live == {}
