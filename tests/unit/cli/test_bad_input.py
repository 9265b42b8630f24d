"""Whatever a user gets wrong is one line on standard error and an exit code, and nothing on standard out."""

import re

import numpy as np
import pytest
from tests.unit.cli import checkpoints as make
from tests.unit.cli.checkpoints import MATRIX, make_checkpoint

HUGE = make.config(
    hidden_size=65_536, num_attention_heads=2048, num_hidden_layers=20, intermediate_size=262_144
)
WEB_PAGE = "<!DOCTYPE html><html>" + " " * 99
FLIPPED = make.tensors(lambda t: t.update({MATRIX: t[MATRIX].T.copy()}))
ONE_ROW_LESS = make.tensors(lambda t: t.update({MATRIX: t[MATRIX][:-1]}))
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
SHARD = "model-00002-of-00002.safetensors"

BAD_CHECKPOINTS = [
    # what is wrong, how it comes about, exit code, words of the line
    (
        "unknown architecture",
        make.config(architectures=["GrokForCausalLM"]),
        65,
        "unsupported_architecture: .*Grok",
    ),
    ("no architecture", make.config(architectures=[]), 65, "unsupported_architecture"),
    ("unread key", make.config(final_logit_softcapping=30.0), 65, "bad_config: .*final_logit_softcapping"),
    ("misspelt key", make.config(rms_norm_epz=1e-5), 65, "bad_config: .*rms_norm_epz.*rms_norm_eps"),
    ("code in the checkpoint", make.config(auto_map={"a": "b.C"}), 65, "bad_config: .*auto_map"),
    ("quantized", make.config(quantization_config={"bits": 4}), 65, "bad_config: .*quantization_config"),
    ("no layers", make.config(num_hidden_layers=0), 65, "bad_config: .*num_hidden_layers"),
    ("a billion layers", make.config(num_hidden_layers=10**9), 65, "bad_config: .*num_hidden_layers"),
    ("heads that do not divide", make.config(num_key_value_heads=3), 65, "bad_config: .*num_key_value_heads"),
    ("text for a number", make.config(hidden_size="64"), 65, "bad_config: .*hidden_size"),
    ("no number", make.written("config.json", '{"hidden_size": NaN}'), 65, "bad_config: .*NaN"),
    ("empty config", make.written("config.json", ""), 65, "bad_config"),
    ("no config", make.removed("config.json"), 66, "no config.json"),
    ("no weights", make.removed("model.safetensors"), 65, "missing_shard"),
    ("missing shard", make.sharded(lost=SHARD), 65, f"missing_shard: .*{SHARD}"),
    ("empty shard", make.sharded(after=make.written(SHARD, b"")), 65, f"bad_header: .*{SHARD}"),
    ("truncated", make.cut(1), 65, "truncated: .*model.safetensors"),
    ("truncated to its header", make.cut(500_000), 65, "truncated: .*model.safetensors"),
    (
        "a web page",
        make.written("model.safetensors", WEB_PAGE),
        65,
        "unsupported_format",
    ),
    ("a pointer", make.written("model.safetensors", POINTER), 65, "unsupported_format: .*LFS"),
    (
        "mis-shaped",
        FLIPPED,
        65,
        f"shape_mismatch: .*{MATRIX}",
    ),
    (
        "too few rows",
        ONE_ROW_LESS,
        65,
        f"shape_mismatch: .*{MATRIX}",
    ),
    ("other config", make.config(intermediate_size=256), 65, "shape_mismatch: .*mlp"),
    ("missing tensor", make.tensors(lambda t: t.pop(MATRIX)), 65, f"missing_tensor: .*{MATRIX}"),
    ("unknown tensor", make.tensors(lambda t: t.update(extra=np.ones(3, "f4"))), 65, "bad_index: .*extra"),
    ("integers", make.tensors(lambda t: t.update({MATRIX: t[MATRIX].astype("i8")})), 65, "dtype_unsupported"),
    ("NaN in a matrix", make.element(MATRIX, np.nan), 65, f"nan_weights: .*{MATRIX}"),
    ("Inf in a norm", make.element("model.norm.weight", np.inf), 65, "nan_weights: .*norm"),
    ("NaN in the embedding", make.element("model.embed_tokens.weight", np.nan), 65, "nan_weights: .*embed"),
    ("no tokenizer", make.removed("tokenizer.json"), 65, "bad_tokenizer"),
    ("broken tokenizer", make.written("tokenizer.json", "{}"), 65, "bad_tokenizer"),
    ("another's tokenizer", make.config(vocab_size=200), 65, "tokenizer_mismatch: .*200 rows"),
    ("too big for memory", HUGE, 71, r"weights take [\d,.]+ [GT]B .* are free"),
]


