"""The pair of sockets: what the front end's event loop may wait for, which is nothing."""

import threading
import time

from penstock.engine.channel import Channel
from penstock.engine.wire import Stop


def sent(channel: Channel, timeout_s: float = 5.0) -> bool:
    """What `send` gives; AssertionError where it does not return."""
    given: list[bool] = []
    thread = threading.Thread(target=lambda: given.append(channel.send(Stop())), daemon=True)
    thread.start()
    thread.join(timeout_s)
    assert given, "send blocks"
    return given[0]


def test_to_an_engine_that_has_not_come_nothing_is_sent_and_nobody_waits():
    ours = Channel.bind()

    assert sent(ours) is False

    ours.hide()
    ours.close()


def test_to_an_engine_that_has_died_nothing_is_sent_and_nobody_waits():
    ours = Channel.bind()
    theirs = Channel.connect(ours.path)
    theirs.send(Stop())
    assert ours.wait(5)
    assert ours.receive() == Stop()
    assert sent(ours) is True

    theirs.close()
    end_s = time.monotonic() + 5
    while sent(ours):
        assert time.monotonic() < end_s, "the end of the other side is not seen"
        time.sleep(0.01)

    ours.hide()
    ours.close()
