"""Tables of docs/benchmarks.md: one per place, text around them untouched, figures as the rows have them."""

import json

import pytest
from tools import benchmark_tables


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_tables, "RESULTS", tmp_path)
    monkeypatch.setattr(benchmark_tables, "TABLES", {"kernels": benchmark_tables.kernels})
    row = {
        "date": "2026-01-02T03:04:05", "cpu": "A cpu", "isa": "avx512", "threads": 2,
        "kernel": "layer linears", "case": "int8 rows=1", "rows": 1, "of_read": 0.5, "of_peak": 0.25,
    }  # fmt: skip
    rows = [row, row | {"of_read": 0.875}, row | {"rows": 4, "date": "2026-01-05T03:04:05"}]
    (tmp_path / "kernels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_the_last_row_of_a_case_is_shown_and_the_text_around_stays(results):
    page = "before\n<!-- rows: kernels -->\nold\n<!-- end -->\nafter\n"
    new = benchmark_tables.rewritten(page)

    assert "| int8 | 88% / 25% | 50% / 25% |" in new
    assert "2026-01-02 to 2026-01-05" in new or "2026-01-05" in new
    assert "old" not in new
    assert new.startswith("before\n")
    assert new.endswith("<!-- end -->\nafter\n")
    assert benchmark_tables.rewritten(new) == new


def test_a_page_without_a_place_is_refused(results):
    with pytest.raises(AssertionError, match="no place for kernels"):
        benchmark_tables.rewritten("nothing here")


def test_the_page_of_the_project_has_every_place():
    page = benchmark_tables.PAGE.read_text()

    for name in benchmark_tables.TABLES:
        assert benchmark_tables.BEGIN.format(name) in page
