"""Registry: the plug-ins of one seam, by name. Being a file in the seam's folder is being registered.

Every seam owns one; every room reads them. An unknown name is refused with the nearest known one.
"""

import difflib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from penstock.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to plug-ins. Importing `folder` (a dotted package) on first use registers what lies in it.

    >>> colours: Registry[int] = Registry("colour")
    >>> colours.register("red")(1)
    1
    >>> colours["red"]
    1
    >>> colours["rad"]
    Traceback (most recent call last):
    penstock.errors.ConfigError: unknown colour 'rad'; known: red. Did you mean 'red'?
    """

    def __init__(self, noun: str, folder: str | None = None) -> None:
        self._noun = noun
        self._folder = folder
        self._entries: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        def keep(entry: T) -> T:
            for name in names:
                assert name not in self._entries, f"{self._noun} {name!r} is registered twice"
                self._entries[name] = entry
            return entry

        return keep

    def _load(self) -> dict[str, T]:
        if self._folder is not None:
            package = importlib.import_module(self._folder)
            for file in sorted(Path(package.__path__[0]).iterdir()):  # which fails, where pkgutil is silent
                if file.suffix == ".py" and file.stem != "__init__":
                    importlib.import_module(f"{package.__name__}.{file.stem}")
            self._folder = None  # last, so that no other thread and no failure leaves half a registry
        return self._entries

    def __getitem__(self, name: str) -> T:
        entries = self._load()
        if name in entries:
            return entries[name]
        near = difflib.get_close_matches(name, entries, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown {self._noun} {name!r}; known: {', '.join(sorted(entries))}.{hint}")

    def __contains__(self, name: object) -> bool:
        return name in self._load()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._load()))

    def __len__(self) -> int:
        return len(self._load())
