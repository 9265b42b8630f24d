"""What lossy settings cost the embedded model: measured, printed, bounded, in the order they should have."""

import json

import numpy as np
from tests.exactness.checkpoints import SHAPES, write_checkpoint

from penstock.bench.quality import log_softmax, measure
from penstock.cli.main import main

TEXT = "def add(first, second):\n    return first + second\n\n\nclass Stack:\n    pass\n" * 20


def test_lossy_keys_and_values_hardly_change_what_the_model_says() -> None:
    exact, int8 = measure("penstock-tiny", TEXT, [{"kv_dtype": "int8"}], max_tokens=300)

    assert (exact.kl, exact.top1) == (0.0, 1.0)
    assert int8.kv_bytes_per_token <= 0.57 * exact.kv_bytes_per_token
    assert 0 < int8.kl < 2e-3
    assert int8.top1 > 0.97


def test_fewer_bits_cost_more() -> None:
    settings = [{"weights": "int8", "activations": "bfloat16"}, {"weights": "int4_g128"}]
    exact, int8, int4 = measure("penstock-tiny", TEXT, settings, max_tokens=300)

    assert int4.weight_bytes < int8.weight_bytes < exact.weight_bytes
    assert 0 < int8.kl < int4.kl < 1.0


def test_log_softmax_is_that_of_large_logits_too() -> None:
    rows = log_softmax(np.array([[1000.0, 1000.0], [0.0, -2000.0]], np.float32))

    assert np.allclose(rows, [[-np.log(2), -np.log(2)], [0.0, -2000.0]])


def test_the_verb_prints_a_row_for_each_setting(tmp_path, capsys) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "rows.jsonl"
    text.write_text(TEXT)
    asked = [
        "bench",
        "quality",
        "penstock-tiny",
        "--text",
        str(text),
        "--max-tokens",
        "64",
        "--out",
        str(out),
    ]

    assert main(asked) == 0

    rows = [json.loads(line) for line in out.read_text().splitlines()]
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(rows) == len(printed) > 12
    assert rows[0]["setting"] == {} and rows[0]["kl"] == 0


def test_settings_of_keys_and_values_are_left_out_where_a_model_keeps_states(tmp_path) -> None:
    folder = write_checkpoint(tmp_path / "states", SHAPES["mamba2"])
    settings = [{"kv_dtype": "int8"}, {"weights": "int8"}]
    rows = list(measure(str(folder), TEXT, settings, max_tokens=20))

    assert [row.setting for row in rows] == [{}, {"weights": "int8"}]
