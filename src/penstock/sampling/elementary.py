"""exp and log in float32, operation by operation as native/elementary.h and native/kernels/sampler_mass.h.

The sampler's twin needs the same roundings, or a cut falls elsewhere. Called by `noise` and `sampler`; too
slow for anything else.

A fused multiply-add is taken in float64 and rounded twice: it differs from one rounding once in about 2^29.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_LOG = (-1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1)
_LOG_LAST = (2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
_EXP2 = (0.0096715130, 0.0555073358, 0.2402224243, 0.6931470037, 1.0)  # 2^f for |f| <= 1/2, our own fit
_LOG2E = 1.44269504088896341
_MAGIC = 12582952.0  # 1.5 * 2^23 + 40: adding it rounds to an integer


def _fma(a: Any, b: Any, c: Any) -> Floats:  # Any: arrays or numbers, each rounded to float32 first
    a, b, c = (np.asarray(x, np.float32).astype(np.float64) for x in (a, b, c))
    return np.asarray(a * b + c).astype(np.float32)


def exp(x: Floats) -> Floats:
    """e^x for x in [-29, 0] within 6e-7; e^-29 below, NaN included."""
    clamped = np.where(x > np.float32(-29), x, np.float32(-29))
    n = _fma(clamped, _LOG2E, _MAGIC) - np.float32(_MAGIC)
    f = _fma(clamped, _LOG2E, -n)
    p = np.full_like(f, 0.0013264726)
    for coefficient in _EXP2:
        p = _fma(p, f, coefficient)
    return np.ldexp(p, n.astype(np.int32))


def log_reduced(m: Floats, e: Floats) -> Floats:
    """ln(1 + m) + e ln 2 for m in [sqrt(1/2) - 1, sqrt(2) - 1). Cephes logf (S. Moshier)."""
    z = m * m
    p = np.full_like(m, 7.0376836292e-2)
    for coefficient in (*_LOG, *_LOG_LAST):
        p = _fma(p, m, coefficient)
    y = p * m * z
    y = _fma(e, -2.12194440e-4, y)
    y = _fma(z, -0.5, y)
    return _fma(e, 0.693359375, m + y)


def reduce(x: Floats) -> tuple[Floats, Floats]:
    """x = (1 + m) 2^e, with m as `log_reduced` wants it. For normal x > 0."""
    half, exponent = np.frexp(x)
    low = half < np.float32(0.707106781186547524)
    m = np.where(low, half + half, half) - np.float32(1)
    return m, (exponent - low).astype(np.float32)


def log(x: Floats) -> Floats:
    """ln x for normal x > 0."""
    return log_reduced(*reduce(x))
