"""Whether a server that can be reached is of use: one that is cut off from the others answers, and stores nothing."""

from __future__ import annotations

import time

from nats.aio.msg import Msg

STUCK = 10.0
"""Seconds without an acknowledgement, but with silence, after which a server is left: elections take 4 to 9."""
LONG_AGO = 30.0
"""Seconds after which an answer that did not come says nothing any more."""
API = "$JS.API."
"""Such answers do not count: a server gives what it has itself, whether it has others or not."""
NOBODY, IN_PROCESS = b'"code":503', b'"err_code":10158'
"""The answer says that a stream, or JetStream, has no leader; that what was sent before is still not replicated."""
REFUSED = b'"error":'
"""Also a leader that nobody follows any more refuses: what it knows is older."""


class Isolation:
    """What the answers of the server say of it."""

    def __init__(self) -> None:
        self._since = self._last = 0.0

    def answered(self, subject: str, msg: Msg) -> bool:
        """Note an answer. Return whether the server should be left."""
        asked = subject.startswith(API)
        if asked and msg.headers and msg.data:
            return False  # a record that was got, whatever it holds
        said = msg.data[:200]
        if (msg.headers and msg.headers.get("Status") == "503") or NOBODY in said or IN_PROCESS in said:
            return self.silent()
        if not asked and REFUSED not in said:
            self._since = 0.0
        return False

    def silent(self) -> bool:
        """Note that there was no answer. Return whether the server should be left."""
        now = time.monotonic()
        if not self._since or now - self._last > LONG_AGO:
            self._since = now
        self._last = now
        if now - self._since < STUCK:
            return False
        self._since = 0.0
        return True

    def forget(self) -> None:
        """Another server, or the same one again: what it is worth is to be seen."""
        self._since = 0.0
