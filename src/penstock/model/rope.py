"""Rotary positions: RopeSpec -> cos and sin tables, the same bits on every platform.

`model.build` puts the tables into the program as constants. Inverse frequencies are computed with
`decimal` and rounded once to float32, angles are float32(position * frequency), cos and sin come from
polynomials in float64 after an exact reduction, rounded to float32: no libm, no numpy transcendental.
The formulas are those of the published code of each method. `dynamic` and `longrope` depend on a
length: it is `max_context`, fixed at load, never a request's own length.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from typing import Final

import numpy as np
import numpy.typing as npt

from penstock.model.spec import RopeSpec

Float64s = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Frequencies = list[Decimal]

MAX_ANGLE: Final = 2**24  # the reduction is exact below; a context is at most as long
_DIGITS: Final = 40
_PI: Final = Decimal("3.14159265358979323846264338327950288419716939937511")
_ROWS_AT_A_TIME: Final = 2048  # positions; keeps the temporaries in the processor's cache


def rope_tables(spec: RopeSpec, max_context: int) -> tuple[Float32s, Float32s]:
    """cos and sin, [max_context, rotary_dim / 2], times the attention factor of the kind."""
    frequencies = inverse_frequencies(spec, max_context)
    scale = np.float32(attention_factor(spec))
    cos = np.empty((max_context, len(frequencies)), np.float32)
    sin = np.empty_like(cos)
    for begin in range(0, max_context, _ROWS_AT_A_TIME):
        end = min(begin + _ROWS_AT_A_TIME, max_context)
        angles = np.arange(begin, end, dtype=np.float32)[:, None] * frequencies
        cosine, sine = cos_sin(angles)
        cos[begin:end] = cosine.astype(np.float32) * scale
        sin[begin:end] = sine.astype(np.float32) * scale
    return cos, sin


def inverse_frequencies(spec: RopeSpec, max_context: int) -> Float32s:
    """Radians per position of every pair, [rotary_dim / 2]."""
    with localcontext() as context:
        context.prec = _DIGITS
        frequencies = _KINDS[spec.kind](spec, max_context)
    return np.array([np.float32(float(f)) for f in frequencies], np.float32)


def attention_factor(spec: RopeSpec) -> float:
    """What cos and sin are multiplied by: 1 but for yarn and longrope."""
    if spec.attention_factor is not None:
        return spec.attention_factor
    with localcontext() as context:
        context.prec = _DIGITS
        if spec.kind == "yarn":
            if spec.mscale and spec.mscale_all_dim:
                return float(_mscale(spec, spec.mscale) / _mscale(spec, spec.mscale_all_dim))
            return float(_mscale(spec, 1.0))
        if spec.kind == "longrope" and spec.factor > 1:
            ratio = Decimal(spec.factor).ln() / Decimal(spec.original_max_position).ln()
            return float((1 + ratio).sqrt())
    return 1.0


def attention_scale(spec: RopeSpec) -> float:
    """A factor of the scores, where yarn scales all dims of a head and not only those that turn; else 1."""
    if spec.kind != "yarn" or not spec.mscale_all_dim:
        return 1.0
    with localcontext() as context:
        context.prec = _DIGITS
        return float(_mscale(spec, spec.mscale_all_dim) ** 2)


def _mscale(spec: RopeSpec, mscale: float) -> Decimal:
    if spec.factor <= 1:
        return Decimal(1)
    return Decimal("0.1") * Decimal(mscale) * Decimal(spec.factor).ln() + 1


def _powers(theta: Decimal, rotary_dim: int) -> list[Decimal]:
    """theta ** (2i / rotary_dim): the wavelengths over 2 pi."""
    ln_theta = theta.ln()
    return [(ln_theta * 2 * i / rotary_dim).exp() for i in range(rotary_dim // 2)]


def _default(spec: RopeSpec, max_context: int) -> Frequencies:  # noqa: ARG001 one signature for all kinds
    """Su et al. 2021, arXiv:2104.09864."""
    return [1 / power for power in _powers(Decimal(spec.theta), spec.rotary_dim)]


def _linear(spec: RopeSpec, max_context: int) -> Frequencies:
    """Position interpolation. Chen et al. 2023, arXiv:2306.15595."""
    return [f / Decimal(spec.factor) for f in _default(spec, max_context)]


def _dynamic(spec: RopeSpec, max_context: int) -> Frequencies:
    """NTK-aware: the base grows with the length; the slowest pair is interpolated, the fastest is not."""
    length = max(max_context, spec.max_position)
    factor = Decimal(spec.factor)
    growth = factor * length / spec.max_position - (factor - 1)
    exponent = Decimal(spec.rotary_dim) / (spec.rotary_dim - 2)
    theta = Decimal(spec.theta) * (growth.ln() * exponent).exp()
    return [1 / power for power in _powers(theta, spec.rotary_dim)]


def _llama3(spec: RopeSpec, max_context: int) -> Frequencies:
    """Slow pairs are interpolated, fast ones kept, those between blended. Llama 3.1, arXiv:2407.21783."""
    factor, low, high = (Decimal(v) for v in (spec.factor, spec.low_freq_factor, spec.high_freq_factor))
    frequencies = []
    for f in _default(spec, max_context):
        rotations = spec.original_max_position * f / (2 * _PI)  # in the length first trained at
        if rotations > high:
            frequencies.append(f)
        elif rotations < low:
            frequencies.append(f / factor)
        else:
            smooth = (rotations - low) / (high - low)
            frequencies.append((1 - smooth) * f / factor + smooth * f)
    return frequencies


def _yarn(spec: RopeSpec, max_context: int) -> Frequencies:
    """Interpolated and kept pairs blended by a ramp over the dims. Peng et al. 2023, arXiv:2309.00071."""
    half = spec.rotary_dim // 2

    def dim_of(num_rotations: float) -> Decimal:
        ratio = Decimal(spec.original_max_position) / (Decimal(num_rotations) * 2 * _PI)
        return spec.rotary_dim * ratio.ln() / (2 * Decimal(spec.theta).ln())

    low, high = dim_of(spec.beta_fast), dim_of(spec.beta_slow)
    if spec.truncate:
        low, high = low.to_integral_value("ROUND_FLOOR"), high.to_integral_value("ROUND_CEILING")
    low, high = max(low, Decimal(0)), min(high, Decimal(spec.rotary_dim - 1))
    if low == high:
        high += Decimal("0.001")
    kept = _default(spec, max_context)
    frequencies = []
    for i in range(half):
        ramp = min(max((i - low) / (high - low), Decimal(0)), Decimal(1))
        frequencies.append(kept[i] / Decimal(spec.factor) * ramp + kept[i] * (1 - ramp))
    return frequencies


def _longrope(spec: RopeSpec, max_context: int) -> Frequencies:
    """One searched factor per pair, a set for short and one for long. Ding et al. 2024, arXiv:2402.13753."""
    factors = spec.long_factor if max_context > spec.original_max_position else spec.short_factor
    return [f / Decimal(factor) for f, factor in zip(_default(spec, max_context), factors, strict=True)]


_KINDS: Final[Mapping[str, Callable[[RopeSpec, int], Frequencies]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
ROPE_KINDS: Final = tuple(_KINDS)


# pi/2 in parts of 28 bits (the last: what is left), so that a part times a 24-bit count is exact in float64.
_HALF_PI_PARTS: Final = (
    float.fromhex("0x1.921fb54p+0"),
    float.fromhex("0x1.10b461p-30"),
    float.fromhex("0x1.a62633145c06ep-58"),
)
# Minimax polynomials on [-pi/4, pi/4], error below 2**-58: fdlibm k_sin.c, k_cos.c (Sun Microsystems 1993).
_SIN: Final = (
    -1.66666666666666324348e-01,
    8.33333333332248946124e-03,
    -1.98412698298579493134e-04,
    2.75573137070700676789e-06,
    -2.50507602534068634195e-08,
    1.58969099521155010221e-10,
)
_COS: Final = (
    4.16666666666666019037e-02,
    -1.38888888888741095749e-03,
    2.48015872894767294178e-05,
    -2.75573143513906633035e-07,
    2.08757232129817482790e-09,
    -1.13596475577881948265e-11,
)


def cos_sin(angles: Float32s) -> tuple[Float64s, Float64s]:
    """cos and sin of float32 angles in [0, 2**24), within 2**-50, from additions and products alone."""
    x = angles.astype(np.float64)
    quarter = np.rint(x * 0.63661977236758134308)
    r = x - quarter * _HALF_PI_PARTS[0]
    r = r - quarter * _HALF_PI_PARTS[1]
    r = r - quarter * _HALF_PI_PARTS[2]
    z = r * r
    sine = r + r * z * _horner(_SIN, z)
    cosine = 1.0 - (0.5 * z - z * z * _horner(_COS, z))
    which = quarter.astype(np.int64) & 3
    is_swapped = (which & 1) == 1
    cos = np.where(is_swapped, sine, cosine)
    sin = np.where(is_swapped, cosine, sine)
    cos = np.where((which == 1) | (which == 2), -cos, cos)
    sin = np.where(which >= 2, -sin, sin)
    return cos, sin


def _horner(coefficients: tuple[float, ...], z: Float64s) -> Float64s:
    y = np.full_like(z, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        y = y * z + c
    return y
