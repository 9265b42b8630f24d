"""Encoders through LLM: pooled as their files say, each text whole, no generation; bits of the text alone."""

import json
import shutil

import numpy as np
import pytest
from tests.fakes.encoder import GOLDENS, MODULES, write_encoder
from tests.fakes.served import served

from penstock import LLM
from penstock.engine.serving import Call
from penstock.errors import ConfigError, ContextLengthError, InvalidRequestError, ModelLoadError
from penstock.request import SamplingParams

TEXTS = ["Hello w0rld", "a", "the quick brown fox jumps over the lazy dog " * 3]
STORED = np.load(GOLDENS / "bert" / "hidden.npz")
WHOLE = {"prompt_token_ids": STORED["tokens"].tolist()}  # 150 tokens


def llm_of(folder, **options) -> LLM:
    return LLM(str(folder), **({"threads": 1, "memory_bytes": 64 << 20} | options))


def vectors(llm, texts, **how) -> list[bytes]:
    return [
        np.array(o.outputs.embedding, np.float32).tobytes() for o in llm.embed(texts, use_tqdm=False, **how)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def llm(folder) -> LLM:
    return llm_of(folder)


def test_texts_are_lowered_and_wrapped_and_never_cut(llm):
    first, _, long = llm.embed(TEXTS, use_tqdm=False)

    assert first.prompt_token_ids[0] == 2
    assert first.prompt_token_ids[-1] == 3
    assert len(first.prompt_token_ids) == 12
    assert len(long.prompt_token_ids) == 107


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_vectors_are_those_of_transformers(llm, pooling):
    rows = STORED["float32"].astype(np.float64)
    row = {"cls": rows[0], "last": rows[-1], "mean": rows.mean(axis=0)}[pooling]
    (output,) = llm.embed(WHOLE, pooling=pooling, use_tqdm=False)

    np.testing.assert_allclose(output.outputs.embedding, row / np.linalg.norm(row), rtol=1e-4, atol=1e-5)


def test_a_text_has_the_same_bits_alone_and_in_any_company(folder, llm):
    texts = [*TEXTS, WHOLE, {"prompt_token_ids": [7] * 200}]
    alone = [vectors(llm, [text])[0] for text in texts]

    assert vectors(llm, texts * 3) == alone * 3
    assert vectors(llm_of(folder, threads=2, max_step_tokens=200, max_requests=2), texts * 2) == alone * 2


@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"weights": "int8"}, {"weights": "int4"}], ids=str
)
def test_rounded_and_quantized_weights_give_the_same_bits_in_company(folder, options):
    texts = [*TEXTS, WHOLE]
    one = llm_of(folder, **options)
    alone = [vectors(one, [text])[0] for text in texts]

    assert vectors(llm_of(folder, threads=2, **options), texts[::-1]) == alone[::-1]


def test_every_text_comes_whole_in_one_step(folder):
    llm = llm_of(folder, max_step_tokens=200, max_requests=4)
    counts = []
    schedule = llm.core.scheduler.schedule

    def watched(now_s):
        made = schedule(now_s)
        counts.extend([(r.start, r.num_tokens) for r in made.requests] if made else [])
        return made

    llm.core.scheduler.schedule = watched
    lengths = [150, 60, 40, 120, 199, 5]
    llm.embed([{"prompt_token_ids": [9] * n} for n in lengths], use_tqdm=False)

    assert sorted(counts) == sorted((0, n) for n in lengths)


def test_the_plan_sizes_a_step_for_the_longest_text(folder):
    plan = llm_of(folder, max_requests=4).loaded.plan

    assert (plan.max_context, plan.max_step_tokens) == (200, 512)
    assert not plan.prefix_cache
    small = llm_of(folder, max_step_tokens=64, max_requests=4)
    assert small.loaded.plan.max_context == 64
    with pytest.raises(ContextLengthError, match="150 tokens"):
        small.embed(WHOLE, use_tqdm=False)
    with pytest.raises(ConfigError, match="in one step"):
        llm_of(folder, max_step_tokens=64, max_requests=4, max_context=100)


def test_generation_is_refused_in_one_line(llm):
    with pytest.raises(InvalidRequestError, match="encoder") as caught:
        llm.generate("hello", use_tqdm=False)

    assert caught.value.code == "no_generation"
    assert "\n" not in str(caught.value)
    assert len(llm.embed("hello", use_tqdm=False)) == 1


