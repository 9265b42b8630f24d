"""What simpler models make of the held-out text once they have seen the training text, in nats per byte.

Called by evaluate.py. xz with a dictionary over all of it and PPMd of order 16 (what the held-out text adds
to the compressed training text), and a 5-gram model over the same tokens with interpolated, modified
Kneser-Ney smoothing (Chen and Goodman 1999). The corpus alone decides these numbers.
"""

import lzma
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pyppmd import Ppmd7Encoder
from tokenizers import Tokenizer
from tools.train.sources import Document

_DICTIONARY_BYTES = 1 << 27
_PPMD_ORDER, _PPMD_BYTES = 16, 3 << 29
_KN_ORDER = 5
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def xz_nats_per_byte(train: Sequence[Document], test: Sequence[Document]) -> float:
    """size(train + test) - size(train)."""
    seen, held_out = _bytes_of(train), _bytes_of(test)
    return _nats(_xz_bytes(seen + held_out) - _xz_bytes(seen), len(held_out))


def ppmd_nats_per_byte(train: Sequence[Document], test: Sequence[Document]) -> float:
    """The same with PPMd variant H, in one pass: what the encoder puts out after the last training byte."""
    held_out = _bytes_of(test)
    encoder = Ppmd7Encoder(_PPMD_ORDER, _PPMD_BYTES)
    encoder.encode(_bytes_of(train))
    return _nats(len(encoder.encode(held_out)) + len(encoder.flush()), len(held_out))


def kneser_ney_nats_per_byte(
    tokenizer: Tokenizer, train: Sequence[Document], test: Sequence[Document]
) -> float:
    """A 5-gram model over tokens; every text begins with the begin token, which is given."""
    seen, _ = _stream(tokenizer, train)
    held_out, is_counted = _stream(tokenizer, test)
    probability = np.full(len(held_out), 1 / tokenizer.get_vocab_size())
    tables = _tables(seen)
    for order, table in enumerate(tables, start=1):
        probability = table.refined(probability, _hashes(held_out, order), _context_hashes(held_out, order))
    nats = -np.log(probability[is_counted]).sum()
    return float(nats) / len(_bytes_of(test))


@dataclass(frozen=True, slots=True)
class _Table:
    """One order: counts of n-grams, and for each context their sum and the mass that discounts free."""

    grams: np.ndarray
    discounted: np.ndarray
    contexts: np.ndarray
    sums: np.ndarray
    freed: np.ndarray

    def refined(self, lower: np.ndarray, grams: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """p(token) from this order, interpolated with `lower`; contexts never seen leave it as it is."""
        numbers, is_gram = _find(self.grams, grams)
        places, is_context = _find(self.contexts, contexts)
        own = np.where(is_gram, self.discounted[numbers], 0.0)
        refined = (own + self.freed[places] * lower) / self.sums[places]
        out: np.ndarray = np.where(is_context, refined, lower)
        return out


def _tables(stream: np.ndarray) -> list[_Table]:
    """From order 5 down: raw counts at the top, below it in how many n+1-grams an n-gram ends."""
    tables = []
    positions: np.ndarray | None = None
    for order in range(_KN_ORDER, 0, -1):
        hashes = _hashes(stream, order)
        at = np.arange(order - 1, len(stream)) if positions is None else positions
        grams, first, counts = np.unique(hashes[at], return_index=True, return_counts=True)
        positions = at[first]
        discounts = _discounts(counts)
        taken = discounts[np.minimum(counts, 3)]
        contexts, place = np.unique(_context_hashes(stream, order)[positions], return_inverse=True)
        sums = np.bincount(place, weights=counts)
        freed = np.bincount(place, weights=taken)
        tables.append(_Table(grams, counts - taken, contexts, sums, freed))
    return tables[::-1]


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D1, D2 and D3+ of Chen and Goodman, at indices 1 to 3."""
    n = np.bincount(np.minimum(counts, 5), minlength=5)[:5].astype(np.float64) + 1
    share = n[1] / (n[1] + 2 * n[2])
    wanted = [number - (number + 1) * share * n[number + 1] / n[number] for number in (1, 2, 3)]
    return np.array([0.0, *np.clip(wanted, 0.1, (0.9, 1.9, 2.9))])  # small samples can ask for the impossible


def _hashes(stream: np.ndarray, order: int) -> np.ndarray:
    """Hash the `order` tokens that end at each place to 64 bits."""
    mixed = (stream.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    hashes = np.zeros(len(stream), np.uint64)
    for back in range(order - 1, -1, -1):
        hashes *= _HASH_FACTOR
        hashes[back:] += mixed[: len(stream) - back]
    return hashes


def _context_hashes(stream: np.ndarray, order: int) -> np.ndarray:
    """Hash the `order` - 1 tokens before each place."""
    hashes = np.zeros(len(stream), np.uint64)
    hashes[1:] = _hashes(stream, order - 1)[:-1]
    return hashes


def _find(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return places, known[places] == wanted


def _stream(tokenizer: Tokenizer, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens in one row, and which of them are predicted: all but each text's begin token."""
    rows = [np.array(tokenizer.encode(document.text).ids, np.int32) for document in documents]
    is_counted = np.concatenate([np.arange(len(row)) > 0 for row in rows])
    return np.concatenate(rows), is_counted


def _bytes_of(documents: Sequence[Document]) -> bytes:
    return "".join(document.text for document in documents).encode()


def _xz_bytes(data: bytes) -> int:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": _DICTIONARY_BYTES}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def _nats(num_bytes: int, of_bytes: int) -> float:
    return num_bytes * 8 * math.log(2) / of_bytes
