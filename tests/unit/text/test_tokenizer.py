import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import InvalidRequestError, ModelLoadError
from penstock.text.tokenizer import MARK, Tokenizer

TOKENIZERS = Path(__file__).parents[2] / "fixtures" / "tokenizers"
NAMES = sorted(path.name for path in TOKENIZERS.iterdir() if path.is_dir())
ROWS = [
    pytest.param(name, row, id=f"{name}-{index}")
    for name in NAMES
    for index, row in enumerate(json.loads((TOKENIZERS / name / "goldens.json").read_text()))
]
LOADED = {name: Tokenizer.load(TOKENIZERS / name, 10_000) for name in NAMES}

Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_ids_and_texts_are_those_of_the_library(name: str, row: dict[str, Any]) -> None:
    tokenizer = LOADED[name]

    assert tokenizer.encode(row["text"]) == row["ids"]
    assert tokenizer.encode(row["text"], add_special=False) == row["ids_without_template"]
    assert tokenizer.decode(row["ids"]) == row["decoded"]
    assert tokenizer.decode(row["ids"], skip_special=False) == row["decoded_with_special"]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_special_tokens_in_what_users_say_stay_text(name: str, row: dict[str, Any]) -> None:
    tokenizer = LOADED[name]

    assert tokenizer.encode_rendered(tokenizer.mark_specials(row["text"])) == row["ids_special_as_text"]


@pytest.mark.parametrize("name", NAMES)
def test_specials_of_the_template_work_next_to_those_of_users(name: str) -> None:
    tokenizer = LOADED[name]
    special = tokenizer.special_tokens[0]
    special_id = tokenizer.token_id(special)
    assert special_id is not None
    said = f"say {special} twice: {special}"
    ids = tokenizer.encode_rendered(f"{special}{tokenizer.mark_specials(said)}{special} ok")
    alone = tokenizer.encode(f"{special}say nothing{special} ok", add_special=False)

    assert ids.count(special_id) == 2
    assert ids[0] == special_id
    assert ids[ids.index(special_id, 1) :] == alone[alone.index(special_id, 1) :]
    assert "say" in tokenizer.decode(ids)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_without_specials_has_the_ids_of_the_text(name: str) -> None:
    tokenizer = LOADED[name]
    special = tokenizer.special_tokens[0]
    rendered = f"{special} one two {special}\n three"

    assert tokenizer.encode_rendered(rendered) == tokenizer.encode(rendered, add_special=False)


@pytest.mark.parametrize("name", ["byte_level_gpt2", "byte_level_llama3", "byte_level_qwen2"])
@pytest.mark.parametrize("marks", [1, 2, 3])
def test_a_mark_that_a_user_writes_is_kept(name: str, marks: int) -> None:
    tokenizer = LOADED[name]
    special = tokenizer.special_tokens[0]
    for said in (MARK * marks, f"a{MARK * marks}b", f"{special}{MARK * marks}", f"{MARK * marks}{special}",
                 special[0] + MARK * marks + special[1:]):  # fmt: skip
        ids = tokenizer.encode_rendered(f"{special}{tokenizer.mark_specials(said)}")

        assert ids.count(tokenizer.token_id(special) or -1) == 1
        assert tokenizer.decode(ids, skip_special=False) == special + said


def test_ids_and_texts_of_single_tokens() -> None:
    tokenizer = LOADED["byte_level_llama3"]

    assert tokenizer.bos_token_id == tokenizer.token_id("<|begin_of_text|>")
    assert tokenizer.token_id("no such token") is None
    assert tokenizer.token_text(tokenizer.bos_token_id or 0) == "<|begin_of_text|>"
    assert tokenizer.eos_token_id is not None
    assert tokenizer.vocab_size == 461


@pytest.mark.parametrize("name", NAMES)
def test_half_a_surrogate_pair_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="surrogate"):
        LOADED[name].encode("a\ud800b")
    with pytest.raises(InvalidRequestError, match="surrogate"):
        LOADED[name].encode_rendered(f"{MARK}\udfff")


def copy(folder: Path, name: str = "byte_level_gpt2", change: Change | None = None) -> Path:
    shutil.copytree(TOKENIZERS / name, folder, dirs_exist_ok=True)
    if change is not None:
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def refusal(folder: Path, vocab_size: int = 10_000) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as caught:
        Tokenizer.load(folder, vocab_size)

    assert "\n" not in str(caught.value)
    return caught.value


def split(pattern: str) -> Change:
    part = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return lambda content: content.update(pre_tokenizer=part)


