"""The version of this package, also where it runs from a source tree that was never installed."""

from importlib.metadata import PackageNotFoundError, version


def penstock_version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "(source tree)"
