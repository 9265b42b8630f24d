"""Texts that say the same twice: exact copies, near copies, and held-out text that training has seen.

Called by data.py. Near copies are found by MinHash over the set of a text's lines (datasketch's
locality-sensitive index), because copied modules share lines; what training has seen is counted in windows
of words. Keeps the first of every group; the order of its input decides which that is.
"""

import re
import zlib
from collections.abc import Iterable

import numpy as np
from datasketch import MinHash, MinHashLSH
from tools.train.sources import Document

SIMILARITY = 0.5  # of the sets of lines (Jaccard), from which on two texts count as one
WINDOW_WORDS = 13
MAX_SEEN_SHARE = 0.2  # of a held-out text's windows
_PERMUTATIONS = 64
_WORDS = re.compile(r"\w+|[^\w\s]")


def without_exact_duplicates(documents: Iterable[Document]) -> list[Document]:
    """Keep the first of every distinct text."""
    first: dict[str, Document] = {}
    for document in documents:
        first.setdefault(document.digest, document)
    return list(first.values())


def without_near_duplicates(documents: Iterable[Document]) -> list[Document]:
    """Keep each text that is not like one kept before it."""
    index = MinHashLSH(threshold=SIMILARITY, num_perm=_PERMUTATIONS)
    kept = []
    for document in documents:
        lines = {line.strip().encode() for line in document.text.splitlines() if len(line.strip()) > 3}
        if not lines:
            continue
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update_batch(sorted(lines))
        if not index.query(sketch):
            index.insert(document.path, sketch)
            kept.append(document)
    return kept


def seen_shares(train: Iterable[Document], held_out: Iterable[Document]) -> dict[str, float]:
    """Give, for each held-out path, the share of its windows of WINDOW_WORDS words that training holds."""
    known = np.unique(np.concatenate([np.zeros(1, np.int64), *(_windows(one.text) for one in train)]))
    shares = {}
    for document in held_out:
        windows = _windows(document.text)
        places = np.minimum(np.searchsorted(known, windows), len(known) - 1)
        shares[document.path] = float((known[places] == windows).mean()) if len(windows) else 0.0
    return shares


def _windows(text: str) -> np.ndarray:
    """Hash every window of words to 64 bits; words hash by their bytes, so the result never changes."""
    words = np.array([_word_hash(word) for word in _WORDS.findall(text)], dtype=np.uint64)
    if len(words) < WINDOW_WORDS:
        return np.zeros(0, np.int64)
    hashes = np.zeros(len(words) - WINDOW_WORDS + 1, np.uint64)
    for place in range(WINDOW_WORDS):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + words[place : place + len(hashes)]
    return hashes.astype(np.int64)


_word_hashes: dict[str, int] = {}


def _word_hash(word: str) -> int:
    number = _word_hashes.get(word)
    if number is None:
        data = word.encode()
        number = zlib.crc32(data) << 32 | zlib.adler32(data)
        _word_hashes[word] = number
    return number