def assert_is_one_line(result, code, words):
    assert result.code == code, result.err
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert re.search(words, lines[0]), lines[0]
    assert len(lines[0]) < 500


@pytest.mark.parametrize(
    ("spoil", "code", "words"), [row[1:] for row in BAD_CHECKPOINTS], ids=[row[0] for row in BAD_CHECKPOINTS]
)
def test_a_bad_checkpoint_is_refused_by_name(command, tmp_path, spoil, code, words):
    folder = make_checkpoint(tmp_path / "model")
    spoil(folder)

    assert_is_one_line(command("run", str(folder), "-p", "hello", "--max-tokens", "2"), code, words)


def test_the_same_checkpoint_unspoilt_answers(command, tmp_path):
    folder = make_checkpoint(tmp_path / "model")
    result = command("run", str(folder), "-p", "hello", "--max-tokens", "2")

    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("hello")


def test_a_broken_template_takes_chat_away_and_nothing_else(command, tmp_path):
    folder = make_checkpoint(tmp_path / "model")
    make.written("chat_template.jinja", "{% for %}")(folder)
    plain = command("run", str(folder), "-p", "hello", "--max-tokens", "2")
    chat = command("run", str(folder), "-m", "hello")

    assert (plain.code, plain.err.count("\n")) == (0, 1)
    assert plain.err.startswith("note: no chat with this model: chat template")
    assert chat.code == 64
    assert "no chat template" in chat.err.splitlines()[-1]


def test_a_sharded_checkpoint_answers_as_the_whole_one(here, tmp_path):
    flags = ("-p", "hello", "--max-tokens", "8", "--temperature", "0", "--ignore-eos")
    whole = make_checkpoint(tmp_path / "whole")
    split = make_checkpoint(tmp_path / "split")
    make.sharded()(split)

    assert here("run", str(split), *flags) == here("run", str(whole), *flags)


