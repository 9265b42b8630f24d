"""Whatever is sent, `check` accepts it or refuses it in one line; what it accepts, a step can draw from."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import InvalidRequestError
from penstock.request import SamplingParams
from penstock.sampling.params import check, seeds_of
from penstock.sampling.rows import RowRequest, make_rows
from penstock.sampling.sampler import sample

VOCAB_SIZE, MAX_CONTEXT = 33, 64
FIELDS = SamplingParams.__struct_fields__

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3)
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3),
    max_leaves=5,
)
ids = st.integers(0, VOCAB_SIZE - 1)
sensible = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "top_k": st.integers(-1, 2**40),
        "top_p": st.floats(0, 1, exclude_min=True),
        "min_p": st.floats(0, 1),
        "typical_p": st.floats(0, 1, exclude_min=True),
        "repetition_penalty": st.floats(0, 10, exclude_min=True),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(ids, st.floats(-100, 100), max_size=5),
        "allowed_token_ids": st.lists(ids, min_size=1, max_size=4).map(tuple),
        "seed": st.integers(-(2**63), 2**63 - 1),
    },
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), anything, max_size=3))
def test_anything_is_accepted_or_refused_in_one_line_that_names_it(fields):
    try:
        check(SamplingParams(**fields), VOCAB_SIZE, MAX_CONTEXT)
    except InvalidRequestError as refused:
        message = str(refused)

        assert refused.param in FIELDS
        assert message.isprintable()
        assert refused.param in message
        assert message.count("; ") >= 1
    else:
        for name, value in fields.items():
            assert not isinstance(value, float) or math.isfinite(value), name


@settings(deadline=None, max_examples=40)
@given(
    sensible,
    st.lists(st.floats(width=32) | st.floats(-20, 20, width=32), min_size=VOCAB_SIZE, max_size=VOCAB_SIZE),
    st.lists(ids, max_size=4),
)
def test_what_is_accepted_gives_a_token_from_any_logits(fields, logits, output):
    params = SamplingParams(**fields)
    check(params, VOCAB_SIZE, MAX_CONTEXT)
    (seed,) = seeds_of(params.seed or 0, 1)
    entry = RowRequest(params, seed, len(output), prompt_tokens=(1,), output_tokens=output, num_logprobs=2)
    with np.errstate(all="ignore"):
        (token,) = sample(np.array([logits], np.float32), make_rows([entry], VOCAB_SIZE)).sampled

    assert 0 <= token < VOCAB_SIZE
    assert params.allowed_token_ids is None or token in params.allowed_token_ids
