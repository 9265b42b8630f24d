"""generation_config.json: all end ids of both files, sampling defaults, and what is not acted on."""

import json
from pathlib import Path

import pytest

from penstock.errors import ModelLoadError
from penstock.model.generation import GenerationDefaults, merge_generation, read_generation

CHECKPOINTS = Path(__file__).parents[2] / "fixtures" / "checkpoints"


def test_end_ids_of_both_files_are_merged_in_order_and_once():
    assert merge_generation({"eos_token_id": 7}, {"eos_token_id": [1, 9, 7]}).eos_token_ids == (1, 9, 7)
    assert merge_generation({"eos_token_id": [7, 8]}, {}).eos_token_ids == (7, 8)
    assert merge_generation({}, {}) == GenerationDefaults()


def test_the_second_end_id_of_llama_3_is_found_in_the_other_file():
    assert set(read_generation(CHECKPOINTS / "meta-llama-3-8b-instruct").eos_token_ids) == {128001, 128009}


def test_sampling_defaults_are_read():
    defaults = read_generation(CHECKPOINTS / "qwen2.5-7b-instruct")

    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (0.7, 0.8, 20)
    assert defaults.repetition_penalty == 1.05
    assert defaults.bos_token_id == 151643


def test_a_file_that_says_greedy_means_temperature_zero():
    defaults = merge_generation({}, {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "top_k": 5})

    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (0.0, None, None)


def test_what_is_not_acted_on_is_listed():
    assert merge_generation({}, {"max_length": 4096, "num_beams": 4}).ignored == ("max_length", "num_beams")
    assert merge_generation({}, {"pad_token_id": 0, "transformers_version": "5"}).ignored == ()


@pytest.mark.parametrize("value", ["2", 2.0, True, -1, [1, "2"], list(range(100)), {"id": 2}])
def test_end_ids_must_be_token_ids(value):
    with pytest.raises(ModelLoadError, match="eos_token_id"):
        merge_generation({"eos_token_id": value}, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", -1), ("temperature", "hot"), ("top_p", 2), ("top_k", 1.5), ("repetition_penalty", 0)],
)
def test_absurd_sampling_is_refused_by_name(key, value):
    with pytest.raises(ModelLoadError, match=f'generation_config.json key "{key}"'):
        merge_generation({}, {key: value})


def test_the_file_is_optional_but_must_be_whole(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5}))

    assert read_generation(tmp_path).eos_token_ids == (5,)

    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"generation_config\.json is not valid JSON"):
        read_generation(tmp_path)
