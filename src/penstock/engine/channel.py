"""The pair of ZeroMQ sockets between front end and engine process, in a directory of this user alone.

The front end binds, one engine connects, and then the path is unlinked: nobody else can ever connect, and
nothing is left behind whoever dies. A restarted engine gets a channel of its own, so no stale frame can come.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import zmq

from penstock.engine.wire import Message, decode, encode

FRAMES_AHEAD = 1000  # an engine whose front end stands still waits after so many steps
MAX_FRAME_BYTES = 256 << 20


class Channel:
    """One end. Not for several threads. `num_malformed` counts the frames that were dropped."""

    def __init__(self, socket: "zmq.Socket[bytes]", path: Path, *, send_flags: int = 0) -> None:
        self._socket = socket
        self._send_flags = send_flags
        self.path = path
        self.num_malformed = 0
        self.fd: int = socket.getsockopt(zmq.FD)  # type: ignore[assignment]  # an int for this option

    @classmethod
    def bind(cls) -> "Channel":
        """The front end's end, in a new private directory."""
        folder = Path(tempfile.mkdtemp(prefix="penstock-"))  # mode 0700
        path = folder / "engine.sock"
        socket = _pair()
        socket.setsockopt(zmq.SNDHWM, 0)  # what may wait is bounded by admission
        socket.bind(f"ipc://{path}")
        path.chmod(0o600)
        return cls(socket, path, send_flags=zmq.NOBLOCK)

    @classmethod
    def connect(cls, path: Path) -> "Channel":
        """The engine's end."""
        socket = _pair()
        socket.setsockopt(zmq.SNDHWM, FRAMES_AHEAD)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.connect(f"ipc://{path}")
        return cls(socket, path)

    def send(self, message: Message) -> bool:
        """False: the front end has no engine at the other end (any more), and the frame is dropped.

        The front end never blocks here: an event loop that waits for a dead engine would learn of no death.
        The engine does, where the front end has not read for FRAMES_AHEAD frames.
        """
        try:
            self._socket.send(encode(message), self._send_flags, copy=True)
        except zmq.Again:
            return False
        return True

    def receive(self) -> Message | None:
        """The next message that has arrived, or None. Malformed frames are passed over."""
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            message = decode(frame)
            if message is not None and not self._socket.getsockopt(zmq.RCVMORE):
                return message
            self.num_malformed += 1

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until something has arrived. False: the time is over."""
        return bool(self._socket.poll(None if timeout_s is None else int(timeout_s * 1000)))

    def hide(self) -> None:
        """Unlink the path. Those who are connected stay so."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)  # noqa: PTH108 a file that is gone is no error
        shutil.rmtree(self.path.parent, ignore_errors=True)

    def close(self, *, linger_s: float = 0.0) -> None:
        """`linger_s`: how long what was sent may take to arrive."""
        self._socket.close(linger=int(linger_s * 1000))


def _pair() -> "zmq.Socket[bytes]":
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.LINGER, 0)
    # no limit to the greeting: a machine that is paused in it would lose the pair, and the engine does not
    # connect again
    socket.setsockopt(zmq.HANDSHAKE_IVL, 0)
    return socket
