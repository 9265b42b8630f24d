"""exp and log in float32, operation by operation as native/elementary.h does them: the sampler's twin needs
the same roundings, or a cut falls elsewhere. Called by `noise` and `sampler`; too slow for anything else.

A fused multiply-add is taken in float64 and rounded twice: it differs from one rounding once in about 2^29.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_LOG = (-1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1)
_LOG_LAST = (2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
_EXP = (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def _fma(a: Any, b: Any, c: Any) -> Floats:  # Any: arrays or numbers, each rounded to float32 first
    a, b, c = (np.asarray(x, np.float32).astype(np.float64) for x in (a, b, c))
    return np.asarray(a * b + c).astype(np.float32)


def exp(x: Floats) -> Floats:
    """e^x for x in [-87.3, 88.7]; 0 below, e^88.7 above. Cephes expf (S. Moshier)."""
    clamped = np.clip(x, np.float32(-87.3), np.float32(88.7))
    n = np.rint(clamped * np.float32(1.44269504088896341))
    f = _fma(n, -0.693359375, clamped)
    f = _fma(n, 2.12194440e-4, f)
    p = np.full_like(f, 1.9875691500e-4)
    for coefficient in _EXP:
        p = _fma(p, f, coefficient)
    p = _fma(p, f * f, f) + np.float32(1)
    return np.where(x < np.float32(-87.3), np.float32(0), np.ldexp(p, n.astype(np.int32)))


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
