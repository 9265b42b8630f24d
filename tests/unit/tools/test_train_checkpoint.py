"""The shipped checkpoint's files agree with each other and stay small."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tools.train.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS

FOLDER = Path(__file__).parents[3] / "src" / "penstock" / "models" / "penstock-tiny"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:  # Any: values as JSON has them
    return dict(json.loads((FOLDER / "config.json").read_text()))


def _shapes() -> dict[str, Any]:
    with (FOLDER / "model.safetensors").open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def test_what_ships_is_under_sixty_megabytes() -> None:
    assert sum(file.stat().st_size for file in FOLDER.parent.rglob("*") if file.is_file()) < 60_000_000


def test_vocabulary_of_tokenizer_config_and_embedding_are_one(config: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))

    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert _shapes()["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]


def test_every_tensor_is_bfloat16_and_every_layer_is_there(config: dict[str, Any]) -> None:
    shapes = _shapes()

    assert {entry["dtype"] for entry in shapes.values()} == {"BF16"}
    assert len(shapes) == 9 * config["num_hidden_layers"] + 2


def test_generation_ends_at_the_end_of_a_text_and_of_a_turn() -> None:
    generation = json.loads((FOLDER / "generation_config.json").read_text())

    assert [SPECIAL_TOKENS[number] for number in generation["eos_token_id"]] == ["<|end|>", "<|turn_end|>"]


def test_the_shipped_chat_template_is_the_one_that_was_trained() -> None:
    settings = json.loads((FOLDER / "tokenizer_config.json").read_text())

    assert settings["chat_template"] == CHAT_TEMPLATE
