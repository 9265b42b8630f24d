"""The corpus: which documents it has and which split each belongs to.

Called by __main__.py, tokenizer.py, packing.py, evaluate.py and card.py. The split is a hash of a file's
relative path, so it is the same on every machine and never moves when files are added; of texts that are
the same or nearly so one is kept, before the split, so no text is in two splits; a held-out text of which
training has seen too much is left out.
"""

import hashlib
import json
import sysconfig
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.train.duplicates import (
    MAX_SEEN_SHARE,
    SIMILARITY,
    WINDOW_WORDS,
    seen_shares,
    without_exact_duplicates,
    without_near_duplicates,
)
from tools.train.sources import (
    Document,
    Source,
    package_documents,
    python_documents,
    python_sources,
    stdlib_folder,
)

SPLITS = ("train", "validation", "test")
_PERCENT_TEST = 5
_PERCENT_VALIDATION = 3
_MEASURED_BYTES = {"code": 400_000, "prose": 150_000}  # a card is then measured in minutes on one core
_MAX_MEASURED_FILE_BYTES = 60_000


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in order of path, their sources, and what was left out on the way."""

    sources: list[Source]
    documents: list[Document]
    removed: dict[str, int]
    seen_share: dict[str, float]  # mean over the held-out texts of a split

    def of(self, split: str, kind: str | None = None) -> list[Document]:
        return [
            document
            for document in self.documents
            if split_of(document.path) == split and kind in (None, document.kind)
        ]

    def held_out(self, kind: str) -> list[Document]:
        """The part of the test split that cards are measured on: files by their hash, up to a size."""
        taken, num_bytes = [], 0
        for document in sorted(self.of("test", kind), key=lambda one: hash_of(one.path)):
            size = len(document.text.encode())
            if size <= _MAX_MEASURED_FILE_BYTES and num_bytes + size <= _MEASURED_BYTES[kind]:
                taken.append(document)
                num_bytes += size
        return taken


def hash_of(path: str) -> bytes:
    return hashlib.sha256(path.encode()).digest()


def split_of(path: str) -> str:
    """Give the split of a file, from the SHA-256 of its relative path alone."""
    percent = int.from_bytes(hash_of(path)[:8]) % 100
    if percent < _PERCENT_TEST:
        return "test"
    return "validation" if percent < _PERCENT_TEST + _PERCENT_VALIDATION else "train"


def default_sites() -> list[Path]:
    """The packages of the running environment."""
    return [Path(sysconfig.get_paths()["purelib"])]


def load(docs: Path, sites: Sequence[Path], stored: Path) -> Corpus:
    """Read the corpus stored by an earlier call, or collect and store it; refuse where one source lacks."""
    if stored.is_file():
        return _from_json(json.loads(stored.read_text()))
    if not docs.is_dir():
        raise SystemExit(f"no documentation sources in {docs}; install python3-doc or pass --docs FOLDER")
    sources, documents = python_sources(docs), list(python_documents(stdlib_folder(), docs))
    for source, found in package_documents(list(sites)):
        sources.append(source)
        documents += found
    corpus = cleaned(sources, documents)
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_text(json.dumps(asdict(corpus)))
    return corpus


def cleaned(sources: list[Source], documents: Iterable[Document]) -> Corpus:
    """Remove copies, near copies and held-out texts that training has seen; Python's own texts win."""
    own = {"stdlib": 0, "docs": 1}
    found = sorted(documents, key=lambda one: (own.get(one.path.partition("/")[0], 2), one.path))
    distinct = without_exact_duplicates(found)
    unlike = without_near_duplicates(distinct)
    by_split: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in unlike:
        by_split[split_of(document.path)].append(document)
    shares = seen_shares(by_split["train"], [*by_split["validation"], *by_split["test"]])
    kept = [document for document in unlike if shares.get(document.path, 0.0) <= MAX_SEEN_SHARE]
    mean_shares = {
        split: round(_mean([shares[one.path] for one in kept if split_of(one.path) == split]), 4)
        for split in ("validation", "test")
    }
    removed = {
        "exact": len(found) - len(distinct),
        "near": len(distinct) - len(unlike),
        "seen": len(unlike) - len(kept),
    }
    return Corpus(sources, sorted(kept, key=lambda document: document.path), removed, mean_shares)


def data_list(corpus: Corpus) -> dict[str, object]:
    """Say what the corpus is: sources, versions, licences, files and bytes by split, a digest of it all."""
    files: Counter[tuple[str, str]] = Counter()
    num_bytes: Counter[tuple[str, str]] = Counter()
    digest = hashlib.sha256()
    for document in corpus.documents:
        source, split = document.path.partition("/")[0], split_of(document.path)
        files[source, split] += 1
        num_bytes[source, split] += len(document.text.encode())
        digest.update(f"{document.path} {document.digest}\n".encode())
    sources = [
        {
            **asdict(source),
            "splits": {
                split: {"files": files[source.source, split], "bytes": num_bytes[source.source, split]}
                for split in SPLITS
            },
        }
        for source in corpus.sources
        if any(files[source.source, split] for split in SPLITS)
    ]
    return {
        "sources": sources,
        "removed": corpus.removed,
        "line_similarity": SIMILARITY,
        "window_words": WINDOW_WORDS,
        "max_seen_share": MAX_SEEN_SHARE,
        "seen_share": corpus.seen_share,
        "sha256": digest.hexdigest(),
    }


def write_data_list(path: Path, corpus: Corpus) -> None:
    path.write_text(json.dumps(data_list(corpus), indent=1) + "\n")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _from_json(stored: dict[str, list[dict[str, str]]]) -> Corpus:
    sources = [Source(**source) for source in stored["sources"]]
    documents = [Document(**document) for document in stored["documents"]]
    return Corpus(sources, documents, dict(stored["removed"]), dict(stored["seen_share"]))  # type: ignore[arg-type]
