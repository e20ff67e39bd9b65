"""Waking other processes: a datagram to each that listens, after a commit. Lossy by design: the log is the truth."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

COMMIT = b"c"
MEMBERS = b"m"
ADDRESS = re.compile(r"[a-z]-[0-9]+-[0-9a-f]+")
MAX_HINT = 1024
MAX_UNSENT = 10_000
AGAIN = 0.002
LONGEST = 100
"""Bytes that a socket's path may have (sun_path has 104 on macOS, 108 on Linux)."""


class Doorbell:
    """One folder of sockets per log, in the temporary directory of the user."""

    def __init__(self, log_id: str) -> None:
        self.folder = Path(tempfile.gettempdir()) / f"refold-{os.getuid()}" / log_id.replace("-", "")[-16:]
        if len(str(self.folder)) > LONGEST - 32:
            self.folder = Path("/tmp") / f"refold-{os.getuid()}" / self.folder.name  # noqa: S108 - 0700, see below
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._send = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._send.setblocking(False)
        self._others: list[str] = []
        self._seen = -1
        self._closed = False
        self._own: dict[str, Ear] = {}
        self._unsent: dict[str, deque[bytes]] = {}

    def open(self, letter: str, heard: Callable[[bytes], None]) -> Ear:
        """Open a socket that calls `heard` in the running loop for each datagram."""
        name = f"{letter}-{os.getpid()}-{os.urandom(4).hex()}"
        ear = Ear(self, str(self.folder / name), name, heard)
        self._own[ear.path] = ear
        self._seen = -1
        return ear

    def closed(self, ear: Ear) -> None:
        """The socket is gone."""
        self._own.pop(ear.path, None)

    def ring(self, word: bytes) -> None:
        """Tell every other process. Any thread may call it; never blocks, never raises."""
        with contextlib.suppress(OSError):
            changed = os.stat(self.folder).st_mtime_ns
            if changed != self._seen:
                self._others = [str(self.folder / n) for n in os.listdir(self.folder) if n.startswith("d-")]
                self._seen = changed
        for path in self._others:
            if path not in self._own:
                self.send(path, word)

    def notify(self, address: str, hint: bytes) -> None:
        """Send a hint to an address; nothing happens where nobody listens."""
        if not ADDRESS.fullmatch(address):
            return
        path = str(self.folder / address)
        own = self._own.get(path)
        if own is not None:
            own.hear(hint[:MAX_HINT])
        elif path in self._unsent:
            self._unsent[path].append(hint[:MAX_HINT])
        elif not self.send(path, hint[:MAX_HINT]):
            self._unsent[path] = deque([hint[:MAX_HINT]], maxlen=MAX_UNSENT)
            asyncio.get_running_loop().call_later(AGAIN, self._send_again, path)

    def _send_again(self, path: str) -> None:
        """A listener's buffer holds few datagrams (net.unix.max_dgram_qlen is often 10): send what was too many."""
        unsent = self._unsent[path]
        while unsent and not self._closed and self.send(path, unsent[0]):
            unsent.popleft()
        if unsent and not self._closed:
            asyncio.get_running_loop().call_later(AGAIN, self._send_again, path)
        else:
            del self._unsent[path]

    def send(self, path: str, word: bytes) -> bool:
        """Send a datagram; False where the listener's buffer is full. A socket whose process is dead is removed."""
        try:
            self._send.sendto(word, path)
        except BlockingIOError:
            return False
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                os.unlink(path)
        except OSError:
            pass  # it is gone
        return True

    def close(self) -> None:
        """Send no more."""
        self._closed = True
        self._send.close()


class Ear:
    """A socket of this process, read by its event loop."""

    def __init__(self, bell: Doorbell, path: str, name: str, heard: Callable[[bytes], None]) -> None:
        self.path, self.name = path, name
        self._bell, self._heard = bell, heard
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(path)
        self._loop.add_reader(self._socket.fileno(), self._read)

    def _read(self) -> None:
        while True:
            try:
                word = self._socket.recv(MAX_HINT)
            except OSError:
                return
            self._heard(word)

    def hear(self, word: bytes) -> None:
        """A datagram of this very process."""
        self._loop.call_soon(self._heard, word)

    def close(self) -> None:
        """Listen no more."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        self._bell.closed(self)