DAMAGES: dict[str, Change] = {
    "two tokens with one id": lambda c: c["model"]["vocab"].update({"!": c["model"]["vocab"]["a"]}),
    "a merge of an unknown token": lambda c: c["model"]["merges"].append(["zzqq", "q"]),
    "an added token on a token's id": lambda c: c["added_tokens"][0].update(id=5),
    "an added token twice": lambda c: c["added_tokens"].append({**c["added_tokens"][0], "id": 700}),
    "no model": lambda c: c.pop("model"),
    "a model of another kind": lambda c: c["model"].update(type="Wonder"),
    "ids that are no numbers": lambda c: c["model"]["vocab"].update({"!": "x"}),
    "negative ids": lambda c: c["model"]["vocab"].update({"!": -1}),
    "a pattern that is none": split("(a"),
    "a pattern that never ends": split("(a+)+$"),
    "a pattern of overlapping choices": split("(?:a|a)*b"),
    "a pattern of bounded repetitions": split("(.{1,}x){1,}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, damage: str) -> None:
    assert refusal(copy(tmp_path, change=DAMAGES[damage])).code == "bad_tokenizer"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"<!DOCTYPE html>"],
)
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, file: str, content: bytes) -> None:
    (copy(tmp_path) / file).write_bytes(content)

    assert refusal(tmp_path).code == "bad_tokenizer"


@pytest.mark.parametrize("size", [1, 100, 1000])
def test_a_truncated_tokenizer_is_refused(tmp_path: Path, size: int) -> None:
    whole = (copy(tmp_path) / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[:-size])

    assert refusal(tmp_path).code == "bad_tokenizer"


def test_a_missing_tokenizer_is_refused_with_the_way_out(tmp_path: Path) -> None:
    error = refusal(tmp_path)

    assert error.code == "bad_tokenizer"
    assert "convert" in str(error)


def test_a_folder_in_the_place_of_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()

    assert refusal(tmp_path).code == "bad_tokenizer"


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_another_models(tmp_path: Path) -> None:
    folder = copy(tmp_path)

    assert Tokenizer.load(folder, 417).vocab_size == 417
    assert refusal(folder, 416).code == "tokenizer_mismatch"


def test_ids_without_a_token_are_no_damage(tmp_path: Path) -> None:
    """Phi-4-mini leaves ids out between its vocabulary and its added tokens."""

    def leave_a_gap(content: dict[str, Any]) -> None:
        content["model"]["vocab"].pop("<|endoftext|>", None)
        content["added_tokens"][0]["id"] = 417 - 1

    assert Tokenizer.load(copy(tmp_path, change=leave_a_gap), 1000).encode("ab")


def test_truncation_and_padding_in_the_file_are_not_done(tmp_path: Path) -> None:
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
           "pad_type_id": 0, "pad_token": "!"}  # fmt: skip
    tokenizer = Tokenizer.load(copy(tmp_path, change=lambda c: c.update(truncation=cut, padding=pad)), 1000)
    text = "a longer text than three tokens"

    assert tokenizer.encode(text) == LOADED["byte_level_gpt2"].encode(text)
    assert (
        tokenizer.encode_rendered(tokenizer.mark_specials("<|endoftext|>" + text))[-5:]
        == (LOADED["byte_level_gpt2"].encode(text)[-5:])
    )


def test_the_tokenizers_file_alone_decides_what_is_added(tmp_path: Path) -> None:
    """As transformers 5 does: add_bos_token in tokenizer_config.json changes nothing."""
    folder = copy(tmp_path, "byte_level_qwen2")
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": "<|endoftext|>"}')

    assert Tokenizer.load(folder, 1000).encode("Hi") == LOADED["byte_level_qwen2"].encode("Hi")


def test_a_text_that_a_pattern_gives_up_on_is_a_refused_prompt(tmp_path: Path) -> None:
    """Polynomial, so that the check at load lets it pass."""
    folder = copy(tmp_path, change=split("x*x*x*x*x*x*x*y"))
    program = (
        "import sys\nfrom pathlib import Path\nfrom penstock.text.tokenizer import Tokenizer\n"
        "from penstock.errors import InvalidRequestError\n"
        "try:\n    Tokenizer.load(Path(sys.argv[1]), 1000).encode('x' * 200 + 'zy')\n"
        "except InvalidRequestError as error:\n    print('refused:', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("refused: the prompt is more than the tokenizer's patterns can match")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unit", ["a", " ", "e\u0301", "<|", "</s>", "\U0001f600", "\ue0f0", "0"])
def test_the_time_of_a_long_monotonous_text_is_linear(name: str, unit: str) -> None:
    import time

    def seconds(num_chars: int) -> float:
        text = unit * (num_chars // len(unit))
        best = float("inf")
        for _ in range(3):
            begin = time.process_time()
            LOADED[name].encode_rendered(LOADED[name].mark_specials(text))
            best = min(best, time.process_time() - begin)
        return best

    assert seconds(80_000) < 4 * seconds(40_000) + 0.05


class PanicException(BaseException):
    """As the library raises it."""


class Panicking:
    def __init__(self, words: str) -> None:
        self._words = words

    def encode(self, text: str, *, add_special_tokens: bool) -> None:
        raise PanicException(self._words)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Onig: Regex search error: fail to memory allocation", MemoryError),
        ("LazyLock instance has previously been poisoned", MemoryError),
        ("Onig: Regex search error: retry-limit-in-match over", InvalidRequestError),
    ],
)
def test_a_prompt_is_not_blamed_for_want_of_memory(words: str, kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        Tokenizer._encode(Panicking(words), "x", add_special=False)
