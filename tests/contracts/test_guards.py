"""No matrix product reads or writes a byte beyond its arrays: all of them end at a page that faults.

`_native.test_linear` and `test_sample` always work on such memory, so every contract test of theirs says it
too; here are the shapes that are most likely to: one row and one more than a tile, one panel, a short block
of K, and a last panel that is cut.
"""

import signal
import subprocess
import sys

import numpy as np
import pytest

_native = pytest.importorskip("penstock._native")

FORMATS = ("float32", "float16", "bfloat16", "int8", "int4_g32", "int4_g64", "int4_g128")


def test_a_byte_beyond_the_end_faults():
    code = "from penstock import _native; _native.test_read_past_the_end()"
    ended = subprocess.run([sys.executable, "-c", code], check=False)

    assert ended.returncode == -signal.SIGSEGV


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("weight_format", FORMATS)
def test_products_stay_within_their_arrays(weight_format, isa):
    rng = np.random.default_rng(3)
    for n, k in ((1, 64), (32, 64), (33, 192), (96, 704)):
        weights = rng.standard_normal((n, k), np.float32)
        packed = _native.pack(weight_format, weights, "float32")
        stored = _native.unpack(weight_format, packed, n, k)
        for rows in (1, 2, 3, 8, 9, 16, 17, 33):
            x = rng.standard_normal((rows, k), np.float32)
            y = _native.test_linear(isa, weight_format, packed, n, k, x, None, None)

            np.testing.assert_allclose(y, x @ stored.T, rtol=0, atol=0.06 * np.sqrt(k))
