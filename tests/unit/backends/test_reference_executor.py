"""The reference executor refuses weights that do not fit, draws with its sampler, returns taps."""

import numpy as np
import pytest
from tests.parity.steps import greedy_rows

from penstock.backends.reference.executor import ReferenceExecutor
from penstock.errors import EngineError
from penstock.model.build import build
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec, NormSpec
from penstock.step import StepInput

ATTENTION = AttentionSpec(num_heads=2, num_kv_heads=1, head_dim=8, scale=0.35)
LAYER = LayerSpec(ATTENTION, MLPSpec(24), NormSpec(1e-5))
SPEC = ModelSpec(16, 30, (LAYER,), NormSpec(1e-5), 64, True)
PROGRAM = build(SPEC, weight_format="float32", head_format="float32", kv_dtype="float32", max_context=64)


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {use.name: rng.standard_normal(use.shape, np.float32) for use in PROGRAM.weights.values()}


def step(tokens: list[int], taps: tuple[str, ...] = ()) -> StepInput:
    count = len(tokens)
    return StepInput(
        tokens=np.array(tokens, np.int32),
        positions=np.arange(count, dtype=np.int32),
        query_start=np.array([0, count], np.int32),
        context_len=np.array([count], np.int32),
        block_tables=(np.array([[2, 0]], np.int32),),
        logit_rows=np.array([count - 1], np.int32),
        sampling=greedy_rows(1),
        taps=taps,
    )


def test_logits_are_of_the_rows_that_were_asked_for():
    executor = ReferenceExecutor(PROGRAM, weights(), num_kv_blocks=[3], block_size=4)
    output = executor.forward(step([5, 6, 7], taps=("logits", "layers.0.after_mlp")))

    assert output.taps["logits"].shape == (1, 30)
    assert output.taps["layers.0.after_mlp"].shape == (3, 16)
    assert output.sampled.tolist() == [int(output.taps["logits"][0].argmax())]


def test_the_sampler_is_the_one_that_was_given():
    seen = []

    def sampler(logits, rows):
        seen.append((logits.shape, len(rows.temperature)))
        return output

    default = ReferenceExecutor(PROGRAM, weights(), num_kv_blocks=[3], block_size=4)
    output = default.forward(step([1, 2]))
    executor = ReferenceExecutor(PROGRAM, weights(), num_kv_blocks=[3], block_size=4, sampler=sampler)

    assert executor.forward(step([9, 9])).sampled is output.sampled
    assert seen == [((1, 30), 1)]


def test_missing_and_misshapen_weights_are_named():
    missing = {name: weight for name, weight in weights().items() if name != "final_norm"}
    with pytest.raises(EngineError, match="not given: final_norm"):
        ReferenceExecutor(PROGRAM, missing, num_kv_blocks=[3], block_size=4)
    misshapen = weights() | {"layers.0.attn.q": np.zeros((3, 3), np.float32)}
    with pytest.raises(EngineError, match=r"layers\.0\.attn\.q has shape \(3, 3\)"):
        ReferenceExecutor(PROGRAM, misshapen, num_kv_blocks=[3], block_size=4)


def test_it_says_what_it_is():
    executor = ReferenceExecutor(PROGRAM, weights(), num_kv_blocks=[3], block_size=4)

    assert executor.describe()["backend"] == "reference"
