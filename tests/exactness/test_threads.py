"""More workers than cores, workers that come late, pools that come and go: the same bytes, and no race.

Also what runs under ThreadSanitizer (tools/build_variants.sh thread), so it stays small.
"""

import numpy as np
import pytest

from penstock import LLM, SamplingParams

_native = pytest.importorskip("penstock._native", reason="no native build")
PROMPTS = ["def f(", "import os\n", "class Stack:\n    ", "# Read a file\n"]
PARAMS = SamplingParams(max_tokens=12, temperature=0.8, seed=5, logprobs=2, ignore_eos=True)


def drawn(threads: int) -> list[object]:
    llm = LLM("penstock-tiny", threads=threads, max_context=256, max_requests=4)
    answers = llm.generate(PROMPTS, PARAMS)
    return [(output.token_ids, output.logprobs) for answer in answers for output in answer.outputs]


@pytest.mark.parametrize("threads", [2, 5])
def test_any_number_of_workers_draws_the_same(threads: int) -> None:
    assert drawn(threads) == drawn(1)


def test_pools_that_come_and_go_pack_the_same_bytes() -> None:
    weights = np.random.default_rng(1).standard_normal((160, 256)).astype(np.float32)
    packed = []
    for workers in (1, 2, 3, 7, 2, 1):
        out = np.zeros(5 * _native.panel_bytes("int4_g64", 256) + 64, np.uint8)
        out = out[-out.ctypes.data % 64 :][: 5 * _native.panel_bytes("int4_g64", 256)]
        for _ in range(20):
            assert _native.Pool(workers).pack(weights, "float32", "int4_g64", out)
        packed.append(out.tobytes())

    assert len(set(packed)) == 1
