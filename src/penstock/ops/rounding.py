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


def int8_codes(block: Array) -> tuple[Array, Array]:
    """Codes rne(x * (127 / amax)) and scales amax / 127 of each row; both 0 where amax is tiny.

    A row that holds NaN or Inf has the scale NaN.
    """
    amax = np.abs(block).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax >= INT8_SMALLEST)
    code = np.rint(np.where(np.isfinite(amax), block, np.float32(0)) * inverse) + np.float32(0)  # no -0
    scale = np.where(amax >= INT8_SMALLEST, amax * np.float32(1 / 127), np.float32(0))
    return code, np.where(np.isfinite(amax), scale, np.float32(np.nan))


def through_int8(x: Array, *, block_size: int = INT8_BLOCK) -> Array:
    """Every row, `block_size` values at a time, as what its int8 codes stand for: code * scale."""
    y = np.empty_like(x, dtype=np.float32)
    for begin in range(0, x.shape[1], block_size):
        code, scale = int8_codes(x[:, begin : begin + block_size])
        y[:, begin : begin + block_size] = code * scale
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
    tolerance={"float32": 0.0, "bfloat16": 0.0, "int8": 0.0},
    flops=lambda d: d["T"] * d["K"],
)
def round_to(x: Array, *, to: str, head_dim: int = 0) -> Array:
    """x as attention and the KV cache hold it: bfloat16, or untouched where the cache is float32.

    int8, which only a cache is: coded per row and head of `head_dim`; the reference returns what the codes
    stand for.
    """
    if to == "int8":
        return through_int8(x, block_size=head_dim)
    return x if to == "float32" else to_bfloat16(x)
