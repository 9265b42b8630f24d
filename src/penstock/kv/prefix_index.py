"""Which block holds this beginning of a text: a chain of links, one per full block, looked up by content.

A link is a block's tokens and all before them, the tenant's salt and the cache key (dtype, codec, retention).
Its key is blake2b-128 under a secret of this process, so nobody can aim at a collision; yet a hit is believed
only after comparing by value, link by link. Used by KVManager alone; counts no references.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

KEY_BYTES = 16


@dataclass(slots=True, eq=False)
class Link:
    """One full block of tokens after `parent` (None: the text begins here). Compare with `is_same`."""

    parent: "Link | None" = field(repr=False)
    tokens: bytes  # int32 each
    salt: str
    extra: str
    key: bytes


class Linker:
    """Makes links. `secret` keys the hash: keep it from those who choose the tokens."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def link(self, parent: Link | None, tokens: Sequence[int], *, salt: str, extra: str) -> Link:
        packed = array("i", tokens).tobytes()
        return Link(parent, packed, salt, extra, self._key(parent, packed, salt, extra))

    def _key(self, parent: Link | None, packed: bytes, salt: str, extra: str) -> bytes:
        digest = blake2b(digest_size=KEY_BYTES, key=self._secret)
        digest.update(parent.key if parent is not None else bytes(KEY_BYTES))
        for text in (salt.encode(), extra.encode()):  # length first: no two pairs read alike
            digest.update(len(text).to_bytes(4, "little"))
            digest.update(text)
        digest.update(packed)
        return digest.digest()


def is_same(one: Link | None, other: Link | None) -> bool:
    """Equal by value up to the beginning of the text. Usually O(1): chains of one text share their links."""
    while one is not other:
        if one is None or other is None:
            return False
        if one.tokens != other.tokens or one.salt != other.salt or one.extra != other.extra:
            return False
        one, other = one.parent, other.parent
    return True


class PrefixIndex:
    """The cached blocks of one KV group, by what they hold. At most one block per key, one key per block."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._link_of: dict[int, Link] = {}

    def __len__(self) -> int:
        return len(self._link_of)

    def __iter__(self) -> Iterator[int]:
        return iter(self._link_of)

    def find(self, link: Link) -> int | None:
        """The block that holds exactly this beginning's last tokens."""
        block_id = self._block_of.get(link.key)
        if block_id is None or not is_same(self._link_of[block_id], link):
            return None
        return block_id

    def find_link(self, block_id: int) -> Link | None:
        return self._link_of.get(block_id)

    def publish(self, link: Link, block_id: int) -> bool:
        """False if a block is known under this key already: the first one stays."""
        assert block_id not in self._link_of, f"block {block_id} is published twice"
        if link.key in self._block_of:
            return False
        self._block_of[link.key] = block_id
        self._link_of[block_id] = link
        return True

    def remove(self, block_id: int) -> None:
        del self._block_of[self._link_of.pop(block_id).key]
