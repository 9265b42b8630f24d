"""Rounding to bfloat16 and through int8 codes, against ml_dtypes and by hand."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ops.rounding import operand, through_int8, to_bfloat16

BITS = st.integers(0, 2**32 - 1)


@given(bits=st.lists(BITS, min_size=1, max_size=64))
def test_bfloat16_is_nearest_even_with_denormals_flushed(bits):
    x = np.array(bits, np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    is_denormal = (np.array(bits, np.uint32) & 0x7F800000) == 0
    expected = np.where(is_denormal, np.copysign(np.float32(0), x), expected)
    actual = to_bfloat16(x)
    is_number = ~np.isnan(x)

    assert actual[is_number].tobytes() == expected[is_number].tobytes()
    assert np.isnan(actual[~is_number]).all()


def test_ties_go_to_the_even_neighbour():
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], np.float32)

    assert to_bfloat16(x).tolist() == [1.0, 1 + 2**-6, -1.0]


def test_int8_codes_are_per_row_and_128_values():
    x = np.zeros((2, 200), np.float32)
    x[0, :128] = np.arange(128)  # amax 127: the codes are the values
    x[0, 128:] = 0.5
    x[1, 0] = 1000.0
    x[1, 1] = 3.0  # below half a step of 1000 / 127
    y = through_int8(x)

    assert np.allclose(y[0, :128], np.arange(128), rtol=1e-6)
    assert np.allclose(y[0, 128:], 0.5, rtol=1e-6)
    assert y[1, :2].tolist() == pytest.approx([1000.0, 0.0])


def test_int8_of_zeros_is_zero():
    assert not through_int8(np.zeros((1, 130), np.float32)).any()


@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=140))
def test_int8_errs_by_at_most_half_a_step(values):
    x = np.array([values], np.float32)
    amax = np.abs(x).max()

    assert np.abs(operand(x, to="int8") - x).max() <= max(amax * (0.5 / 127 + 1e-6), 2.0**-118)


def test_float32_is_left_alone():
    x = np.array([[1e-40, 0.1]], np.float32)

    assert operand(x, to="float32").tobytes() == x.tobytes()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_block_that_is_not_finite_spoils_itself_and_no_other(poison):
    x = np.ones((2, 256), np.float32)
    x[0, 5] = poison
    y = through_int8(x)

    assert np.isnan(y[0, :128]).all()
    assert np.allclose(y[0, 128:], 1)
    assert np.allclose(y[1], 1)
