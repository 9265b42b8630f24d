import numpy as np
import pytest

from penstock.request import SamplingParams
from penstock.sampling.rows import History, RowMaker, RowRequest, make_mask, make_rows

INF = np.inf
ARRAYS = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "typical_p": np.float32,
    "repetition_penalty": np.float32,
    "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
    "seed": np.uint64,
    "position": np.int64,
    "target": np.int32,
    "num_logprobs": np.int32,
    "history_start": np.int32,
    "history_token": np.int32,
    "history_count": np.int32,
    "bias_start": np.int32,
    "bias_token": np.int32,
    "bias_value": np.float32,
}


def test_every_parameter_reaches_its_own_array():
    params = SamplingParams(
        temperature=0.5,
        top_k=7,
        top_p=0.75,
        min_p=0.125,
        typical_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
    )
    entry = RowRequest(params, seed=2**64 - 1, position=2**40, target=3, num_logprobs=4)
    rows = make_rows([RowRequest(SamplingParams(), seed=0, position=0), entry], 100)
    expected = {"seed": 2**64 - 1, "position": 2**40, "target": 3, "num_logprobs": 4}
    for name in list(ARRAYS)[:8]:
        expected[name] = getattr(params, name)

    assert {name: getattr(rows, name)[1].item() for name in expected} == expected


@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_arrays_have_the_types_kernels_read(num_rows):
    rows = make_rows([RowRequest(SamplingParams(), seed=0, position=0)] * num_rows, 100)
    for name, dtype in ARRAYS.items():
        array = getattr(rows, name)

        assert array.dtype == dtype
        assert array.flags.c_contiguous
    assert rows.history_start.tolist() == rows.bias_start.tolist() == [0] * (num_rows + 1)
    assert rows.allowed is None


def test_rows_with_and_without_edits_share_a_step():
    penalized = SamplingParams(presence_penalty=1.0, logit_bias={5: 2.0, 3: -1.0})
    rows = make_rows(
        [
            RowRequest(SamplingParams(), seed=0, position=0, prompt_tokens=[9], output_tokens=[9]),
            RowRequest(
                penalized, seed=0, position=2, prompt_tokens=[4, 1, 4], output_tokens=[7, 4], banned=[8]
            ),
            RowRequest(SamplingParams(), seed=0, position=0, banned=(2,)),
        ],
        100,
    )

    assert rows.history_start.tolist() == [0, 0, 3, 3]
    assert dict(zip(rows.history_token.tolist(), rows.history_count.tolist(), strict=True)) == {
        1: 0,
        4: 1,
        7: 1,
    }
    assert rows.bias_start.tolist() == [0, 0, 3, 4]
    assert rows.bias_token.tolist() == [3, 5, 8, 2]
    assert rows.bias_value.tolist() == [-1, 2, -INF, -INF]


def test_a_history_grows_with_its_list_and_starts_over_when_it_is_cut():
    history = History(range(5, 40))
    output = [3, 5]
    outputs = [list(output)]
    for step in ([3], list(range(60, 120)), None, [60]):
        if step is None:
            del output[2:]
        else:
            output += step
        outputs.append(list(output))
        tokens, counts = history.of(output)

        expected = dict.fromkeys(range(5, 40), 0)
        for token in output:
            expected[token] = expected.get(token, 0) + 1
        assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == expected


def test_a_history_tells_drafted_ends_apart():
    history = History([1])
    for drafted in ([2, 3], [2, 4], [2]):
        tokens, counts = history.of(list(drafted))

        assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == {1: 0, **dict.fromkeys(drafted, 1)}


def test_a_mask_holds_a_bit_for_each_token():
    assert make_mask([0, 33, 63, 64], 70).tolist() == [1, 1 << 1 | 1 << 31, 1]


def test_an_allowed_list_and_a_grammar_both_bind():
    params = SamplingParams(allowed_token_ids=(1, 40))
    grammar = make_mask([40, 41], 50)
    entries = [
        RowRequest(params, seed=0, position=0, mask=grammar),
        RowRequest(params, seed=0, position=0),
        RowRequest(SamplingParams(), seed=0, position=0, mask=grammar),
        RowRequest(SamplingParams(), seed=0, position=0),
    ]
    for _ in range(2):  # the second time from what was kept
        rows = make_rows(entries, 50)

        assert rows.allowed is not None
        assert rows.allowed.tolist() == [[0, 1 << 8], [2, 1 << 8], [0, 3 << 8], [0xFFFFFFFF] * 2]


def test_a_top_k_beyond_every_vocabulary_fits_its_array():
    rows = make_rows([RowRequest(SamplingParams(top_k=2**62), seed=0, position=0)], 100)

    assert rows.top_k[0] >= 100


def same(rows, expected):
    return all(getattr(rows, name).tolist() == getattr(expected, name).tolist() for name in ARRAYS)


def test_where_the_same_requests_come_again_only_their_positions_are_made():
    maker = RowMaker(100)
    entries = [RowRequest(SamplingParams(temperature=0.5, seed=i), seed=i, position=i) for i in range(3)]
    first = maker.make(entries)
    for entry in entries:
        entry.position += 1
    second = maker.make(list(entries))

    assert second.temperature is first.temperature
    assert first.position.tolist() == [0, 1, 2]  # what was handed out stays as it was
    assert same(second, make_rows(entries, 100))


def test_other_requests_another_order_and_edits_are_made_anew():
    maker = RowMaker(100)
    a, b, c = (RowRequest(SamplingParams(temperature=0.5 + i), seed=i, position=i) for i in range(3))
    maker.make([a, b])
    for entries in ([b, a], [a], [a, c], [a, b, c], []):
        assert same(maker.make(entries), make_rows(entries, 100))
    maker.make([a, b])
    b.banned = [7]

    assert maker.make([a, b]).bias_token.tolist() == [7]
    assert len(maker.make([]).seed) == 0
    assert maker.make([a, b]).bias_token.tolist() == [7]
    b.banned = ()
    assert maker.make([a, b]).bias_token.tolist() == []
    a.mask = make_mask([5], 100)
    masks = maker.make([a, b]).allowed
    assert masks is not None
    assert masks[0].tolist() == a.mask.tolist()
    a.mask = None
    assert maker.make([a, b]).allowed is None
