"""The corpus of tools/train: a split that never moves, no text in two splits, no text twice."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from tools.train.data import Corpus, cleaned, data_list, load, split_of
from tools.train.duplicates import seen_shares
from tools.train.sources import Document, python_documents, python_sources


def collect(stdlib: Path, docs: Path) -> list[Document]:
    return cleaned(python_sources(docs), python_documents(stdlib, docs)).documents


def _text(number: int) -> str:
    """A text of ten lines that no other number's text shares."""
    return "".join(f"value_{number}_{line} = compute_{number}({line}, 'of {number}')\n" for line in range(10))


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """A small standard library of twelve modules and documentation of three pages."""
    stdlib, docs = tmp_path / "stdlib", tmp_path / "docs" / "_sources"
    for number in range(12):
        _write(stdlib / "package" / f"module_{number}.py", _text(number))
    for number in range(3):
        _write(docs / "library" / f"page_{number}.rst.txt", _text(100 + number))
    return stdlib, docs


def _corpus(stdlib: Path, docs: Path) -> Corpus:
    return cleaned(python_sources(docs), python_documents(stdlib, docs))


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
    before = {document.path: split_of(document.path) for document in collect(*sources)}
    _write(sources[0] / "abc_new.py", _text(55))
    after = {document.path: split_of(document.path) for document in collect(*sources)}

    assert len(after) == len(before) + 1
    assert {path: after[path] for path in before} == before


def test_a_text_that_occurs_twice_is_kept_once_under_its_first_path(sources: tuple[Path, Path]) -> None:
    _write(sources[0] / "package" / "zz_copy.py", _text(3))
    paths = [document.path for document in collect(*sources)]

    assert "stdlib/package/module_3.py" in paths
    assert "stdlib/package/zz_copy.py" not in paths


def test_of_two_texts_that_share_most_lines_one_is_kept(sources: tuple[Path, Path]) -> None:
    changed = _text(3).replace("value_3_4", "renamed")
    _write(sources[0] / "package" / "zz_near.py", changed)
    corpus = cleaned([], python_documents(*sources))

    assert "stdlib/package/zz_near.py" not in {document.path for document in corpus.documents}
    assert corpus.removed["near"] == 1


def test_a_held_out_text_that_training_holds_within_another_is_left_out() -> None:
    paths = [f"stdlib/m{number}.py" for number in range(400)]
    train = next(path for path in paths if split_of(path) == "train")
    test = next(path for path in paths if split_of(path) == "test")
    around = "".join(_text(number) for number in range(10, 30))
    documents = [Document(train, "code", around + _text(7)), Document(test, "code", _text(7))]
    fresh = [documents[0], Document(test, "code", _text(8))]

    assert [document.path for document in cleaned([], documents).documents] == [train]
    assert cleaned([], documents).removed == {"exact": 0, "near": 0, "seen": 1}
    assert len(cleaned([], fresh).documents) == 2


def test_the_seen_share_counts_windows_of_words() -> None:
    words = [f"w{number}" for number in range(100)]
    train = [Document("t", "code", " ".join(words[:60]))]
    held_out = [Document("h", "code", " ".join(words[40:]))]

    assert seen_shares(train, held_out) == {"h": pytest.approx((20 - 12) / (60 - 12))}


def test_tests_tables_and_build_settings_stay_out(sources: tuple[Path, Path]) -> None:
    table = f"{_text(70)}decoding_table = (\n    '\\x00'\n)\n"
    kept = {document.path for document in collect(*sources)}
    for name in ("test/test_x.py", "package/tests/a.py", "site-packages/b.py", "_sysconfigdata__linux.py"):
        _write(sources[0] / name, _text(len(name)))
    _write(sources[0] / "encodings" / "cp037.py", table)
    _write(sources[0] / "tables.py", table)

    assert {document.path for document in collect(*sources)} == kept | {"stdlib/tables.py"}


def test_the_order_on_disk_does_not_change_the_data_list(sources: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    for file in sorted(sources[0].rglob("*.py"), reverse=True):
        _write(other / file.relative_to(sources[0]), file.read_text())

    assert data_list(_corpus(other, sources[1])) == data_list(_corpus(*sources))


def test_the_data_list_counts_every_file_and_names_version_and_licence(sources: tuple[Path, Path]) -> None:
    _write(sources[1].parent / "_static" / "documentation_options.js", "var X = {\n    VERSION: '3.11.2',\n}")
    listed = data_list(_corpus(*sources))["sources"]
    assert isinstance(listed, list)

    assert [sum(split["files"] for split in source["splits"].values()) for source in listed] == [12, 3]
    assert [source["licence"] for source in listed] == ["PSF-2.0", "PSF-2.0"]
    assert listed[1]["version"] == "3.11.2"


def test_missing_documentation_is_refused_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"install python3-doc or pass --docs"):
        load(tmp_path / "nowhere", [], tmp_path / "corpus.json")


def test_a_stored_corpus_is_read_back_as_it_was(sources: tuple[Path, Path], tmp_path: Path) -> None:
    stored = tmp_path / "corpus.json"
    corpus = cleaned(python_sources(sources[1]), python_documents(*sources))
    stored.write_text(json.dumps(asdict(corpus)))

    assert load(sources[1], [], stored) == corpus


def test_cards_are_measured_on_whole_files_of_the_test_split_up_to_a_size() -> None:
    documents = [Document(f"stdlib/m{number}.py", "code", "x" * 30_000) for number in range(2000)]
    measured = Corpus([], documents, {}, {}).held_out("code")

    assert len(measured) == 400_000 // 30_000
    assert {split_of(document.path) for document in measured} == {"test"}
