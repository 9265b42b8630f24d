"""For all tests: Ctrl-C works, also where the runner began with SIGINT ignored (as background jobs do)."""

import signal


def pytest_configure() -> None:
    """Children inherit an ignored signal but no handler: this mends the commands that tests start, too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