BAD_REQUESTS = [
    # flags, words of the line; exit code 64
    (["-p", ""], "no tokens"),
    (["-p", "x" * 600], "prompt has 600 tokens; the context holds 512"),
    (["-p", "x" * 500, "--max-tokens", "13"], "500 tokens and max_tokens=13 .* at most 12"),
    (["-p", "x", "--max-tokens", "0"], "max_tokens is 0"),
    (["-p", "x", "--max-tokens", "-1"], "max_tokens is -1"),
    (["-p", "x", "--max-tokens", "9" * 40], "max_tokens is an integer of"),
    (["-p", "x", "--max-tokens", "9" * 5000], "--max-tokens"),
    (["-p", "x", "--max-tokens", "4.5"], "--max-tokens: invalid int value: '4.5'"),
    (["-p", "x", "--min-tokens", "9", "--max-tokens", "2"], "min_tokens is 9 and max_tokens is 2"),
    (["-p", "x", "--temperature", "-1"], "temperature is -1"),
    (["-p", "x", "--temperature", "nan"], "temperature is not a number"),
    (["-p", "x", "--temperature", "1e999"], "temperature is inf"),
    (["-p", "x", "--temperature", "hot"], "--temperature: invalid float value"),
    (["-p", "x", "--top-p", "0"], "top_p is 0"),
    (["-p", "x", "--top-p", "1.01"], "top_p is 1.01"),
    (["-p", "x", "--top-k", "-2"], "top_k is -2"),
    (["-p", "x", "--min-p", "2"], "min_p is 2"),
    (["-p", "x", "--typical-p", "0"], "typical_p is 0"),
    (["-p", "x", "--repetition-penalty", "0"], "repetition_penalty is 0"),
    (["-p", "x", "--presence-penalty", "3"], "presence_penalty is 3"),
    (["-p", "x", "--frequency-penalty", "-3"], "frequency_penalty is -3"),
    (["-p", "x", "--stop", ""], "stop has an empty string"),
    (["-p", "x", "--stop", "y" * 300], "stop has a string of 300 bytes"),
    (["-m", "x"], "no chat template"),
    (["-p", "x", "--system", "be nice"], "no chat template"),
    (["-p", "x", "-m", "y"], "not allowed with"),
    (["-p", "\udcff"], "not UTF-8"),
    (["-p"], "expected one argument"),
    (["extra"], "unexpected argument 'extra'; text for a model goes after --prompt"),
]
BAD_OPTIONS = [
    # flags, exit code, words of the line
    (["--max-tokenz", "4"], 64, "unknown flag --max-tokenz; did you mean --max-tokens?"),
    (["--max-model-length", "4"], 64, "did you mean --max-model-len?"),
    (["--frobnicate"], 64, "unknown flag --frobnicate; see"),
    (["--max-tok", "4"], 64, "unknown flag --max-tok; did you mean --max-tokens?"),
    (
        ["--tensor-parallel-size", "2"],
        64,
        "--tensor-parallel-size is not supported: a model runs",
    ),
    (["--batch", "2"], 64, "unknown flag --batch"),
    (["--weights", "int3"], 64, "weights is 'int3'; known are .*Did you mean 'int8'"),
    (["--dtype", "fp8"], 64, "dtype is 'fp8'; known are auto, float32"),
    (["--backend", "cuda"], 64, "backend is 'cuda'; known are auto, cpu, reference"),
    (["--policy", "lifo"], 64, "unknown scheduling policy 'lifo'"),
    (["--threads", "0"], 64, "threads=0"),
    (["--threads", "many"], 64, "threads is 'many'; it must be a whole number or \"auto\""),
    (["--threads", "9" * 5000], 64, "threads is '9999"),
    (["--max-context", "0"], 64, "max_context=0"),
    (["--max-context", "513"], 64, "max_context=513: this model attends to 1 to 512"),
    (["--max-requests", "0"], 64, "max_requests=0"),
    (["--max-step-tokens", "1", "--max-requests", "2"], 64, "max_step_tokens=1"),
    (["--block-size", "0"], 64, "block_size=0"),
    (["--memory-bytes", "0"], 64, "memory_bytes=0"),
    (["--memory-bytes", "100"], 71, "keys and values"),
    (["--memory-bytes", "900000g"], 71, r"memory_bytes asks for 900000.00 GB"),
]


@pytest.mark.parametrize(
    ("flags", "words"), BAD_REQUESTS, ids=lambda value: str(value)[:40].encode("ascii", "replace")
)
def test_a_bad_request_is_refused_by_parameter(command, tmp_path, flags, words):
    folder = make_checkpoint(tmp_path / "model")

    assert_is_one_line(command("run", str(folder), *flags), 64, words)


