"""Every sampling parameter on the embedded model: it does what it says, and the same seed does it again."""

import math

import pytest
from tests.llm.conftest import one, params

PROMPT = "import os\n\n\ndef main("


def test_greedy_takes_the_likeliest_token_each_time(llm):
    answer = one(llm, PROMPT, logprobs=1)

    assert [row[token].rank for token, row in zip(answer.token_ids, answer.logprobs, strict=True)] == [1] * 12


def test_a_seed_repeats_an_answer_and_greedy_needs_none(llm):
    first, again, other = (one(llm, PROMPT, temperature=1.0, seed=s).token_ids for s in (1, 1, 2))
    cold = [one(llm, PROMPT, seed=s).token_ids for s in (1, 2)]

    assert first == again != other
    assert cold[0] == cold[1]


def test_without_a_seed_answers_differ_and_say_how_to_repeat_them(llm):
    outputs = [llm.generate(PROMPT, params(temperature=1.0), use_tqdm=False)[0] for _ in range(2)]
    again = one(llm, PROMPT, temperature=1.0, seed=outputs[0].seed)

    assert outputs[0].seed != outputs[1].seed
    assert outputs[0].outputs[0].token_ids != outputs[1].outputs[0].token_ids
    assert again.token_ids == outputs[0].outputs[0].token_ids


def test_n_answers_share_the_prompt_and_the_first_has_the_seed_itself(llm):
    (output,) = llm.generate(PROMPT, params(temperature=1.0, seed=4, n=3), use_tqdm=False)
    tokens = [tuple(answer.token_ids) for answer in output.outputs]

    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    assert len(set(tokens)) == 3
    assert list(tokens[0]) == one(llm, PROMPT, temperature=1.0, seed=4).token_ids


@pytest.mark.parametrize(
    "cut", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"typical_p": 1e-6, "top_k": 1}], ids=str
)
def test_a_cut_to_one_token_is_greedy(llm, cut):
    assert one(llm, PROMPT, temperature=1.5, seed=8, **cut).token_ids == one(llm, PROMPT).token_ids


def test_top_k_draws_from_the_k_likeliest(llm):
    answer = one(llm, PROMPT, temperature=2.0, seed=3, top_k=4, max_tokens=60, logprobs=0)
    ranks = {row[token].rank for token, row in zip(answer.token_ids, answer.logprobs, strict=True)}

    assert ranks <= {1, 2, 3, 4}
    assert len(ranks) > 1


def test_min_p_draws_no_token_below_its_share_of_the_likeliest(llm):
    answer = one(llm, PROMPT, temperature=1.0, seed=3, min_p=0.2, max_tokens=60, logprobs=1)
    for token, row in zip(answer.token_ids, answer.logprobs, strict=True):
        best = max(entry.logprob for entry in row.values())

        assert row[token].logprob >= best + math.log(0.2) - 1e-4


def test_logprobs_hold_the_drawn_token_first_and_the_likeliest_in_order(llm):
    answer = one(llm, PROMPT, temperature=1.0, seed=3, logprobs=5)
    total = 0.0
    for token, row in zip(answer.token_ids, answer.logprobs, strict=True):
        total += row[token].logprob
        likeliest = sorted((e for e in row.values() if e.rank <= 5), key=lambda e: e.rank)

        assert next(iter(row)) == token
        assert [entry.rank for entry in likeliest] == [1, 2, 3, 4, 5]
        assert [e.logprob for e in likeliest] == sorted((e.logprob for e in likeliest), reverse=True)
        assert all(entry.logprob <= 0 for entry in row.values())
        assert row[token].decoded_token == llm.tokenizer.token_text(token)
        assert len(row) == (5 if row[token].rank <= 5 else 6)
    assert answer.cumulative_logprob == pytest.approx(total)
    assert [len(row) for row in one(llm, PROMPT, logprobs=0).logprobs] == [1] * 12


def test_logprobs_are_of_the_raw_logits_whatever_the_sampling(llm):
    plain = one(llm, PROMPT, logprobs=2, max_tokens=1).logprobs[0]
    bent = one(
        llm, PROMPT, logprobs=2, max_tokens=1, temperature=2.0, top_k=1, presence_penalty=2.0
    ).logprobs[0]

    assert plain == bent


def test_prompt_logprobs_score_every_prompt_token_but_the_first(llm):
    (output,) = llm.generate(PROMPT, params(prompt_logprobs=2, max_tokens=1), use_tqdm=False)
    first, *rest = output.prompt_logprobs

    assert first is None
    assert len(rest) == len(output.prompt_token_ids) - 1
    for token, row in zip(output.prompt_token_ids[1:], rest, strict=True):
        assert next(iter(row)) == token
        assert {1, 2} <= {entry.rank for entry in row.values()}
        assert row[token].logprob <= max(entry.logprob for entry in row.values())


def test_prompt_logprobs_are_those_of_the_same_tokens_when_they_were_drawn(llm):
    answer = one(llm, PROMPT, logprobs=0)
    ids = llm.tokenizer.encode(PROMPT) + answer.token_ids
    prompt = {"prompt_token_ids": ids}
    (scored,) = llm.generate(prompt, params(prompt_logprobs=0, max_tokens=1), use_tqdm=False)
    drawn = [row[token].logprob for token, row in zip(answer.token_ids, answer.logprobs, strict=True)]
    read = [row[t].logprob for t, row in zip(ids[-12:], scored.prompt_logprobs[-12:], strict=True)]

    assert read == drawn  # bit for bit: a token's logits do not depend on how it came


def test_penalties_make_repetition_rarer(llm):
    def num_distinct(**options):
        return len(set(one(llm, PROMPT, max_tokens=80, **options).token_ids))

    plain = num_distinct()

    assert num_distinct(repetition_penalty=2.0) > plain
    assert num_distinct(presence_penalty=2.0) > plain
    assert num_distinct(frequency_penalty=2.0) > plain


def test_a_bias_decides_for_or_against_a_token(llm):
    usual = one(llm, PROMPT).token_ids[0]
    other = llm.tokenizer.encode("x", add_special=False)[0]

    assert one(llm, PROMPT, logit_bias={usual: -100.0}).token_ids[0] != usual
    assert one(llm, PROMPT, logit_bias={other: 100.0}).token_ids == [other] * 12


def test_only_allowed_tokens_are_drawn(llm):
    allowed = set(range(300, 600))
    answer = one(llm, PROMPT, temperature=2.0, seed=1, allowed_token_ids=tuple(allowed), max_tokens=40)

    assert set(answer.token_ids) <= allowed
    assert len(set(answer.token_ids)) > 1


def test_a_bad_word_is_not_written(llm):
    def spellings(word):
        return [llm.tokenizer.encode(lead + word, add_special=False) for lead in ("", " ")]

    options = {"max_tokens": 60, "temperature": 1.0, "seed": 5}
    tokens = one(llm, PROMPT, **options).token_ids
    words = {llm.tokenizer.token_text(token).strip(): token for token in tokens}
    bad = [word for word, token in words.items() if word.isalpha() and [token] in spellings(word)]
    answer = one(llm, PROMPT, **options, bad_words=tuple(bad))

    assert len(bad) > 3
    assert answer.token_ids != tokens
    for sequence in (sequence for word in bad for sequence in spellings(word)):
        starts = range(len(answer.token_ids) - len(sequence) + 1)

        assert not any(answer.token_ids[i : i + len(sequence)] == sequence for i in starts)
