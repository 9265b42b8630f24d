"""The fixtures agree with their own tables: no file without a row, no row without a file, all readable."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from penstock.model.family import FAMILIES

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHECKPOINTS = FIXTURES / "checkpoints"
TEMPLATES = FIXTURES / "chat_templates"
TOKENIZERS = FIXTURES / "tokenizers"
SIDE_FILES = {"generation_config.json", "tokenizer_config.json"}


def load(path: Path) -> Any:  # Any: fixtures are JSON of many shapes
    return json.loads(path.read_text())


def folders(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.is_dir())


EXPECTATIONS: dict[str, dict[str, Any]] = load(CHECKPOINTS / "expectations.json")


def test_every_checkpoint_folder_has_a_row_and_every_row_a_folder() -> None:
    readme = (CHECKPOINTS / "README.md").read_text()
    rows = {line.split("|")[1].strip() for line in readme.splitlines() if line.startswith("| ")}

    assert folders(CHECKPOINTS) == sorted(EXPECTATIONS)
    assert set(EXPECTATIONS) <= rows


def test_there_are_thirty_published_configs_and_some_to_refuse() -> None:
    assert sum(row["provenance"] == "verbatim" for row in EXPECTATIONS.values()) >= 30
    assert sum(row["expect"] == "refused" for row in EXPECTATIONS.values()) >= 3


def test_the_readable_configs_use_every_kind_of_rope_scaling() -> None:
    kinds = set()
    for slug, row in EXPECTATIONS.items():
        config = load(CHECKPOINTS / slug / "config.json")
        scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if row["expect"] == "read":
            kinds.add(scaling.get("rope_type", scaling.get("type", "none")))

    assert kinds >= {"none", "linear", "dynamic", "llama3", "yarn", "longrope"}


@pytest.mark.parametrize("slug", EXPECTATIONS)
def test_a_checkpoint_row_says_what_it_must(slug: str) -> None:
    row, text = EXPECTATIONS[slug], (CHECKPOINTS / slug / "config.json").read_text()
    (architecture,) = json.loads(text)["architectures"]

    assert row["provenance"] in {"verbatim", "reconstructed"}
    assert row["id"]
    assert len(row["source"]) > 10
    if row["expect"] == "read":
        assert architecture in FAMILIES
        assert row["key_or_reason"]
    else:
        assert row["expect"] == "refused"
        assert all(f'"{name}"' in text for name in row["key_or_reason"].split("|"))


@pytest.mark.parametrize("slug", EXPECTATIONS)
def test_a_checkpoint_folder_holds_only_what_its_row_accounts_for(slug: str) -> None:
    files = {path.name for path in (CHECKPOINTS / slug).iterdir()}
    accounted = EXPECTATIONS[slug].get("files", {})

    assert files - {"config.json"} == set(accounted)
    assert set(accounted) <= SIDE_FILES
    for name, origin in accounted.items():
        assert origin["provenance"] in {"verbatim", "reconstructed"}
        assert "chat_template" not in load(CHECKPOINTS / slug / name)


def test_the_copy_with_a_published_hash_has_that_hash() -> None:
    published = "994f50b16abb4ae00880baefe03c10260b5bd608d2bf586f7056ca05a534feea"
    copy = (CHECKPOINTS / "smollm2-1.7b-instruct" / "config.json").read_bytes()

    assert hashlib.sha256(copy).hexdigest() == published


def test_every_chat_template_has_a_case_with_one_outcome() -> None:
    templates = {path.stem for path in TEMPLATES.glob("*.jinja")}
    cases = {path.stem: load(path) for path in TEMPLATES.glob("*.json")}

    assert templates == set(cases)
    for name, case in cases.items():
        assert isinstance(case["messages"], list), name
        assert ("expected" in case) != ("raises" in case), name
        known = {"messages", "tools", "kwargs", "now", "expected", "raises", "generation_spans"}
        assert set(case) <= known, name


def test_every_hostile_template_has_a_verdict() -> None:
    hostile = load(TEMPLATES / "hostile" / "cases.json")

    assert {path.stem for path in TEMPLATES.glob("hostile/*.jinja")} == set(hostile["cases"])
    assert {case["kind"] for case in hostile["cases"].values()} == {"ssti", "bomb", "syntax"}
    assert {case["verdict"] for case in hostile["cases"].values()} == {"refused", "refused_or_harmless"}
    assert set(hostile["must_not_contain_but_for_helpers"]) < set(hostile["must_not_contain"])


def test_the_small_tokenizers_stay_small() -> None:
    assert sum(path.stat().st_size for path in TOKENIZERS.rglob("*") if path.is_file()) < 1_000_000


@pytest.mark.parametrize("name", folders(TOKENIZERS))
def test_the_library_still_gives_the_stored_ids_and_texts(name: str) -> None:
    tokenizer = Tokenizer.from_file(str(TOKENIZERS / name / "tokenizer.json"))
    for row in load(TOKENIZERS / name / "goldens.json"):
        ids = tokenizer.encode(row["text"]).ids

        assert ids == row["ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == row["decoded"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == row["decoded_with_special"]
