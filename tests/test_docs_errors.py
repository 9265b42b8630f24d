"""docs/errors.md says all codes and no others."""

import ast
import re
from pathlib import Path

from penstock import errors
from penstock.cli import main
from penstock.errors import PenstockError

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "errors.md").read_text()


def raised_codes(error: str) -> set[str]:
    """Codes of every `error(code, ...)` in src: written out there, or in calls of a `refuse` beside it."""
    codes = set()
    for path in sorted((ROOT / "src" / "penstock").rglob("*.py")):
        calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
        for node in calls:
            if getattr(node.func, "id", "") != error:
                continue
            code = node.args[0]
            if isinstance(code, ast.Constant):
                codes.add(str(code.value))
                continue

            assert getattr(code, "id", "") == "code", (
                f"{path.name}:{node.lineno}: the code is not written out"
            )
            codes |= {
                str(arg.value)
                for call in calls
                if "refuse" in (getattr(call.func, "id", ""), getattr(call.func, "attr", ""))
                for arg in (*call.args, *(k.value for k in call.keywords))
                if isinstance(arg, ast.Constant) and re.fullmatch(r"[a-z]+_[a-z_]+|truncated", str(arg.value))
            }
    return codes


def all_errors(kind: type[PenstockError] = PenstockError) -> list[type[PenstockError]]:
    return [kind, *(error for child in kind.__subclasses__() for error in all_errors(child))]


def test_every_code_of_a_checkpoint_is_documented_and_every_documented_one_exists() -> None:
    section = TEXT.partition("## `ModelLoadError.code`")[2]
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)

    assert len(documented) == len(set(documented))
    assert set(documented) == raised_codes("ModelLoadError")


def test_every_exit_code_is_documented_with_its_errors() -> None:
    section = TEXT.partition("## Exit codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \|([^|]*)\|", section, re.MULTILINE)
    documented = {int(code): set(re.findall(r"`(\w+)`", names)) for code, names in rows}
    expected: dict[int, set[str]] = {
        main.IO_ERROR: {"OSError"},
        main.INTERRUPTED: set(),
        main.READER_LEFT: set(),
    }
    for error in all_errors():
        if error.__module__ == errors.__name__:
            expected.setdefault(error.exit_code, set()).add(error.__name__)

    assert documented == expected


def test_every_answer_of_a_server_is_documented_with_its_status_and_code() -> None:
    section = TEXT.partition("## What a server answers")[2].partition("\n## ")[0]
    documented = {(int(a), b) for a, b in re.findall(r"^\| (\d+) \| `(\w+)`", section, re.MULTILINE)}
    told = [
        error for error in all_errors() if error.__module__ == errors.__name__ and error.http_status != 499
    ]
    fixed = {(e.http_status, e.code) for e in told if isinstance(getattr(e, "code", None), str)}

    assert fixed - {(400, "internal_error")} <= documented
    assert (503, "engine_overloaded") in documented


def test_the_codes_of_requests_are_documented() -> None:
    written = {"invalid_value", "context_length_exceeded"}
    for path in sorted((ROOT / "src" / "penstock").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InvalidRequestError":
                written |= {ast.unparse(k.value).strip("'") for k in node.keywords if k.arg == "code"}

    assert "template_limit" in written
    assert all(f"`{code}`" in TEXT for code in written)
