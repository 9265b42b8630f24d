"""API keys: read once at start, kept as digests, compared in constant time. Called by the doors.

An empty key is refused at start: "no key" is said by naming none. A key is never logged; `key_id`, a few
digits of its digest, says whose request it was.
"""

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from penstock.errors import ConfigError

MIN_KEY_CHARS = 8


class Keys:
    """The keys that open this server; none at all means that nobody needs one."""

    def __init__(self, keys: Sequence[str]) -> None:
        for key in keys:
            if len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError(
                    f"an API key has {len(key)} characters or some that no header holds; an empty or short "
                    f"key keeps nobody out. Use at least {MIN_KEY_CHARS} printable ASCII characters."
                )
        self._digests = [hashlib.sha256(key.encode()).digest() for key in dict.fromkeys(keys)]

    @property
    def are_needed(self) -> bool:
        return bool(self._digests)

    def find(self, given: str | None) -> str | None:
        """The id of the key that was given; None where it is none of ours. All are compared, always."""
        digest = hashlib.sha256((given or "").encode("utf-8", "surrogateescape")).digest()
        found = None
        for known in self._digests:
            if hmac.compare_digest(known, digest):
                found = known.hex()[:12]
        return found


def read_keys(file: str | None, from_environment: str | None) -> Keys:
    """Keys of the file (one per line, # begins a comment) and of PENSTOCK_API_KEY."""
    keys: list[str] = []
    if from_environment is not None:
        if not from_environment:
            raise ConfigError("PENSTOCK_API_KEY is set but empty, which is no key; unset it or give one.")
        keys.append(from_environment)
    if file is not None:
        try:
            lines = Path(file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "no UTF-8"
            raise ConfigError(
                f"api_key_file {file}: {why}; give a text file with one key per line."
            ) from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ConfigError(
                f"api_key_file {file} holds no key; write one per line, or leave the option out."
            )
        keys += found
    return Keys(keys)
