"""The corpus: which files it has, where they come from, and which split each belongs to.

Called by tokenizer.py, packing.py, evaluate.py and card.py. Needs only the standard library. The split
is a hash of a file's relative path, so it is the same on every machine and never moves when files are
added; a text that occurs twice is kept once, before the split, so no text is in two splits.
"""

import hashlib
import json
import platform
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DEFAULT_DOCS = Path(
    "/usr/share/doc/python3-doc/html/_sources"
)  # where Debian's and Ubuntu's python3-doc puts them
SPLITS = ("train", "validation", "test")
_PERCENT_TEST = 5
_PERCENT_VALIDATION = 3
_MIN_BYTES = 64
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
)  # pydoc_data repeats the language reference, which would put one text into two splits
_SKIPPED_FILES = re.compile(r"^(_sysconfigdata|_sysconfig_)|^(entities|schema|sequence|stringprep)\.py$")
_TABLE = re.compile(r"^(decoding_table|decoding_map|aliases) = ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Document:
    """One file. `path` starts with the name of its source; `kind` is "code" or "prose"."""

    path: str
    kind: str
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def split(self) -> str:
        return split_of(self.path)


def split_of(path: str) -> str:
    """Give the split of a file, from the SHA-256 of its relative path alone."""
    percent = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8]) % 100
    if percent < _PERCENT_TEST:
        return "test"
    return "validation" if percent < _PERCENT_TEST + _PERCENT_VALIDATION else "train"


def collect(stdlib: Path, docs: Path) -> list[Document]:
    """Read both sources, sorted by path, without duplicates and without tests and data tables."""
    found = [
        *_read(stdlib, "*.py", source="stdlib", kind="code"),
        *_read(docs, "*.rst.txt", source="docs", kind="prose"),
    ]
    return without_duplicates(sorted(found, key=lambda document: document.path))


def without_duplicates(documents: Iterable[Document]) -> list[Document]:
    """Keep the first of every distinct text."""
    first: dict[str, Document] = {}
    for document in documents:
        first.setdefault(document.digest, document)
    return list(first.values())


def leaks(documents: Iterable[Document]) -> list[tuple[str, str]]:
    """Find every pair of paths that hold one text in two splits. Must be empty."""
    seen: dict[str, Document] = {}
    found = []
    for document in documents:
        other = seen.setdefault(document.digest, document)
        if other.split != document.split:
            found.append((other.path, document.path))
    return found


def load(docs: Path = DEFAULT_DOCS) -> list[Document]:
    """Collect the corpus of this machine; raise SystemExit if a source is missing or a text leaks."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    if not docs.is_dir():
        raise SystemExit(f"no documentation sources in {docs}; install python3-doc or pass --docs FOLDER")
    documents = collect(stdlib, docs)
    leaked = leaks(documents)
    if leaked:
        raise SystemExit(
            f"{len(leaked)} texts are in two splits, first {leaked[0]}; fix the split before training"
        )
    return documents


def data_list(documents: Iterable[Document], docs: Path = DEFAULT_DOCS) -> dict[str, object]:
    """Say what the corpus is: sources, versions, licences, files and bytes by split, a digest of it all."""
    files: Counter[tuple[str, str]] = Counter()
    num_bytes: Counter[tuple[str, str]] = Counter()
    digest = hashlib.sha256()
    for document in documents:
        source = document.path.partition("/")[0]
        files[source, document.split] += 1
        num_bytes[source, document.split] += len(document.text.encode())
        digest.update(f"{document.path} {document.digest}\n".encode())
    versions = {"stdlib": platform.python_version(), "docs": _docs_version(docs)}
    names = {
        "stdlib": "Python standard library, sources",
        "docs": "Python documentation, reStructuredText sources",
    }
    sources = [
        {
            "source": source,
            "name": names[source],
            "version": versions[source],
            "licence": "PSF-2.0",
            "splits": {
                split: {"files": files[source, split], "bytes": num_bytes[source, split]} for split in SPLITS
            },
        }
        for source in ("stdlib", "docs")
    ]
    return {"sources": sources, "sha256": digest.hexdigest()}


def write_data_list(path: Path, documents: Iterable[Document], docs: Path = DEFAULT_DOCS) -> None:
    path.write_text(json.dumps(data_list(documents, docs), indent=2) + "\n")


def _read(root: Path, pattern: str, *, source: str, kind: str) -> Iterator[Document]:
    for file in root.rglob(pattern):
        relative = file.relative_to(root)
        if _SKIPPED_FOLDERS & set(relative.parts[:-1]) or _SKIPPED_FILES.match(relative.name):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        is_table = "encodings" in relative.parts and _TABLE.search(text)
        if len(text) >= _MIN_BYTES and not is_table:
            yield Document(f"{source}/{relative.as_posix()}", kind, text)


def _docs_version(docs: Path) -> str:
    options = docs.parent / "_static" / "documentation_options.js"
    match = re.search(r"VERSION: '([^']+)'", options.read_text()) if options.is_file() else None
    return match[1] if match else "unknown"
