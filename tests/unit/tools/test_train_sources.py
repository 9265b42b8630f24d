"""Which packages may be learned from, and how much of each."""

from email.message import Message
from pathlib import Path

import pytest
from tools.train import sources


def _metadata(**fields: str | list[str]) -> Message:
    message = Message()
    for name, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    "fields",
    [
        {"License_Expression": "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0"},
        {"License_Expression": "Apache-2.0 OR BSD-2-Clause"},
        {"License": "Apache 2.0 License"},
        {"License": "BSD"},
        {"Classifier": ["License :: OSI Approved :: MIT License"]},
        {"License": "x" * 400, "Classifier": ["License :: OSI Approved :: BSD License"]},
    ],
)
def test_a_permissive_package_is_taken(fields: dict[str, str | list[str]]) -> None:
    assert sources.permissive_licence(_metadata(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"License_Expression": "MPL-2.0 AND MIT"},
        {"License_Expression": "LGPL-2.1-or-later"},
        {"License": "GPL"},
        {"License": "MIT", "Classifier": ["License :: OSI Approved :: GNU General Public License (GPL)"]},
        {"Classifier": ["License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"]},
    ],
)
def test_any_other_package_is_left_out(fields: dict[str, str | list[str]]) -> None:
    assert sources.permissive_licence(_metadata(**fields)) is None


def _install(site: Path, name: str, num_files: int) -> None:
    folder, info = site / name, site / f"{name}-1.0.dist-info"
    folder.mkdir(parents=True)
    info.mkdir()
    files = [f"{name}/m{number}.py" for number in range(num_files)] + [f"{name}/tests/t.py"]
    for file in files:
        (site / file).parent.mkdir(exist_ok=True)
        (site / file).write_text(f"# {file}\n" + "value = 1\n" * 2000)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: MIT\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_a_package_gives_its_modules_but_no_tests(tmp_path: Path) -> None:
    _install(tmp_path, "small", 3)
    ((source, documents),) = sources.package_documents([tmp_path])

    assert (source.source, source.version, source.licence) == ("small", "1.0", "MIT")
    assert sorted(document.path for document in documents) == [f"small/small/m{n}.py" for n in range(3)]


def test_a_large_package_gives_no_more_than_the_limit_and_always_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_PACKAGE_BYTES", 100_000)
    _install(tmp_path, "large", 12)
    ((_, documents),) = sources.package_documents([tmp_path])

    assert len(documents) == 4
    assert next(iter(sources.package_documents([tmp_path])))[1] == documents
