"""Rounding points: where a float32 value becomes an operand of a matrix product or enters the KV cache.

They are calls of the program, so that no pass and no kernel decides precision. DESIGN.md section 2.
"""

from typing import Final

import numpy as np

from penstock.ops.contract import Array, op

INT8_BLOCK: Final = 128  # values of a row that share one int8 scale
INT8_SMALLEST: Final = np.float32(2**-118)  # smaller blocks are zero: 127 / amax must be finite
_MANTISSA_MASK: Final = np.uint32(0xFFFF0000)


def to_bfloat16(x: Array) -> Array:
    """The nearest bfloat16 of each float32, ties to even, denormals flushed to a zero of their sign."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & _MANTISSA_MASK
    exponent = bits & np.uint32(0x7F800000)
    is_nan = (exponent == 0x7F800000) & ((bits & np.uint32(0x007FFFFF)) != 0)
    rounded = np.where(is_nan, (bits | np.uint32(0x00400000)) & _MANTISSA_MASK, rounded)
    rounded = np.where(exponent == 0, bits & np.uint32(0x80000000), rounded)
    return rounded.astype(np.uint32).view(np.float32)


def through_int8(x: Array) -> Array:
    """Every row, 128 values at a time, as int8 codes times a scale: rne(x * (127 / amax)) * (amax / 127).

    A block that holds NaN or Inf is all NaN.
    """
    y = np.empty_like(x, dtype=np.float32)
    for begin in range(0, x.shape[1], INT8_BLOCK):
        block = x[:, begin : begin + INT8_BLOCK]
        amax = np.abs(block).max(axis=1, keepdims=True)
        inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax >= INT8_SMALLEST)
        code = np.rint(np.where(np.isfinite(amax), block, np.float32(0)) * inverse)
        scale = np.where(np.isfinite(amax), amax * np.float32(1 / 127), np.float32(np.nan))
        y[:, begin : begin + INT8_BLOCK] = code * scale
    return y


@op(
    dims="x[T,K] -> y[T,K]",
    tolerance={"float32": 0.0, "bfloat16": 0.0, "int8": 0.0},
    flops=lambda d: d["T"] * d["K"],
)
def operand(x: Array, *, to: str) -> Array:
    """What a matrix product reads of `x` under its arithmetic contract.

    float32: x itself. bfloat16: rounded to nearest even, denormals flushed. int8: coded per row and 128
    of K, straight from float32; the reference returns what the codes stand for.
    """
    if to == "float32":
        return x
    return to_bfloat16(x) if to == "bfloat16" else through_int8(x)


@op(
    name="round",
    dims="x[T,K] -> y[T,K]",
    tolerance={"float32": 0.0, "bfloat16": 0.0},
    flops=lambda d: d["T"] * d["K"],
)
def round_to(x: Array, *, to: str) -> Array:
    """x as the KV cache and attention hold it: bfloat16, or untouched where the cache is float32."""
    return x if to == "float32" else to_bfloat16(x)
