"""How far two engines' logits of the same text are apart. Used by `bench peers`."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def distance(ours: Floats, theirs: Floats) -> dict[str, object]:
    """Of ours[N,V] from theirs[N,V], which are taken for the truth. KL(theirs || ours) in nats, per row.

    `rms`: root mean square of the differences over that of their logits, both without the rows' means (which
    change no probability). `top1`: the share of rows with the same most likely token.
    """
    assert ours.shape == theirs.shape, "the same rows of the same vocabulary"
    kl = np.array([_kl(t, o) for o, t in zip(ours, theirs, strict=True)])
    a, b = ours - ours.mean(axis=1, keepdims=True), theirs - theirs.mean(axis=1, keepdims=True)
    return {
        "rows": len(ours),
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
        "top1": float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        "max_error": float(np.abs(a - b).max()),
        "rms": float(np.sqrt(np.square(a - b).mean() / np.square(b).mean())),
    }


def _kl(truth: Floats, other: Floats) -> float:
    p, q = _log_softmax(truth), _log_softmax(other)
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(x: Floats) -> NDArray[np.float64]:
    shifted = x.astype(np.float64) - x.max()
    normalized: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return normalized
