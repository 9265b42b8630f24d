"""`penstock bench kernels` on a stack small enough for a test: rows, their shares, what is refused."""

import json

import pytest
from tests.unit.cli.conftest import here  # noqa: F401  # the command line in this process

from penstock.bench import kernels, stack
from penstock.bench.kernels import ROWS, Steal, cases
from penstock.bench.record import append, read
from penstock.weights.format import FORMATS


@pytest.fixture
def small(monkeypatch):
    """Cases of one layer and a narrow shape."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 32, "vocab_size": 1000}  # fmt: skip
    monkeypatch.setattr(stack, "SHAPE", stack.SHAPE | shape)
    monkeypatch.setattr(kernels, "WEIGHT_BYTES", 1)
    monkeypatch.setattr(kernels, "ATTENTION_LAYERS", 1)
    monkeypatch.setattr(kernels, "CONTEXTS", ((1, 1, 200), (1, 65, 130)))


def test_there_is_a_case_for_every_format_and_number_of_rows_and_for_attention_and_the_sampler():
    names = [case.name for case in cases()]

    assert len(names) == len(set(names))
    assert sum(name.startswith("int4_g32 ") for name in names) == len(ROWS)
    assert sum(name.startswith("attention") for name in names) == 2 * len(kernels.CONTEXTS)
    assert {case.logits for case in cases("sampler")} == {"flat", "peaked"}


@pytest.mark.parametrize("name", [*kernels.FORMATS, *(f"faithful {name}" for name in kernels.FAITHFUL)])
def test_rows_tell_time_rate_and_share_of_both_limits(here, small, name):  # noqa: F811
    result = here("bench", "kernels", "--json", "--filter", f"^{name} rows=2$", "--repeats", "2")
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in result.out.splitlines()]
    linears = [row for row in rows if row["kernel"] == "linear mlp.gate_up"]

    assert [row["rows"] for row in linears] == [2]
    for row in linears:
        weight_bytes = 2 * 256 * 128 * FORMATS[name.removeprefix("faithful ")].bytes_per_weight(128)
        assert row["gbps"] * row["us"] * 1e3 == pytest.approx(weight_bytes)
        assert row["gops"] * row["us"] * 1e3 == pytest.approx(2 * 2 * 2 * 256 * 128)
        assert row["of_read"] > 0
        assert row["of_peak"] > 0
        assert {"date", "commit", "isa", "threads", "steal"} <= row.keys()
    assert {"layer linears", "sample", "attention", "norm_operand"} <= {row["kernel"] for row in rows}


def test_attention_and_sampler_cases_give_their_kernel_alone(here, small, tmp_path):  # noqa: F811
    out = tmp_path / "rows.jsonl"
    for text in ("attention", "sampler"):
        result = here("bench", "kernels", "--filter", text, "--repeats", "1", "--out", str(out))
        assert result.code == 0, result.err
    rows = read(out)

    assert {row["kernel"] for row in rows} == {"attention", "sample"}
    assert len(rows) == len(cases("attention")) + len(cases("sampler"))
    assert all(row["us_per_row"] > 0 for row in rows if row["kernel"] == "sample")


def test_a_profile_is_printed_instead_of_rows_where_it_is_asked_for(here, small):  # noqa: F811
    result = here("bench", "kernels", "--filter", "int8 rows=1", "--repeats", "1", "--profile")

    assert result.code == 0, result.err
    assert "whole step" in result.out


def test_what_cannot_be_timed_is_refused(here):  # noqa: F811
    assert "no case is called so" in here("bench", "kernels", "--filter", "int5").err
    assert "no regular expression" in here("bench", "kernels", "--filter", "int4(").err
    assert "at least one step" in here("bench", "kernels", "--repeats", "0").err


def test_a_line_cut_off_by_an_interruption_is_left_out(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    assert read(path) == []
    append(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"b": ')

    assert read(path) == [{"a": 1}]


def test_steal_is_the_hosts_share_of_the_time_between(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 0 10 100 0 0 0 5 0 0\ncpu0 1\n")
    steal = Steal(stat)
    stat.write_text("cpu  60 0 20 120 0 0 0 25 0 0\ncpu0 1\n")

    assert steal.share() == pytest.approx(20 / 100)
    stat.unlink()
    assert Steal(stat).share() == 0
