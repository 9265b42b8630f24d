"""ggml's blocks as codes and scales: every value that the `gguf` package makes of them, bit for bit."""

import numpy as np
import pytest

from penstock.weights.format import FORMATS
from penstock.weights.gguf_blocks import FORMAT_OF, decode
from penstock.weights.gguf_file import TYPES

gguf = pytest.importorskip("gguf", reason="the gguf package is the judge; install the dev extra")

BY_NAME = {kind.name: kind for kind in TYPES.values()}


def random_rows(name: str, n: int, k: int, seed: int = 0) -> np.ndarray:
    """Any bytes are codes; scales are fp16 of ordinary size."""
    kind = BY_NAME[name]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n, k // kind.elements, kind.num_bytes), dtype=np.uint8)
    halves = {"Q4_0": [0], "Q5_0": [0], "Q8_0": [0], "Q6_K": [208]}.get(name, [0, 2])
    for at in halves:
        scale = (rng.standard_normal((n, k // kind.elements, 1)) / 8).astype(np.float16)
        blocks[:, :, at : at + 2] = scale.view(np.uint8).reshape(*scale.shape[:2], 2)
    return blocks.reshape(n, -1)


@pytest.mark.parametrize("name", FORMAT_OF)
def test_every_value_is_the_gguf_packages(name):
    rows = random_rows(name, 5, 768)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])

    assert decode(BY_NAME[name], rows).values().tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize("name", FORMAT_OF)
def test_packing_loses_nothing(name):
    coded = decode(BY_NAME[name], random_rows(name, 40, 768, seed=1))
    layout = FORMATS[FORMAT_OF[name]]

    assert layout.unpack(coded.coding.pack(coded), 40, 768).tobytes() == coded.values().tobytes()


def test_a_row_can_be_decoded_alone():
    rows = random_rows("Q5_K", 7, 512, seed=2)

    assert (decode(BY_NAME["Q5_K"], rows[3:4]).codes == decode(BY_NAME["Q5_K"], rows).codes[3:4]).all()