def test_poolings_normalisation_and_lengths_come_from_the_files(tmp_path):
    cases = [
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 48}, "last"),
    ]
    for number, (said, expected) in enumerate(cases):
        llm = llm_of(write_encoder(tmp_path / str(number), pooling=said, max_seq_length=77))
        assert llm.loaded.pooling.pooling == expected
        assert llm.loaded.plan.max_context == 77
        text = {"prompt_token_ids": WHOLE["prompt_token_ids"][:77]}
        assert vectors(llm, text) == vectors(llm, text, pooling=expected)
    bare = llm_of(write_encoder(tmp_path / "bare", modules=()))
    assert (bare.loaded.pooling.pooling, bare.loaded.pooling.is_normalized) == ("mean", True)


def test_without_the_module_vectors_are_not_scaled(tmp_path, llm):
    raw = llm_of(write_encoder(tmp_path / "raw", modules=MODULES[:2]))
    (long,) = raw.embed(WHOLE, use_tqdm=False)
    (unit,) = llm.embed(WHOLE, use_tqdm=False)
    length = np.linalg.norm(long.outputs.embedding)

    assert length > 2
    np.testing.assert_allclose(np.array(long.outputs.embedding) / length, unit.outputs.embedding, atol=1e-6)


@pytest.mark.parametrize(
    ("modules", "pooling", "said"),
    [
        ((*MODULES, "Dense"), None, "Dense"),
        (MODULES, {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (MODULES, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "pooling_mode"),
        (MODULES, {"pooling_mode_cls_token": True, "pooling_mode_median": True}, "pooling_mode_median"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(tmp_path, modules, pooling, said):
    with pytest.raises(ModelLoadError, match=said):
        llm_of(write_encoder(tmp_path / "model", modules=modules, pooling=pooling))


def test_modules_that_are_no_list_are_refused(tmp_path):
    folder = write_encoder(tmp_path / "model")
    for text in ("{}", "[1]", "nonsense"):
        (folder / "modules.json").write_text(text)
        with pytest.raises(ModelLoadError, match=r"modules\.json"):
            llm_of(folder)


def test_a_checkpoint_without_token_types_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = write_encoder(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("embeddings.token_type_embeddings.weight")
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(ModelLoadError, match="token_type_embeddings"):
        llm_of(folder)


def test_a_decoder_reads_its_files_too(tmp_path):
    folder = tmp_path / "decoder"
    source = LLM("penstock-tiny", threads=1, memory_bytes=64 << 20, max_context=256).loaded.folder
    shutil.copytree(source, folder)
    modules = [{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    llm = llm_of(folder, max_context=256)

    assert vectors(llm, TEXTS) == vectors(llm, TEXTS, pooling="mean")
    assert vectors(llm, TEXTS) != vectors(llm, TEXTS, pooling="last")
    first = {o.outputs.embedding[0] for o in llm.embed(["x" * 9, "x" * 40], pooling="cls", use_tqdm=False)}
    assert len(first) == 1  # the first row of a decoder reads nothing else


@pytest.mark.slow
def test_across_the_process_boundary(folder, llm):
    import asyncio
    from contextlib import ExitStack

    ids = [list(o.prompt_token_ids) for o in llm.embed(TEXTS, use_tqdm=False)]
    expected = [o.outputs.embedding for o in llm.embed(TEXTS, use_tqdm=False)]

    async def body():
        async with served(model=str(folder)) as engine:
            assert not engine.facts.has_head
            assert await engine.probe(30.0)
            calls = [
                Call(request_id="e", prompt_tokens=one, params=SamplingParams(), pooling=engine.facts.pooling)
                for one in ids
            ]
            with ExitStack() as held:
                tickets = [held.enter_context(engine.admit(10)) for _ in calls]
                got = await engine.embed(tickets, calls)
            assert [list(vector) for vector in got] == expected
            with ExitStack() as held, pytest.raises(InvalidRequestError, match="encoder"):
                call = Call(request_id="g", prompt_tokens=[5], params=SamplingParams())
                engine.stream(held.enter_context(engine.admit(10)), call)

    asyncio.run(body())
