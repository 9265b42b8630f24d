"""`penstock run` on the embedded model: one answer, piped lines, a conversation, pipes that break."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.cli.conftest import environment, in_process_of_its_own, without_build_note

from penstock import LLM, SamplingParams
from penstock.cli.conversation import Conversation

PENSTOCK = (sys.executable, "-m", "penstock.cli.main")
GREEDY = ("--temperature", "0", "--max-tokens", "12", "--seed", "3")


@pytest.fixture(scope="module")
def tiny():
    return LLM("penstock-tiny", seed=3)


def params(**options):
    return SamplingParams(**({"temperature": 0.0, "top_p": 0.95, "max_tokens": 12} | options))


def test_a_prompt_is_printed_with_its_continuation(here, tiny):
    (want,) = tiny.generate("def f(", params(), use_tqdm=False)
    result = here("run", "penstock-tiny", "-p", "def f(", *GREEDY)

    assert (result.code, result.err) == (0, "")
    assert result.out == "def f(" + want.outputs[0].text + "\n"


def test_a_dash_reads_the_prompt_from_standard_input(here):
    given = here("run", "penstock-tiny", "-p", "def f(", *GREEDY)
    piped = here("run", "penstock-tiny", "-p", "-", *GREEDY, stdin=b"def f(")

    assert piped == given


def test_a_message_is_answered_through_the_chat_template(here, tiny):
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a list?"}]
    (want,) = tiny.chat(talk, params(), use_tqdm=False)
    result = here("run", "penstock-tiny", "-m", "What is a list?", "--system", "Be brief.", *GREEDY)

    assert (result.code, result.out) == (0, want.outputs[0].text + "\n")


def test_statistics_go_to_standard_error(here, tiny):
    result = here("run", "penstock-tiny", "-p", "def f(", *GREEDY, "--ignore-eos", "--stats")
    prompt = tiny.tokenizer.encode("def f(")

    assert re.fullmatch(
        rf"\[{len(prompt)} prompt tokens \(0 cached\), 12 answer tokens, first after \d+ ms, "
        r"then [\d.]+ tokens/s; seed -?\d+, ps-[0-9a-f]+\]\n",
        result.err,
    )


def test_piped_lines_are_a_conversation(here, tiny):
    lines = b"What is a list?\n\nAnd a dict?\n/clear\nWhat is a list?\n/exit\nnever asked\n"
    result = here("run", "penstock-tiny", *GREEDY, stdin=lines)
    talk = [{"role": "user", "content": "What is a list?"}]
    first = tiny.chat(talk, params(), use_tqdm=False)[0].outputs[0].text
    talk += [{"role": "assistant", "content": first}, {"role": "user", "content": "And a dict?"}]
    second = tiny.chat(talk, params(), use_tqdm=False)[0].outputs[0].text

    assert result.code == 0
    assert result.out == f"{first}\n{second}\nthe conversation is forgotten.\n{first}\n"


def test_piped_lines_are_prompts_where_completions_are_asked_for(here, tiny):
    result = here("run", "penstock-tiny", "--complete", *GREEDY, stdin=b"def f(\nclass A")
    wanted = [o.outputs[0].text for o in tiny.generate(["def f(", "class A"], params(), use_tqdm=False)]

    assert result.out == "".join(text + "\n" for text in wanted)


def test_the_same_seed_repeats_an_answer_and_another_does_not(here):
    flags = ("-p", "import", "--temperature", "1", "--max-tokens", "24")
    one, same, other = (here("run", "penstock-tiny", *flags, "--seed", seed).out for seed in ("1", "1", "2"))

    assert one == same != other


def test_a_stop_text_is_not_printed(here, tiny):
    text = tiny.generate("def f(", params(), use_tqdm=False)[0].outputs[0].text
    stop = text[3:6]
    result = here("run", "penstock-tiny", "-p", "def f(", *GREEDY, "--stop", stop)

    assert result.out == "def f(" + text[: text.index(stop)] + "\n"


def test_a_character_that_the_terminal_cannot_show_is_no_error():
    result = in_process_of_its_own(
        "run", "penstock-tiny", "-p", "# \u00e9\u4e2d", "--max-tokens", "1", env={"PYTHONIOENCODING": "ascii"}
    )

    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("# ??")


def test_a_reader_that_leaves_ends_the_command_quietly():
    command = [
        sys.executable,
        "-m",
        "penstock.cli.main",
        "run",
        "penstock-tiny",
        "-p",
        "def f(",
        "--ignore-eos",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(8)
        process.stdout.close()
        error = process.stderr.read()
        code = process.wait(60)

    assert (code, error) == (141, b"")


def test_a_full_disk_is_one_line():
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("this system has no /dev/full")
    with device.open("wb") as full:
        done = subprocess.run(
            [*PENSTOCK, "run", "penstock-tiny", "-p", "x", "--max-tokens", "1"],
            stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=60, check=False,
        )  # fmt: skip

    assert done.returncode == 74
    assert done.stderr.splitlines()[0].startswith(b"error: No space left on device")
    assert b"Traceback" not in done.stderr


def test_commands_of_a_conversation():
    talk = Conversation("Be brief.", is_chat=True)
    talk.add("hi", "hello")
    talk.add("refused", "")

    assert [m["content"] for m in talk.prompt("more")] == ["Be brief.", "hi", "hello", "more"]
    assert talk.command("what is /usr/bin?") is None
    assert talk.command("/usr/bin") is None
    assert "no command /foo" in talk.command("/foo")
    assert talk.command("/system Be long.") == "the instructions are set."
    assert talk.prompt("more")[0] == {"role": "system", "content": "Be long."}
    assert talk.command("/system") == "there are no instructions now."
    assert talk.command("/clear") == "the conversation is forgotten."
    assert talk.prompt("more") == [{"role": "user", "content": "more"}]
    assert "/clear" in talk.command("/help")
    assert not talk.is_over
    assert talk.command("/exit") == ""
    assert talk.is_over
    assert Conversation(None, is_chat=False).prompt("def f(") == "def f("


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_streams_that_the_caller_closed_are_no_error(closed):
    line = f'"{sys.executable}" -m penstock.cli.main run penstock-tiny -p x --max-tokens 1 {closed}'
    done = subprocess.run(["sh", "-c", line], env=environment(), capture_output=True, timeout=60, check=False)

    assert (done.returncode, without_build_note(done.stderr.decode())) == (0, "")
    assert done.stdout.startswith(b"" if closed == ">&-" else b"x")


def test_a_closed_standard_input_holds_no_conversation(here):
    assert here("run", "penstock-tiny", stdin=b"").out == ""