@pytest.mark.parametrize(("flags", "code", "words"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_a_bad_option_is_refused_by_name(command, tmp_path, flags, code, words):
    folder = make_checkpoint(tmp_path / "model")

    assert_is_one_line(command("run", str(folder), "-p", "x", *flags), code, words)


BAD_COMMANDS = [
    (["rum"], 64, "no command 'rum'; did you mean run?"),
    (["--help-me"], 64, "unknown flag --help-me; did you mean --help?"),
    (["serve", "--port", "70000"], 64, "ports are 0 to 65535"),
    (["serve", "--port", "x"], 64, "port is 'x'"),
    (["serve", "--host", "0.0.0.0"], 64, "there is no API key"),
    (["serve", "--prot", "1"], 64, "unknown flag --prot; did you mean --port?"),
    (["serve", "--api-key", "secret-key-1"], 64, "--api-key is not supported"),
    (["serve", "--config", "/no/such/file.toml"], 64, "No such file"),
    (["serve", "no-such-model", "--port", "0"], 66, "no-such-model"),
    (["explain", "hedaer-s"], 64, "Did you mean"),
    (["run"], 64, "required: model"),
    (["run", "penstck-tiny"], 66, "did you mean 'penstock-tiny'"),
    (["run", "/no/such/folder"], 66, "is no folder"),
    (["run", "owner/name"], 66, "not on this disk and HF_HUB_OFFLINE is set"),
    (["bench"], 64, "required: latency|throughput"),
    (["bench", "speed", "penstock-tiny"], 64, "invalid choice: 'speed'"),
    (["bench", "throughput", "penstock-tiny", "--batch", "0"], 64, "'0' is no count"),
    (["bench", "throughput", "penstock-tiny", "--batch", "x"], 64, "'x' is no count"),
    (["bench", "throughput", "penstock-tiny", "--batch", "65"], 64, "--batch 65 is above max_requests=64"),
    (["bench", "latency", "penstock-tiny", "--batch", "2"], 64, "--batch belongs to another command"),
    (["bench", "latency", "penstock-tiny", "--output-tokens", "2"], 64, "--output-tokens is 2"),
    (
        ["bench", "latency", "penstock-tiny", "--prompt-tokens", "2048"],
        64,
        "2,049 tokens; the context",
    ),
    (["bench", "latency", "penstock-tiny", "--backend", "reference"], 64, "no floor"),
    (["doctor", "nothing"], 66, "'nothing' is no folder"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD_COMMANDS, ids=lambda value: str(value)[:40])
def test_a_bad_command_is_refused(command, arguments, code, words):
    assert_is_one_line(command(*arguments), code, words)


def test_a_folder_without_rights_and_a_file_are_refused(here, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"")

    named = here("run", str(tmp_path / "weights.safetensors"))
    assert_is_one_line(named, 66, "is no .gguf file; name one, or the folder")


def test_bytes_that_are_no_text_are_refused_on_standard_input(command, tmp_path):
    folder = str(make_checkpoint(tmp_path / "model"))
    for flags in (["-p", "-"], []):
        result = command("run", folder, *flags, stdin=b"a\xff\n")

        assert_is_one_line(result, 64, "not UTF-8 \\(byte 0xff\\)")


def test_an_isa_that_is_not_here_is_refused(command):
    result = command("doctor", "--no-measure", env={"PENSTOCK_ISA": "mmx"})

    assert_is_one_line(result, 69, "PENSTOCK_ISA=mmx: this machine runs .*scalar")


def test_flags_that_are_not_needed_are_noted_and_change_nothing(here, tmp_path):
    folder = str(make_checkpoint(tmp_path / "model"))
    flags = ("-p", "hello", "--max-tokens", "4", "--temperature", "0")
    plain = here("run", folder, *flags)
    noted = here(
        "run", "--enforce-eager", "--swap-space", "4", folder, *flags, "--gpu-memory-utilization=0.9"
    )

    assert (noted.code, noted.out) == (0, plain.out)
    assert [line.split(":")[0] for line in noted.err.splitlines()] == ["note"] * 3


def test_the_spellings_of_vllm_are_the_same_options(here, tmp_path):
    folder = str(make_checkpoint(tmp_path / "model"))
    ours = ["--max-context", "64", "--max-requests", "2", "--max-step-tokens", "32", "--weights", "int8",
            "--policy", "priority", "--no-prefix-cache"]  # fmt: skip
    theirs = ["--max-model-len", "64", "--max-num-seqs", "2", "--max-num-batched-tokens", "32", "-q", "int8",
              "--scheduling-policy", "priority", "--no-enable-prefix-caching"]  # fmt: skip
    mine, other = (
        here("doctor", folder, "--json", "--no-measure", "--seed", "1", "--memory-bytes", "100m", *flags)
        for flags in (ours, theirs)
    )

    assert '"max_context": 64' in mine.out
    assert mine.out.partition('"plan"')[2] == other.out.partition('"plan"')[2] != ""
