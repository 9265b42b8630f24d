"""Where training text comes from: the standard library, its documentation, and installed packages.

Called by data.py. Reads only what the machine holds. A package is taken if its metadata names a
permissive licence and nothing else; everything it refuses is left out without a word, because the data
list says what was taken.
"""

import importlib.metadata
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

DEFAULT_DOCS = Path(
    "/usr/share/doc/python3-doc/html/_sources"
)  # where Debian's and Ubuntu's python3-doc puts them
MAX_PACKAGE_BYTES = (
    1_500_000  # of one package, so that model zoos and generated clients do not drown the rest
)
_MIN_BYTES, _MAX_BYTES = 64, 400_000
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
    | {"_vendor", "vendored", "_vendored_packages"}
)  # pydoc_data repeats the language reference, which would put one text into two splits
_SKIPPED_FILES = re.compile(
    r"^(_sysconfigdata|_sysconfig_)|^(entities|schema|sequence|stringprep)\.py$|^test_|_test\.py$|_pb2\.py$"
)
_TABLE = re.compile(r"^(decoding_table|decoding_map|aliases) = ", re.MULTILINE)
_PERMISSIVE = re.compile(
    r"(0BSD|BSD(-\d-Clause)?( License)?|\d-Clause BSD License|MIT( License)?|ISC( License)?|Zlib|CC0-1\.0"
    r"|PSF-2\.0|BSL-1\.0|CNRI-Python|ISC License \(ISCL\)|Apache([- ]2\.0)?( License)?"
    r"|Apache Software License|Apache-2\.0 WITH LLVM-exception)"
)
_CODE, _PROSE = (".py",), (".md", ".rst")


@dataclass(frozen=True, slots=True)
class Source:
    """One origin of documents, as the data list names it."""

    source: str
    name: str
    version: str
    licence: str


@dataclass(frozen=True, slots=True)
class Document:
    """One file. `path` starts with the name of its source; `kind` is "code" or "prose"."""

    path: str
    kind: str
    text: str

    @property
    def digest(self) -> str:
        return sha256(self.text.encode()).hexdigest()


def python_sources(docs: Path) -> list[Source]:
    """Name the standard library and its documentation."""
    return [
        Source("stdlib", "Python standard library, sources", platform.python_version(), "PSF-2.0"),
        Source("docs", "Python documentation, reStructuredText sources", _docs_version(docs), "PSF-2.0"),
    ]


def python_documents(stdlib: Path, docs: Path) -> Iterator[Document]:
    """Read both, without tests, data tables and build settings."""
    for root, pattern, source, kind in (
        (stdlib, "*.py", "stdlib", "code"),
        (docs, "*.rst.txt", "docs", "prose"),
    ):
        for file in sorted(root.rglob(pattern)):
            found = _read(file, file.relative_to(root), source, kind)
            if found is not None:
                yield found


def package_documents(sites: list[Path]) -> Iterator[tuple[Source, list[Document]]]:
    """Read every package under `sites` (site-packages folders) that is permissive; the first of a name wins.

    Of a package with more than MAX_PACKAGE_BYTES, the files whose paths hash lowest are taken.
    """
    seen: set[str] = set()
    for site in sites:
        for package in sorted(
            importlib.metadata.distributions(path=[str(site)]), key=lambda one: one.metadata["Name"].lower()
        ):
            name = package.metadata["Name"].lower().replace("_", "-")
            licence = permissive_licence(package.metadata)
            if name in seen or name == "penstock" or licence is None:
                continue
            seen.add(name)
            documents = _limited(list(_package_files(name, package, site)))
            if documents:
                version = package.version.partition("+")[0]
                yield Source(name, package.metadata["Name"], version, licence), documents


def permissive_licence(metadata: "importlib.metadata.PackageMetadata") -> str | None:
    """Give the licence if every part of what the package declares is permissive, else None."""
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License :: ") and "DFSG" not in line
    ]
    declared = metadata.get("License-Expression") or ""
    free_text = (metadata.get("License") or "").strip()
    if not declared and free_text and len(free_text) < 60:
        declared = free_text
    if not declared:
        declared = " AND ".join(line for line in classifiers if line != "OSI Approved")
    parts = [part.strip(" ()") for part in re.split(r" AND | OR ", declared.removesuffix(" License License"))]
    is_permissive = all(_PERMISSIVE.fullmatch(part) for part in parts) and not any(
        "GNU" in line or "Mozilla" in line for line in classifiers
    )
    return declared if is_permissive else None


def _package_files(name: str, package: importlib.metadata.Distribution, site: Path) -> Iterator[Document]:
    for entry in sorted(package.files or [], key=str):
        relative = Path(str(entry))
        is_inside = ".." not in relative.parts and not relative.parts[0].endswith((".dist-info", ".data"))
        kind = {**dict.fromkeys(_CODE, "code"), **dict.fromkeys(_PROSE, "prose")}.get(relative.suffix)
        if is_inside and kind is not None:
            found = _read(site / relative, relative, name, kind)
            if found is not None:
                yield found
    description = package.metadata.get_payload() or package.metadata.get("Description")
    if isinstance(description, str) and len(description) >= _MIN_BYTES:
        yield Document(f"{name}/DESCRIPTION", "prose", description)


def _limited(documents: list[Document]) -> list[Document]:
    taken, num_bytes = [], 0
    for document in sorted(documents, key=lambda one: sha256(one.path.encode()).digest()):
        num_bytes += len(document.text.encode())
        if num_bytes > MAX_PACKAGE_BYTES:
            break
        taken.append(document)
    return taken


def _read(file: Path, relative: Path, source: str, kind: str) -> Document | None:
    if _SKIPPED_FOLDERS & set(relative.parts[:-1]) or _SKIPPED_FILES.search(relative.name):
        return None
    try:
        text = file.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None
    is_table = "encodings" in relative.parts and _TABLE.search(text)
    is_fit = len(text) >= _MIN_BYTES and (source in ("stdlib", "docs") or len(text) <= _MAX_BYTES)
    return Document(f"{source}/{relative.as_posix()}", kind, text) if is_fit and not is_table else None


def _docs_version(docs: Path) -> str:
    options = docs.parent / "_static" / "documentation_options.js"
    match = re.search(r"VERSION: '([^']+)'", options.read_text()) if options.is_file() else None
    return match[1] if match else "unknown"


def stdlib_folder() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])
