"""The output of a batch on disk: whole lines only, appended and synced, so that a killed run can go on.

Called by `penstock batch`. A torn last line is cut off; what stands is read once, and is never asked again.
"""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from penstock.api.batch import LineAnswer
from penstock.errors import ConfigError


class BatchFile:
    """Locked while it is open. `answered` are the custom_ids it has; `judged` the lines that were refused."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.answered: set[str] = set()
        self.judged: set[int] = set()
        try:
            self._file = Path(name).open("a+b")  # noqa: SIM115 closed by __exit__
        except OSError as error:
            raise ConfigError(f"{name}: {error.strerror}; give a file that can be written.") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._file.close()
            raise ConfigError(f"{name} is being written by another batch; wait for it.") from None
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "BatchFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, answers: Sequence[LineAnswer]) -> None:
        """Write them, and return when they are on the disk."""
        if not answers:
            return
        self._file.write(b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                answer = msgspec.json.decode(line, type=LineAnswer)
            except (msgspec.MsgspecError, ValueError):
                raise ConfigError(
                    f"{self._name}: line {number:,} is no answer of a batch, and nothing may be lost; give "
                    "another file."
                ) from None
            if answer.error is not None:
                self.judged.add(answer.error.line)
            elif answer.custom_id is not None:
                self.answered.add(answer.custom_id)
            whole += len(line)
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)
