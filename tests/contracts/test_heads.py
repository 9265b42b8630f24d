"""Products of each head with its own matrix: near the op, the same bits in any company and on every ISA."""

import numpy as np
import pytest
from tests.contracts.test_experts import OPERANDS, TOLERANCE, Step, aligned, random

from penstock.backends.cpu.kernels import refusals
from penstock.model.build import build
from penstock.model.family import read_model
from penstock.model.passes.fuse import fuse
from penstock.ops.contract import Array
from penstock.ops.heads import heads_linear, heads_operand
from penstock.weights.format import FORMATS

native = pytest.importorskip("penstock._native")
HEADS, WIDTH, OUT, ROWS = 5, 40, 96, 37
SHAPE = (HEADS * OUT, WIDTH)


def packed_weight(format: str) -> Array:
    return aligned(FORMATS[format].pack(random(*SHAPE) / np.float32(np.sqrt(WIDTH))))


def run(isa: str, format: str, x: Array, *, threads: int = 1) -> Array:
    step = Step(isa, x, threads=threads, max_rows=ROWS)
    each = step.operand(OPERANDS[format], WIDTH, HEADS * 48)  # rows of a head begin at a tile of 16
    out = step.floats(HEADS * OUT)
    step.native.heads_operand(step.embedded(), HEADS, each)
    packed = packed_weight(format)  # the program points into it
    step.native.heads_linear(packed, format, *SHAPE, HEADS, each, out)
    made: Array = step.run(out)[0]
    return made


@pytest.mark.parametrize("format", OPERANDS)
@pytest.mark.parametrize("isa", native.isas())
def test_each_head_is_near_the_op_and_a_row_has_the_same_bits_in_any_company(isa: str, format: str) -> None:
    x = random(ROWS, HEADS * WIDTH)
    whole = run(isa, format, x, threads=2)
    weight = FORMATS[format].unpack(packed_weight(format), *SHAPE)
    expected = heads_linear(heads_operand(x, num_heads=HEADS, to=OPERANDS[format]), weight, num_heads=HEADS)

    assert np.abs(whole - expected).max() < TOLERANCE[OPERANDS[format]] * np.abs(expected).max()
    assert whole.tobytes() == run(native.isas()[0], format, x).tobytes()
    for count in (1, 15, 17):
        assert run(isa, format, x[:count]).tobytes() == whole[:count].tobytes()


@pytest.mark.parametrize(("value_dim", "latent_dim", "columns"), [(48, 64, 48), (32, 80, 80), (32, 64, 0)])
def test_heads_that_are_no_whole_panels_are_refused_by_name(
    value_dim: int, latent_dim: int, columns: int
) -> None:
    spec = read_model(
        {
            "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
            "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 64, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 64, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
            "topk_group": 1, "moe_intermediate_size": 32, "q_lora_rank": 24, "kv_lora_rank": latent_dim,
            "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": value_dim,
        }
    )  # fmt: skip
    found = refusals(
        fuse(build(spec, weight_format="int8", head_format="int8", kv_dtype="bfloat16", max_context=64))
    )

    assert found == ([f"heads of {columns} columns are no whole panels of 32"] if columns else [])
