"""The table of README.md is whole: every row has a test that exists, or a reason that the run prints."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
ROW = re.compile(r"^\| (.+?) \| (.+?) \| (.+) \|$")
PLACE = re.compile(r"(?:[\w/]+\.py)(?:::\w+)?|unit/\w+")
ADVISORIES = range(1, 52)


@cache
def rows():
    """(numbers or name, what, where) of each row."""
    lines = (TESTS / "api" / "README.md").read_text().splitlines()
    found = [match.groups() for line in lines if (match := ROW.match(line))]
    return [row for row in found if row[0] not in ("no.", "---")]


def numbers(row):
    return [int(number) for number in re.findall(r"\d+", row[0])] if row[0][0].isdigit() else []


@cache
def names_in(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_advisory_has_one_row():
    assert sorted(number for row in rows() for number in numbers(row)) == list(ADVISORIES)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_is_tried_or_says_why_not(row):
    name, what, where = row
    if where.startswith("-"):
        assert len(where) > 20, "a reason takes words"
        pytest.skip(f"{name}, {what}: {where[2:]}")
    places = PLACE.findall(where)
    assert places, "neither a test nor a reason"
    for place in places:
        file, _, function = place.partition("::")
        path = TESTS / file if (TESTS / file).exists() else TESTS.parent / file
        assert path.exists(), place
        assert not function or function in names_in(path), place
