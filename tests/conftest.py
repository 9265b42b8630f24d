"""For all tests: Ctrl-C works, also where the runner began with SIGINT ignored (as background jobs do)."""

import signal

import pytest


def pytest_configure() -> None:
    """Children inherit an ignored signal but no handler: this mends the commands that tests start, too."""
    _restore()


@pytest.fixture(autouse=True)
def ctrl_c_raises() -> None:
    """What an earlier test started in this process (a server, an engine's main) may have ignored it."""
    _restore()


def _restore() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)
