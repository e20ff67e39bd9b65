"""Waking other processes: a datagram to each that listens, after a commit. Lossy by design: the log is the truth."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

from ...bus.broker import MAX_HINT

log = logging.getLogger("refold.sqlite")

COMMIT = b"c"
MEMBERS = b"m"
MAX_NAMED = 128
"""So many partitions are named in a datagram that tells of a commit; of more it says nothing: look at all."""
ADDRESS = re.compile(r"[a-z]-[0-9]+-[0-9a-f]+")
MAX_UNSENT = 10_000
AGAIN = 0.002
GIVE_UP = 5.0
"""Hints for a full buffer are sent again after 2 ms, then ever later, and dropped after 5 s."""
LONGEST = 100
"""Bytes that a socket's path may have (sun_path has 104 on macOS, 108 on Linux)."""
SETTLED = 100_000_000
"""Nanoseconds after which a folder's time of change is sure to tell a later change (file systems use coarse clocks)."""


def folder_of(log_id: str) -> Path:
    """Return the folder of a log's sockets, in the temporary directory of the user. Makes it, for this user only.

    Raises OSError where it cannot be made, or belongs to somebody else.
    """
    name = Path(f"refold-{os.getuid()}") / log_id.replace("-", "")[-16:]
    folder = tempfile.gettempdir() / name
    if len(str(folder)) > LONGEST - 32:
        folder = "/tmp" / name  # noqa: S108 - checked below
    for place in (folder.parent, folder):
        place.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(place)
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(f"{place} can be written by others")
    return folder


def commit_in(partitions: Collection[int]) -> bytes:
    """Return the word that tells of a commit in these partitions."""
    return COMMIT if len(partitions) > MAX_NAMED else COMMIT + " ".join(map(str, partitions)).encode()


def partitions_of(word: bytes) -> list[int]:
    """Return the partitions that such a word names; none where it may be any."""
    named = word[len(COMMIT) :].split()
    return [int(p) for p in named] if all(p.isdigit() for p in named) else []


class Doorbell:
    """The sockets of one log. Where their folder cannot be used, others are not woken: they look once in a while."""

    def __init__(self, log_id: str) -> None:
        self._folder: Path | None = None
        try:
            self._folder = folder_of(log_id)
        except OSError as error:
            log.warning("other processes are not woken by commits, set TMPDIR: %s", error)
        self._send = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._send.setblocking(False)
        self._others: list[str] = []
        self._listed = -1
        self._closed = False
        self._own: dict[str, Ear] = {}
        self._unsent: dict[str, Unsent] = {}

    def open(self, letter: str, heard: Callable[[bytes], None]) -> Ear:
        """Open a socket that calls `heard` in the running loop for each datagram."""
        name = f"{letter}-{os.getpid()}-{os.urandom(4).hex()}"
        ear = Ear(str(self._folder / name) if self._folder is not None else None, name, heard)
        self._own[name] = ear
        return ear

    def shut(self, ear: Ear) -> None:
        """Listen with it no more."""
        if self._own.pop(ear.name, None) is not None:
            ear.close()

    def ring(self, word: bytes) -> None:
        """Tell every other process. Looks at the folder, so it is called in a thread; never raises."""
        if self._folder is None:
            return
        with contextlib.suppress(OSError):
            changed = self._folder.stat().st_mtime_ns
            if changed != self._listed:
                self._others = [n for n in os.listdir(self._folder) if n.startswith("d-")]
                self._listed = changed if time.time_ns() - changed > SETTLED else -1
        for name in self._others:
            if name not in self._own:
                self.send(name, word)

    def notify(self, address: str, hint: bytes) -> None:
        """Send a hint to an address; nothing happens where nobody listens."""
        if not ADDRESS.fullmatch(address):
            return
        own = self._own.get(address)
        if own is not None:
            own.hear(hint)
        elif address in self._unsent:
            self._unsent[address].hints.append(hint)
        elif not self.send(address, hint):
            self._unsent[address] = unsent = Unsent(hint)
            asyncio.get_running_loop().call_later(unsent.wait, self._send_again, address)

    def _send_again(self, address: str) -> None:
        """A listener's buffer holds few datagrams (net.unix.max_dgram_qlen is often 10): send what was too many."""
        unsent = self._unsent[address]
        while unsent.hints and self.send(address, unsent.hints[0]):
            unsent.hints.popleft()
            unsent.wait, unsent.since = AGAIN, time.monotonic()
        if unsent.hints and not self._closed and time.monotonic() - unsent.since < GIVE_UP:
            asyncio.get_running_loop().call_later(unsent.wait, self._send_again, address)
            unsent.wait *= 1.5
        else:
            del self._unsent[address]

    def send(self, name: str, word: bytes) -> bool:
        """Send a datagram; False where the listener's buffer is full. A socket whose process is dead is removed."""
        if self._folder is None or self._closed:
            return True
        path = str(self._folder / name)
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
        """Listen and send no more."""
        self._closed = True
        for ear in list(self._own.values()):
            self.shut(ear)
        self._send.close()


class Unsent:
    """Hints that wait for room in a listener's buffer."""

    def __init__(self, hint: bytes) -> None:
        self.hints = deque([hint], maxlen=MAX_UNSENT)
        self.wait = AGAIN
        self.since = time.monotonic()


class Ear:
    """A socket of this process, read by its event loop; without a path it hears only this process."""

    def __init__(self, path: str | None, name: str, heard: Callable[[bytes], None]) -> None:
        self.name = name
        self._path, self._heard = path, heard
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        if path is not None:
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                opened.bind(path)
            except OSError as error:  # somebody has cleaned the temporary directory
                log.warning("%s cannot be opened, other processes cannot wake this one: %s", path, error)
                opened.close()
                return
            opened.setblocking(False)
            self._socket = opened
            self._loop.add_reader(opened.fileno(), self._read, opened)

    def _read(self, opened: socket.socket) -> None:
        while True:
            try:
                word = opened.recv(MAX_HINT)
            except OSError:
                return
            self._heard(word)

    def hear(self, word: bytes) -> None:
        """A datagram of this very process."""
        self._loop.call_soon(self._heard, word)

    def close(self) -> None:
        """Listen no more."""
        if self._socket is not None and self._path is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            with contextlib.suppress(OSError):
                os.unlink(self._path)
