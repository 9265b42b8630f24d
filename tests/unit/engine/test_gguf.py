"""A .gguf file is a model: its tokens, its template, and every weight as the file's own codes mean it."""

import json

import numpy as np
import pytest

from penstock import LLM, SamplingParams
from penstock.engine.locate import EMBEDDED, locate
from penstock.errors import ModelLoadError
from penstock.weights.format import FORMATS
from penstock.weights.gguf_file import read_gguf
from penstock.weights.reader import CodedTensor, read_checkpoint

pytest.importorskip("gguf", reason="the gguf package writes the files; install the dev extra")

from tests.fakes.gguf_model import write_gguf

TINY = EMBEDDED / "penstock-tiny"
GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def answer(model: str, **options) -> tuple[int, ...]:
    (output,) = LLM(model, pack_cache=False, threads=1, **options).generate(
        "def fib(n):", GREEDY, use_tqdm=False
    )
    return tuple(output.outputs[0].token_ids)


def test_a_file_of_the_same_weights_gives_the_same_tokens(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(TINY, path, lambda _: "BF16")

    assert answer(str(path)) == answer("penstock-tiny")


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_every_weight_is_what_the_file_says(kind, tmp_path):
    path = tmp_path / "tiny.gguf"
    expected = write_gguf(TINY, path, lambda _: kind)
    tensors = read_checkpoint(locate(str(path))).tensors
    for name, values in expected.items():
        found = tensors[name]
        if isinstance(found, CodedTensor):
            coded = found.decode(slice(0, found.shape[0]))
            packed = coded.coding.pack(coded)
            assert FORMATS[found.format].unpack(packed, *found.shape).tobytes() == values.tobytes(), name
        else:
            assert np.asarray(found).astype(np.float32).tobytes() == values.tobytes(), name


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1"])
def test_native_and_reference_agree_on_a_quantized_file(kind, tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(TINY, path, lambda _: kind)

    assert answer(str(path)) == answer(str(path), backend="reference")


def test_a_quantized_file_is_run_faithfully_unless_asked(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(TINY, path, lambda _: "Q4_0")
    plan = LLM(str(path), pack_cache=False).loaded.plan
    asked = LLM(str(path), pack_cache=False, activations="int8").loaded.plan

    assert (plan.weight_format, plan.head_format, plan.contract) == ("int4_g32", "int4_g32", "bfloat16")
    assert plan.is_faithful
    assert asked.contract == "int8"
    assert not asked.is_faithful


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1", "Q8_0"])
def test_every_type_takes_activations_of_8_bits_where_asked(kind, tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(TINY, path, lambda _: kind)
    plan = LLM(str(path), pack_cache=False, activations="int8").loaded.plan

    assert (plan.backend, plan.contract, plan.is_faithful) == ("cpu", "int8", False)
    reference = answer(str(path), activations="int8", backend="reference")
    assert answer(str(path), activations="int8") == reference


def test_types_may_differ_within_a_layer(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(TINY, path, lambda name: "Q8_0" if "attn_v" in name or "ffn_up" in name else "Q4_0")
    plan = LLM(str(path), pack_cache=False).loaded.plan

    assert plan.backend == "cpu"
    assert plan.weight_format == "int4_g32+int8_g32"
    assert answer(str(path)) == answer(str(path), backend="reference")


def test_the_chat_template_and_the_ends_of_answers_come_from_the_file(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(TINY, path, lambda _: "Q8_0")
    loaded = LLM(str(path), pack_cache=False).loaded

    assert loaded.chat_template is not None
    assert loaded.defaults.eos_token_ids == (1, 7)
    assert loaded.tokenizer.encode("def") == LLM("penstock-tiny").tokenizer.encode("def")


def test_a_folder_with_one_file_is_that_file(tmp_path):
    (tmp_path / "folder").mkdir()
    write_gguf(TINY, tmp_path / "folder" / "tiny.gguf", lambda _: "Q8_0")

    assert answer(str(tmp_path / "folder")) == answer(str(tmp_path / "folder" / "tiny.gguf"))


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(TINY, path, lambda _: "Q8_0")
    before = locate(str(path))
    write_gguf(TINY, path, lambda _: "Q4_0")

    assert locate(str(path)) != before


@pytest.mark.parametrize(
    ("option", "value"), [("weights", "int4"), ("weights", "int8"), ("dtype", "float32")]
)
def test_codes_are_not_quantized_a_second_time(option, value, tmp_path):
    from penstock.errors import ConfigError

    path = tmp_path / "tiny.gguf"
    write_gguf(TINY, path, lambda _: "Q4_0")
    with pytest.raises(ConfigError, match=r"int4_g32|integer codes"):
        LLM(str(path), pack_cache=False, **{option: value})


def test_infinite_scales_are_refused(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(TINY, path, lambda _: "Q4_0")
    begin = read_gguf(path).tensors["blk.0.ffn_down.weight"].blocks[0, :36].tobytes()
    path.write_bytes(path.read_bytes().replace(begin, b"\x00\x7c" + begin[2:]))
    with pytest.raises(ModelLoadError) as error:
        LLM(str(path), pack_cache=False)

    assert error.value.code == "nan_weights"


def test_an_unknown_key_of_the_architecture_is_refused_by_name(tmp_path):
    from penstock.model.gguf_config import config_of

    metadata = {"general.architecture": "llama", "llama.embedding_length": 8, "llama.surprise": 1}
    with pytest.raises(ModelLoadError, match=r"llama\.surprise"):
        config_of(metadata, vocab_size=8, tensors=frozenset(), rope_factors={})


def test_config_json_holds_what_the_original_said(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(TINY, path, lambda _: "BF16")
    made = json.loads((locate(str(path)) / "config.json").read_text())
    original = json.loads((TINY / "config.json").read_text())

    for name in made:
        assert made[name] == original[name], name
