"""InputBuilder: index arrays are right, kept rows stay right, rows go back to their requests."""

import itertools

import numpy as np
import pytest
from tests.fakes.model import make_request

from penstock.engine.inputs import InputBuilder
from penstock.step import Drawn, Schedule, ScheduledRequest, StepOutput


def scheduled(request_id, start, num_tokens, *groups, drafts=()):
    return ScheduledRequest(request_id, start, num_tokens, groups or ((5, 6, 7),), drafts)


def build(requests, *parts, num_groups=1, builder=None):
    builder = builder or InputBuilder(requests, num_groups=num_groups, vocab_size=10)
    step, layout = builder.build(Schedule(parts))
    return builder, step, layout


def output_of(step, **values):
    num_rows = len(step.logit_rows)
    num_top = max([0, *step.sampling.num_logprobs.tolist()])
    arrays = {
        "sampled": np.arange(num_rows, dtype=np.int32) + 3,
        "logprob": -np.arange(num_rows, dtype=np.float32),
        "rank": np.ones(num_rows, np.int32),
        "top_token": np.tile(np.arange(num_top, dtype=np.int32), (num_rows, 1)),
        "top_logprob": np.tile(-np.arange(num_top, dtype=np.float32), (num_rows, 1)),
    }
    return StepOutput(**(arrays | values))


def test_a_mixed_step_is_flat_and_ragged():
    requests = {
        "decode": make_request("decode", [1, 2, 3]),
        "chunk": make_request("chunk", [4, 5, 6, 7, 8]),
        "whole": make_request("whole", [9, 8]),
    }
    requests["decode"].append(4)
    _, step, _ = build(
        requests,
        scheduled("decode", 3, 1, (1, 2)),
        scheduled("chunk", 1, 3, (3, 4)),
        scheduled("whole", 0, 2, (5,)),
    )

    assert step.tokens.tolist() == [4, 5, 6, 7, 9, 8]
    assert step.positions.tolist() == [3, 1, 2, 3, 0, 1]
    assert step.query_start.tolist() == [0, 1, 4, 6]
    assert step.context_len.tolist() == [4, 4, 2]
    assert step.block_tables[0][:, :1].tolist() == [[1], [3], [5]]
    assert step.block_tables[0][:2, 1].tolist() == [2, 4]
    assert step.logit_rows.tolist() == [0, 5]  # the chunk is not due yet
    assert step.sampling.position.tolist() == [1, 0]
    assert {a.dtype for a in (step.tokens, step.positions, step.query_start, step.context_len)} == {
        np.dtype(np.int32)
    }
    assert all(table.dtype == np.int32 and table.flags.c_contiguous for table in step.block_tables)


def test_every_group_has_its_own_table():
    requests = {"a": make_request("a", [1, 2, 3])}
    _, step, _ = build(requests, scheduled("a", 0, 3, (4, 5), (0, 9)), num_groups=2)

    assert [table.tolist() for table in step.block_tables] == [[[4, 5]], [[0, 9]]]


def test_tables_follow_growth_dropped_blocks_and_reused_rows():
    requests = {name: make_request(name, [1]) for name in "abc"}
    builder, _, _ = build(requests, scheduled("a", 0, 1, (1,)), scheduled("b", 0, 1, (2,)))
    builder.forget("a")
    builder.forget("a")
    wide = tuple(range(10, 40))
    _, step, _ = build(
        requests,
        scheduled("c", 0, 1, (3,)),
        scheduled("b", 0, 1, wide),
        scheduled("a", 0, 1, (0, 8)),
        builder=builder,
    )

    assert step.block_tables[0].shape == (3, 30)
    assert step.block_tables[0][0, :1].tolist() == [3]
    assert step.block_tables[0][1].tolist() == list(wide)
    assert step.block_tables[0][2, :2].tolist() == [0, 8]


def test_more_requests_than_ever_find_a_row():
    requests = {str(i): make_request(str(i), [i % 10]) for i in range(50)}
    _, step, _ = build(requests, *(scheduled(str(i), 0, 1, (i + 1,)) for i in range(50)))

    assert step.block_tables[0][:, 0].tolist() == list(range(1, 51))


def test_draws_go_back_to_their_requests():
    requests = {name: make_request(name, [1, 2, 3]) for name in "abc"}
    builder, step, layout = build(requests, scheduled("a", 0, 3), scheduled("b", 0, 2), scheduled("c", 0, 3))

    assert builder.read(layout, output_of(step)) == [Drawn((3,)), Drawn(), Drawn((4,))]


def test_a_kept_row_moves_with_the_output():
    request = make_request("a", [1], seed=77, temperature=0.5)
    requests = {"a": request}
    builder, step, _ = build(requests, scheduled("a", 0, 1))
    assert (step.sampling.seed.tolist(), step.sampling.position.tolist()) == ([77], [0])
    request.append(5)
    request.append(6)
    _, step, _ = build(requests, scheduled("a", 2, 1), builder=builder)

    assert step.sampling.position.tolist() == [2]
    assert step.sampling.temperature.tolist() == [0.5]


def test_penalties_see_prompt_and_output():
    request = make_request("a", [1, 2], repetition_penalty=1.5)
    for token in (2, 7, 7):
        request.append(token)
    _, step, _ = build({"a": request}, scheduled("a", 4, 1))
    rows = step.sampling
    seen = dict(zip(rows.history_token.tolist(), rows.history_count.tolist(), strict=True))

    assert seen == {1: 0, 2: 1, 7: 2}


def banned(step, r=0):
    rows = step.sampling
    part = slice(rows.bias_start[r], rows.bias_start[r + 1])
    assert np.isneginf(rows.bias_value[part]).all()
    return rows.bias_token[part].tolist()


