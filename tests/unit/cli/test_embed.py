"""`penstock embed`: lines in, JSON lines out, one line for what is wrong."""

import json

import pytest

from penstock import LLM

FLAGS = ("--threads", "1", "--memory-bytes", "64m")


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_each_line_has_its_embedding_in_order(here, tmp_path, pooling):
    texts = [f"def f{number}(x):" for number in range(70)]
    file = tmp_path / "texts"
    file.write_text("\n".join(texts) + "\n")
    flags = (*FLAGS, "--pooling", pooling)
    from_file = here("embed", "penstock-tiny", str(file), *flags)
    from_input = here("embed", "penstock-tiny", *flags, stdin=file.read_bytes())
    answers = [json.loads(line) for line in from_file.out.splitlines()]
    expected = LLM("penstock-tiny", threads=1, memory_bytes=64_000_000).embed(
        texts, pooling=pooling, use_tqdm=False
    )

    assert from_file.code == from_input.code == 0
    assert from_file.out == from_input.out
    assert [answer["index"] for answer in answers] == list(range(70))
    assert [answer["embedding"] for answer in answers] == [o.outputs.embedding for o in expected]
    assert [answer["num_tokens"] for answer in answers] == [len(o.prompt_token_ids) for o in expected]


def test_lines_that_cannot_be_embedded_are_one_clear_line(here, tmp_path):
    empty = here("embed", "penstock-tiny", *FLAGS, stdin=b"a\n\nb\n")
    broken = here("embed", "penstock-tiny", *FLAGS, stdin=b"a\n\xff\n")
    missing = here("embed", "penstock-tiny", str(tmp_path / "nothing"), *FLAGS)

    assert "line 2 is empty" in empty.err
    assert "line 2 is not UTF-8 (byte 0xff)" in broken.err
    assert "nothing" in missing.err
    for result in (empty, broken, missing):
        assert result.code != 0
        assert result.out == ""
        assert "Traceback" not in result.err
