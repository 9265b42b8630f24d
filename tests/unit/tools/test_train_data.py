"""The corpus of tools/train: a split that never moves, no text in two splits, no text twice."""

from pathlib import Path

import pytest
from tools.train.data import Document, collect, data_list, leaks, load, split_of, without_duplicates

TEXT = "def area(width, height):\n    return width * height\n# a text long enough to be kept\n"


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """A small standard library of twelve modules and documentation of three pages."""
    stdlib, docs = tmp_path / "stdlib", tmp_path / "docs" / "_sources"
    for number in range(12):
        _write(stdlib / "package" / f"module_{number}.py", f"{TEXT}# {number}\n")
    for number in range(3):
        _write(docs / "library" / f"page_{number}.rst.txt", f"Page {number}\n======\n{'A sentence. ' * 8}\n")
    return stdlib, docs


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("stdlib/argparse.py", "train"),
        ("stdlib/json/decoder.py", "test"),
        ("stdlib/selectors.py", "validation"),
        ("docs/library/json.rst.txt", "train"),
    ],
)
def test_the_split_of_a_known_file_never_moves(path: str, split: str) -> None:
    assert split_of(path) == split


def test_the_split_has_about_five_percent_test_and_three_percent_validation() -> None:
    splits = [split_of(f"stdlib/module_{number}.py") for number in range(20_000)]

    assert splits.count("test") / len(splits) == pytest.approx(0.05, abs=0.006)
    assert splits.count("validation") / len(splits) == pytest.approx(0.03, abs=0.005)


def test_adding_a_file_moves_no_other_file(sources: tuple[Path, Path]) -> None:
    before = {document.path: document.split for document in collect(*sources)}
    _write(sources[0] / "abc_new.py", f"{TEXT}# new\n")
    after = {document.path: document.split for document in collect(*sources)}

    assert len(after) == len(before) + 1
    assert {path: after[path] for path in before} == before


def test_a_text_that_occurs_twice_is_kept_once_under_its_first_path(sources: tuple[Path, Path]) -> None:
    _write(sources[0] / "package" / "zz_copy.py", f"{TEXT}# 3\n")
    paths = [document.path for document in collect(*sources)]

    assert "stdlib/package/module_3.py" in paths
    assert "stdlib/package/zz_copy.py" not in paths


def test_the_leakage_check_finds_one_text_in_two_splits() -> None:
    by_split = {split_of(f"stdlib/{number}.py"): f"stdlib/{number}.py" for number in range(200)}
    copies = [Document(by_split["train"], "code", TEXT), Document(by_split["test"], "code", TEXT)]

    assert leaks(copies) == [(by_split["train"], by_split["test"])]
    assert leaks(without_duplicates(copies)) == []


def test_tests_tables_and_build_settings_stay_out(sources: tuple[Path, Path]) -> None:
    table = f"{TEXT}decoding_table = (\n    '\\x00'\n)\n"
    kept = {document.path for document in collect(*sources)}
    for name in ("test/test_x.py", "package/tests/a.py", "site-packages/b.py", "_sysconfigdata__linux.py"):
        _write(sources[0] / name, f"{TEXT}# {name}\n")
    _write(sources[0] / "encodings" / "cp037.py", table)
    _write(sources[0] / "tables.py", table)

    assert {document.path for document in collect(*sources)} == kept | {"stdlib/tables.py"}


def test_the_order_on_disk_does_not_change_the_data_list(sources: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    for file in sorted(sources[0].rglob("*.py"), reverse=True):
        _write(other / file.relative_to(sources[0]), file.read_text())

    assert data_list(collect(other, sources[1])) == data_list(collect(*sources))


def test_the_data_list_counts_every_file_and_names_version_and_licence(sources: tuple[Path, Path]) -> None:
    _write(sources[1].parent / "_static" / "documentation_options.js", "var X = {\n    VERSION: '3.11.2',\n}")
    listed = data_list(collect(*sources), sources[1])["sources"]
    assert isinstance(listed, list)

    assert [sum(split["files"] for split in source["splits"].values()) for source in listed] == [12, 3]
    assert [source["licence"] for source in listed] == ["PSF-2.0", "PSF-2.0"]
    assert listed[1]["version"] == "3.11.2"


def test_missing_documentation_is_refused_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"install python3-doc or pass --docs"):
        load(tmp_path / "nowhere")