def test_stop_ids_are_banned_until_min_tokens():
    request = make_request("a", [1], stop_ids=[8, 4], min_tokens=2)
    requests = {"a": request}
    builder, step, _ = build(requests, scheduled("a", 0, 1))
    seen = [banned(step)]
    for token in (5, 5):
        request.append(token)
        _, step, _ = build(requests, scheduled("a", len(request.tokens) - 1, 1), builder=builder)
        seen.append(banned(step))

    assert seen == [[4, 8], [4, 8], []]


def test_the_end_of_a_bad_word_is_banned_after_its_beginning():
    request = make_request("a", [3, 4])
    request.bad_token_ids = ((9,), (3, 4, 5))
    requests = {"a": request}
    builder, step, _ = build(requests, scheduled("a", 0, 2))
    assert banned(step) == [9]  # the prompt does not count
    for token in (3, 4):
        request.append(token)
    _, step, _ = build(requests, scheduled("a", 3, 1), builder=builder)

    assert banned(step) == [5, 9]


def test_drafts_are_rows_with_the_history_they_would_have():
    request = make_request("a", [1], seed=3, repetition_penalty=2.0, min_tokens=2, stop_ids=[9])
    request.append(4)
    builder, step, layout = build({"a": request}, scheduled("a", 1, 3, (5,), drafts=(6, 7)))

    assert step.tokens.tolist() == [4, 6, 7]
    assert step.logit_rows.tolist() == [0, 1, 2]
    assert step.sampling.position.tolist() == [1, 2, 3]
    ends = step.sampling.history_start.tolist()
    assert [sorted(step.sampling.history_token[a:b].tolist()) for a, b in itertools.pairwise(ends)] == [
        [1, 4],
        [1, 4, 6],
        [1, 4, 6, 7],
    ]
    assert [banned(step, r) for r in range(3)] == [[9], [], []]
    assert builder.read(layout, output_of(step)) == [Drawn((3, 4, 5))]


def test_logprobs_name_the_drawn_token_first_and_then_the_likeliest():
    requests = {
        "a": make_request("a", [1], logprobs=2),
        "b": make_request("b", [1]),
        "c": make_request("c", [1], logprobs=0),
    }
    builder, step, layout = build(requests, *(scheduled(name, 0, 1) for name in "abc"))
    output = output_of(
        step,
        sampled=np.array([1, 7, 8], np.int32),
        logprob=np.array([-1.5, np.nan, -2.5], np.float32),
        rank=np.array([2, 0, 40], np.int32),
    )
    a, b, c = builder.read(layout, output)

    assert list(a.logprobs[0].items()) == [(1, (-1.5, 2)), (0, (-0.0, 1))]
    assert b == Drawn((7,))
    assert c.logprobs == ({8: (-2.5, 40)},)


@pytest.mark.parametrize(("start", "num_tokens"), [(0, 4), (0, 2), (2, 2), (1, 3)])
def test_prompt_rows_score_the_next_prompt_token(start, num_tokens):
    prompt = [1, 2, 3, 4]
    request = make_request("a", prompt, prompt_logprobs=1)
    request.num_scored_tokens = start
    builder, step, layout = build({"a": request}, scheduled("a", start, num_tokens))
    (drawn,) = builder.read(layout, output_of(step))
    scored = range(start, min(start + num_tokens, 3))
    is_due = start + num_tokens == 4

    assert step.sampling.target.tolist() == [prompt[p + 1] for p in scored] + [-1] * is_due
    assert step.logit_rows.tolist() == [p - start for p in scored] + [num_tokens - 1] * is_due
    assert len(drawn.prompt_logprobs) == len(scored)
    assert len(drawn.tokens) == is_due
    assert drawn.logprobs is None


def test_rows_that_were_scored_before_a_preemption_are_not_scored_again():
    request = make_request("a", [1, 2, 3, 4], prompt_logprobs=0)
    request.num_scored_tokens = 2
    _, step, _ = build({"a": request}, scheduled("a", 0, 4))

    assert step.logit_rows.tolist() == [2, 3]


def test_arrays_that_two_steps_share_change_with_the_blocks_and_the_requests():
    requests = {name: make_request(name, [1, 2, 3]) for name in "ab"}
    for request in requests.values():
        for token in (4, 5, 6, 7):
            request.append(token)
    blocks, more = ((1, 2),), ((1, 2, 3),)
    others = ((4, 5),)
    builder, first, _ = build(requests, scheduled("a", 3, 1, *blocks), scheduled("b", 3, 1, *others))
    steps = [
        build(requests, *parts, builder=builder)[1]
        for parts in (
            (scheduled("a", 4, 1, *blocks), scheduled("b", 4, 1, *others)),
            (scheduled("a", 5, 1, *more), scheduled("b", 5, 1, *others)),
            (scheduled("b", 6, 1, *others),),
            (scheduled("a", 3, 2, *more), scheduled("b", 6, 1, *others)),
        )
    ]

    assert [step.context_len.tolist() for step in steps] == [[5, 5], [6, 6], [7], [5, 7]]
    assert [step.positions.tolist() for step in steps] == [[4, 4], [5, 5], [6], [3, 4, 6]]
    assert [step.query_start.tolist() for step in steps] == [[0, 1, 2], [0, 1, 2], [0, 1], [0, 2, 3]]
    assert (
        first.block_tables[0][:, :2].tolist() == steps[0].block_tables[0][:, :2].tolist() == [[1, 2], [4, 5]]
    )
    assert steps[1].block_tables[0][0].tolist() == [1, 2, 3]
    assert steps[2].block_tables[0][:, :2].tolist() == [[4, 5]]
    assert first.positions.tolist() == [3, 3]  # what was handed out stays as it was
