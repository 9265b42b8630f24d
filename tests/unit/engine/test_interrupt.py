import signal

import pytest

from penstock.engine.interrupt import DeferredInterrupt


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_rises_when_the_block_is_left():
    done = []
    with pytest.raises(KeyboardInterrupt), DeferredInterrupt():
        interrupt()
        done.append("all of it")

    assert done == ["all of it"]


def test_a_second_interrupt_rises_at_once():
    done = []
    with pytest.raises(KeyboardInterrupt), DeferredInterrupt():
        interrupt()
        interrupt()
        done.append("never")

    assert done == []


def test_a_kept_handler_defers_within_a_round_and_not_between_two():
    before = signal.getsignal(signal.SIGINT)
    deferred = DeferredInterrupt()
    done = []
    with deferred.installed():
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        with pytest.raises(KeyboardInterrupt), deferred:
            interrupt()
            done.append("all of it")
        with deferred:
            done.append("nothing is left over")

    assert done == ["all of it", "nothing is left over"]
    assert signal.getsignal(signal.SIGINT) is before


def test_whoever_fails_leaves_the_handler_that_was_there():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="broken"), DeferredInterrupt().installed():
        raise ValueError("broken")

    assert signal.getsignal(signal.SIGINT) is before
