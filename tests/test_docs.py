"""Documents stay true: doctests, links, tables, every command and Python block of README and guides.

A fence says how it is treated: ```sh is run line by line, ```python is run whole, ```console is only checked
for flags that exist, other fences are drawings.
"""

import contextlib
import doctest
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.test_architecture import MAY_IMPORT
from tools.cli_reference import TARGET, reference

from penstock.cli.main import make_parser

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "src/**/*.md",
        "tests/**/*.md",
        "tools/**/*.md",
        "benchmarks/**/*.md",
    )
    for path in ROOT.glob(pattern)
)
SHOWN = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
RUN_PYTHON = [
    ROOT / "README.md",
    ROOT / "docs" / "guides" / "quickstart.md",
    ROOT / "docs" / "guides" / "structured-outputs.md",
]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
PROMPT_OF_DOCTEST = ">>> "
HOSTS = {  # what a document may point to
    "arxiv.org", "debian.org", "docs.python.org", "github.com", "huggingface.co", "keepachangelog.com",
    "semver.org", "www.apache.org", "www.python.org",
}  # fmt: skip
# absolute paths of somebody's machine; in two halves, so that this line is none
SOMEBODYS_PATH = re.compile(r"(?<![\w.~\]*])/(?:" + "root|home|work|Users|mnt" + r")/\w")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fences(path: Path, *kinds: str) -> list[str]:
    return [body for kind, body in FENCE.findall(path.read_text("utf-8")) if kind in kinds]


MODULES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in sorted(SOURCE.rglob("*.py"))
    if PROMPT_OF_DOCTEST in path.read_text("utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_doctests_show_what_happens(name):
    module = importlib.import_module(name.removesuffix(".__init__"))
    results = doctest.testmod(module)
    is_skipped = "doctest: +SKIP" in Path(str(module.__file__)).read_text("utf-8")

    assert results.attempted > 0 or is_skipped
    assert results.failed == 0


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    text = FENCE.sub("", path.read_text("utf-8"))
    for target in LINK.findall(text):
        place, _, anchor = target.partition("#")
        if "://" in place:
            assert place.split("/")[2] in HOSTS, place
            continue
        found = path if not place else (path.parent / place).resolve()

        assert found.exists(), f"{name_of(path)} links to {target}"
        assert not anchor or anchor in anchors(found), f"{name_of(path)} links to {target}"


def anchors(path: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


COMMANDS = [
    (path, line) for path in SHOWN for body in fences(path, "sh") for line in body.splitlines() if line
]
MENTIONED = [
    (path, line)
    for path in PAGES
    for body in fences(path, "sh", "console")
    for line in body.splitlines()
    if line.startswith("penstock ")
]


@pytest.fixture(scope="module")
def path_with_penstock(tmp_path_factory):
    """A folder with the command, whether or not the package is installed in this environment."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "penstock"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m penstock.cli.main "$@"\n')
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize(("path", "line"), COMMANDS, ids=[line[:60] for _, line in COMMANDS])
def test_commands_of_readme_and_guides_run(path, line, path_with_penstock, tmp_path):
    done = subprocess.run(
        ["sh", "-c", line],
        env={**os.environ, "PATH": path_with_penstock, "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    assert done.stdout or line.endswith("Ctrl-C stops an answer") or "penstock run penstock-tiny" in line


@pytest.mark.parametrize(("path", "line"), MENTIONED, ids=[line[:60] for _, line in MENTIONED])
def test_commands_that_are_only_shown_have_flags_that_exist(path, line):
    arguments = shlex.split(line, comments=True)[1:]
    options, unknown = make_parser(arguments[0]).parse_known_args(arguments)

    assert options.verb == arguments[0]
    assert unknown == []


BLOCKS = [(path, body) for path in RUN_PYTHON for body in fences(path, "python")]


@pytest.mark.parametrize(
    ("path", "body"), BLOCKS, ids=[f"{name_of(path)}-{i}" for i, (path, _) in enumerate(BLOCKS)]
)
def test_python_blocks_run(path, body):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(body, name_of(path), "exec"), {"__name__": "__main__"})

    assert printed.getvalue() or "assert " in body


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_examples_run(path):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(path.read_text("utf-8"), name_of(path), "exec"), {"__name__": "__main__"})

    assert printed.getvalue()


def test_the_first_screen_of_the_readme_has_two_commands():
    text = (ROOT / "README.md").read_text("utf-8")
    first_screen = "\n".join(text.splitlines()[:15])

    assert fences(ROOT / "README.md", "")[0].split("\n") == ["make demo", "make test", ""]
    assert first_screen.count("```") == 2


def test_verbs_of_make_that_are_mentioned_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    verbs = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    mentioned = {
        verb
        for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
        for verb in re.findall(r"`make ([a-z-]+)`", page.read_text("utf-8"))
    }

    assert mentioned
    assert mentioned <= verbs


def test_the_import_table_of_the_architecture_is_the_law():
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    rows = text.partition("| room | may import |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    table = dict(row.strip("| ").split(" | ") for row in rows)

    assert {room: "" if may == "nothing" else may for room, may in table.items()} == MAY_IMPORT


def test_the_architecture_has_a_sentence_for_every_folder():
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    rooms = [p for p in (SOURCE / "penstock").iterdir() if p.is_dir() and any(p.rglob("*"))]
    named = {path.name for path in rooms if not path.name.startswith("__")}
    missing = {name for name in named if f"| `{name}/" not in text}

    assert missing == set()
    for row in re.findall(r"^\| `([\w/]+)/` \|", text, re.MULTILINE):
        assert (ROOT / row).exists() or (SOURCE / "penstock" / row).exists(), row


def test_the_command_line_reference_is_what_the_parsers_say():
    assert TARGET.read_text("utf-8") == reference(), "run: python -m tools.cli_reference"


def test_files_quoted_word_for_word_are():
    quoted = 0
    for page in PAGES:
        text = page.read_text("utf-8")
        for name, body in re.findall(
            r"<!-- the file (\S+), word for word.*?-->\n```\w*\n(.*?)^```$", text, re.S | re.M
        ):
            quoted += 1
            assert (ROOT / name).read_text("utf-8") == body, name

    assert quoted >= 1


def test_decisions_are_numbered_and_have_the_four_parts():
    decisions = sorted((ROOT / "docs" / "adr").glob("*.md"))

    assert [int(path.name[:4]) for path in decisions] == list(range(1, len(decisions) + 1))
    for path in decisions:
        text = path.read_text("utf-8")
        for part in (
            "**Situation.**",
            "**Choice.**",
            "**What we gave up.**",
            "**How we would notice that we were wrong.**",
        ):
            assert part in text, f"{path.name} lacks {part}"


def test_nobodys_machine_is_in_a_file():
    checked = 0
    kinds = ("*.md", "*.py", "*.h", "*.cpp", "*.toml", "*.sh", "*.txt")
    folders = ("docs", "src", "tests", "tools", "native", "benchmarks", "examples", ".ci")
    files = [path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(kind)]
    for path in [
        *files,
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
        *ROOT.glob("*.md"),
        *(ROOT / ".ci").glob("*"),
    ]:
        checked += 1
        found = SOMEBODYS_PATH.search(path.read_text("utf-8"))

        assert not found, f"{name_of(path)} holds {found[0] if found else ''}"
    assert checked > 100
