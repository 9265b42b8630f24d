"""The hostile templates, in a process with limits: a bomb that goes off kills that process, not the tests."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HOSTILE = Path(__file__).parents[2] / "fixtures" / "chat_templates" / "hostile"
TABLE = json.loads((HOSTILE / "cases.json").read_text())
CASES: dict[str, dict[str, Any]] = TABLE["cases"]
MAX_SECONDS = 8  # of CPU, for one bomb; each takes about one on a slow machine
MAX_BYTES = 256 << 20  # more than the interpreter and this program need: where a bomb is stopped
MAX_PEAK_BYTES = 64 << 20  # that, and no more, any of them may take

# Answers one line for each name on its standard input.
PROGRAM = """
import json, resource, sys, time
from pathlib import Path
from penstock.errors import InvalidRequestError, ModelLoadError
from penstock.text.chat_template import ChatTemplate

folder, max_bytes = Path(sys.argv[1]), int(sys.argv[2])
ChatTemplate("{{ messages | tojson }}", {}).render([])
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + max_bytes,) * 2)
table = json.loads((folder / "cases.json").read_text())
for name in map(str.strip, sys.stdin):
    messages = json.loads(json.dumps(table["messages"]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    answer = {"name": name}
    try:
        template = ChatTemplate((folder / f"{name}.jinja").read_text(), {})
        answer["text"] = template.render(messages, add_generation_prompt=False)
    except ModelLoadError as error:
        answer |= {"refused": "compiled", "code": error.code, "line": str(error)}
    except InvalidRequestError as error:
        answer |= {"refused": "rendered", "code": error.code, "line": str(error)}
    answer["peak_bytes"] = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    answer |= {"seconds": time.process_time() - begin, "are_whole": messages == table["messages"]}
    print(json.dumps(answer), flush=True)
"""


def run(names: list[str]) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(HOSTILE), str(MAX_BYTES)],
        input="\n".join(names), capture_output=True, text=True, timeout=MAX_SECONDS * len(names) + 30,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS * len(names),) * 2),
        check=False,
    )  # fmt: skip
    answers = {answer["name"]: answer for answer in map(json.loads, done.stdout.splitlines())}

    assert set(answers) == set(names), f"went off: {names[len(answers)]}; {done.stderr[-300:]}"
    return answers


def of_kind(kind: str) -> list[str]:
    return [name for name, case in CASES.items() if case["kind"] == kind]


@pytest.fixture(scope="module")
def small_answers() -> dict[str, dict[str, Any]]:
    return run(of_kind("ssti") + of_kind("syntax"))


@pytest.mark.parametrize("name", of_kind("ssti"))
def test_a_template_that_reaches_for_python_gets_nothing(
    name: str, small_answers: dict[str, dict[str, Any]]
) -> None:
    case, answer = CASES[name], small_answers[name]
    helpers = case.get("may_show_helpers", False)
    banned = TABLE["must_not_contain_but_for_helpers" if helpers else "must_not_contain"]

    assert answer["are_whole"]
    assert case["verdict"] == "refused_or_harmless" or "refused" in answer
    assert not [text for text in banned if text in answer.get("text", "")]
    assert "\n" not in answer.get("line", "")


@pytest.mark.parametrize("name", of_kind("syntax"))
def test_a_template_that_does_not_compile_is_refused_before_any_message(
    name: str, small_answers: dict[str, dict[str, Any]]
) -> None:
    answer = small_answers[name]

    assert answer["refused"] == "compiled"
    assert answer["code"] == "bad_template"
    assert "\n" not in answer["line"]


@pytest.mark.slow
def test_every_bomb_is_refused_within_bounded_time_and_memory() -> None:
    answers = run(of_kind("bomb"))
    for name, answer in answers.items():
        assert "refused" in answer, name
        assert answer["seconds"] < MAX_SECONDS, name
        assert answer["peak_bytes"] < MAX_PEAK_BYTES, name
        assert "\n" not in answer["line"], name


def test_a_sample_of_bombs_is_refused_quickly() -> None:
    names = ["string_repeat", "doubling", "list_repeat", "replace_amplify", "recursion_macro", "deep_lists"]

    answers = run(names).values()

    assert all("refused" in answer for answer in answers)
    assert all(answer["peak_bytes"] < MAX_PEAK_BYTES for answer in answers)
