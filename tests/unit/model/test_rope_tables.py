"""Rotary tables: frequencies against transformers', cos and sin against libm, the same bits everywhere."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.model.config_reader import ConfigReader
from penstock.model.rope import attention_factor, cos_sin, inverse_frequencies, rope_tables
from penstock.model.rope_config import read_rope
from penstock.model.spec import RopeSpec

GOLDENS = json.loads((Path(__file__).parents[2] / "goldens" / "rope.json").read_text())
PLAIN = RopeSpec(rotary_dim=64, theta=10000.0, max_position=4096)


def spec_of(golden: dict) -> RopeSpec:
    return read_rope(ConfigReader(golden), golden["head_dim"])


@pytest.mark.parametrize("name", GOLDENS)
def test_frequencies_are_those_of_transformers(name):
    golden = GOLDENS[name]
    actual = inverse_frequencies(spec_of(golden), golden["max_context"])

    assert actual == pytest.approx(np.array(golden["inverse_frequencies"]), rel=5e-6)


@pytest.mark.parametrize("name", GOLDENS)
def test_attention_factors_are_those_of_transformers(name):
    assert attention_factor(spec_of(GOLDENS[name])) == pytest.approx(
        GOLDENS[name]["attention_factor"], rel=1e-12
    )


@pytest.mark.parametrize("name", GOLDENS)
def test_both_spellings_give_one_spec(name):
    golden = GOLDENS[name]
    block = dict(golden["rope_parameters"])
    old = {
        "max_position_embeddings": golden["max_position_embeddings"],
        "rope_theta": block.pop("rope_theta"),
        "rope_scaling": {"type" if k == "rope_type" else k: v for k, v in block.items()},
    }

    assert read_rope(ConfigReader(old), golden["head_dim"]) == spec_of(golden)


def test_cos_and_sin_are_right_to_the_last_bits_of_float64():
    rng = np.random.default_rng(0)
    angles = np.concatenate([rng.uniform(0, 10, 20000), rng.uniform(0, 2**24, 20000), np.arange(5000.0)])
    angles = angles.astype(np.float32)
    cos, sin = cos_sin(angles)

    assert np.abs(cos - np.cos(angles.astype(np.float64))).max() < 2e-15
    assert np.abs(sin - np.sin(angles.astype(np.float64))).max() < 2e-15


def test_angles_next_to_a_multiple_of_half_pi_keep_their_relative_accuracy():
    multiples = np.arange(1, 200000) * (np.pi / 2)
    angles = multiples.astype(np.float32)
    cos, sin = cos_sin(angles)
    small = np.minimum(np.abs(cos), np.abs(sin))
    exact = np.minimum(*np.abs([np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))]))

    assert (np.abs(small - exact) <= 2**-26 * exact + 1e-16).all()


def test_tables_hold_cos_and_sin_of_float32_angles_times_the_factor():
    spec = replace(PLAIN, kind="yarn", factor=4.0, original_max_position=1024)
    cos, sin = rope_tables(spec, 3000)
    angles = np.arange(3000, dtype=np.float32)[:, None] * inverse_frequencies(spec, 3000)
    factor = 1 + 0.1 * np.log(4.0)

    assert cos.shape == sin.shape == (3000, 32)
    assert np.abs(cos - factor * np.cos(angles.astype(np.float64))).max() < 2e-7
    assert np.abs(sin - factor * np.sin(angles.astype(np.float64))).max() < 2e-7


def test_a_row_of_the_table_depends_on_its_position_alone():
    long, short = rope_tables(PLAIN, 2100), rope_tables(PLAIN, 7)

    assert long[0][:7].tobytes() == short[0].tobytes()
    assert long[1][:7].tobytes() == short[1].tobytes()


def test_dynamic_and_longrope_take_the_length_they_are_loaded_for():
    dynamic = replace(PLAIN, kind="dynamic", factor=2.0)
    long = replace(
        PLAIN,
        kind="longrope",
        original_max_position=2048,
        short_factor=(1.0,) * 32,
        long_factor=(2.0,) * 32,
    )

    assert np.array_equal(inverse_frequencies(dynamic, 10), inverse_frequencies(PLAIN, 10))
    assert inverse_frequencies(dynamic, 8192)[-1] < inverse_frequencies(dynamic, 4096)[-1]
    assert np.array_equal(inverse_frequencies(long, 2048), inverse_frequencies(PLAIN, 10))
    assert np.array_equal(inverse_frequencies(long, 2049) * 2, inverse_frequencies(PLAIN, 10))


def test_the_bits_of_a_table_are_a_constant_of_nature():
    digest = hashlib.sha256(b"".join(t.tobytes() for t in rope_tables(PLAIN, 4096))).hexdigest()

    assert digest == "1659c515d59df265fa7e4e101ac588e19384a0b28c320e6e6b1d8918dd984518"
