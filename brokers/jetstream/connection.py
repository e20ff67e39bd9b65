"""One connection to the servers: requests, answers of several messages, and what their errors mean to the port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from ...bus.errors import BrokerUnavailable, ConfigError, LogFull
from .address import Address
from .client import QuickClient
from .isolation import STUCK, Isolation
from .questions import ANSWER, Questions

log = logging.getLogger("refold.nats")

CONNECT = 5.0
"""Seconds to wait for a connection."""
SOON, PATIENCE = 2.0, 10.0
"""Seconds after which a question is asked again, and after which it is no more."""
PING = 2
"""Seconds between two signs of life that are asked for: a server that is silent is left for another one after three."""
PENDING = 8 * 1024 * 1024
STATUS = "Status"
FULL = {10023, 10047, 10077, 10002, 10028}
"""Error codes of JetStream that say there is no space: memory, storage, `max_bytes`, the account's limits."""
FORBIDDEN = re.compile(r'permissions violation for publish to "([^"]*)"', re.IGNORECASE)
WRONG_LAST, WRONG_LAST_BUSY, LAST_UNAVAILABLE = 10071, 10164, 10163
UNAVAILABLE, NO_PEERS = {10008, 10009}, 10005
"""There is no leader now; there are too few servers (it says "offline" where that may be for now)."""
NO_STREAM, NO_MESSAGE, STREAM_EXISTS, DUPLICATE_IN_BATCH = 10059, 10037, 10058, 10201


T = TypeVar("T")
Headers = dict[str, str] | None


class Refused(Exception):
    """JetStream has answered with an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Ack(msgspec.Struct):
    """What JetStream says of a message that was published."""

    seq: int = 0
    duplicate: bool = False
    error: dict[str, Any] | None = None


class Link:
    """A connection that comes back by itself, and one inbox for all answers.

    Requests that wait when the connection breaks fail at once (BrokerUnavailable): whether they arrived is unknown.
    """

    def __init__(self, address: Address, **options: Any) -> None:
        self.address = address
        self._options = options
        self.client = QuickClient()
        self.reconnects = 0
        self._problem = ""
        self._inbox = ""
        self._questions = Questions(self._unanswered)
        self._isolation = Isolation()
        self._leaving: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self.watchers: set[asyncio.Event] = set()
        """Set when the connection has broken or is there again."""

    async def open(self) -> None:
        """Connect. Raises BrokerUnavailable; ConfigError where the servers do not let this client in."""
        options = self.address.options() | self._options
        try:
            async with asyncio.timeout(CONNECT):
                await self.client.connect(
                    **options, name="refold", max_reconnect_attempts=-1, reconnect_time_wait=1, connect_timeout=2,
                    ping_interval=PING, max_outstanding_pings=2, pending_size=PENDING, drain_timeout=5,
                    skip_subject_validation=True,  # each is made of tokens that are safe (`names.token_of`)
                    error_cb=self._errs, disconnected_cb=self._falls, reconnected_cb=self._rises,
                    closed_cb=self._falls,
                )  # fmt: skip
                self._inbox = self.client.new_inbox()
                await self.client.hear(f"{self._inbox}.*", self._answered)
                await self.client.flush()
        except (TimeoutError, OSError, NatsError) as error:
            await self.close()
            raise self._unreachable(error) from error
        except BaseException:
            await self.close()
            raise
        self._up.set()

    def _unreachable(self, error: Exception) -> Exception:
        text = self._problem or str(error) or type(error).__name__
        where = ", ".join(self.address.servers)
        if any(word in text.lower() for word in ("authoriz", "authenti", "certificate", "nkey", "jwt", "tls")):
            return ConfigError(f"{where} does not let refold in: {text}. See docs/brokers.md for credentials and TLS")
        return BrokerUnavailable(f"no NATS server answers at {where}: {text}")

    async def close(self) -> None:
        """Let the connection go; what was published is sent first, as far as there is somebody to send it to."""
        client = self.client
        self._questions.close()
        if self._leaving is not None:
            self._leaving.cancel()
        with contextlib.suppress(Exception):
            if client.is_connected:
                await client.flush(timeout=2)
        with contextlib.suppress(Exception):
            await client.close()

    async def _errs(self, error: Exception) -> None:
        self._problem = str(error) or type(error).__name__
        found = FORBIDDEN.search(self._problem)
        if found is not None:
            self._forbidden(found[1])
        log.debug("connection to %s: %s", ", ".join(self.address.servers), self._problem)

    def _forbidden(self, subject: str) -> None:
        """The servers give no answer to what a user may not ask: tell who waits for it."""
        text = (
            f"this user of {', '.join(self.address.servers)} may not publish to {subject}: `refold broker plan URL` "
            "prints the streams and the permissions that an administrator has to make"
        )
        self._questions.fail(lambda: ConfigError(text), subject)

    async def _falls(self) -> None:
        self._up.clear()
        self._questions.fail(lambda: BrokerUnavailable("the connection to NATS broke"))
        for watcher in self.watchers:
            watcher.set()

    async def _rises(self) -> None:
        self.reconnects += 1
        self._isolation.forget()
        self._up.set()
        for watcher in self.watchers:
            watcher.set()

    async def connected(self, within: float) -> None:
        """Wait until there is a connection. Raises BrokerUnavailable."""
        try:
            async with asyncio.timeout(within):
                await self._up.wait()
        except TimeoutError:
            where = ", ".join(self.address.servers)
            raise BrokerUnavailable(f"no NATS server answers at {where}: {self._problem or 'no connection'}") from None

    @property
    def version(self) -> str:
        """The version of the server that this client is connected to."""
        found = self.client.connected_server_version
        return f"{found.major}.{found.minor}.{found.patch}"

    @property
    def up(self) -> bool:
        """There is a connection now, as far as this side knows."""
        return self._up.is_set()

    def _leave(self) -> None:
        """Go to another server, where there is one: this one may be cut off from the others."""
        if self._up.is_set() and self.client.has_others():
            where = self.client.connected_url
            log.warning("%s has no answers for %g s: trying another server", where.netloc if where else "NATS", STUCK)
            self._leaving = asyncio.get_running_loop().create_task(self._go_elsewhere())

    async def _go_elsewhere(self) -> None:
        try:
            await self.client.leave()
        except (NatsError, OSError) as error:
            log.warning("NATS: no other server yet: %s", error)

    # ---- questions and answers ---------------------------------------------------------------------------------------
    def _answered(self, msg: Msg) -> None:
        subject = self._questions.take(msg.subject.rpartition(".")[2], msg)
        if self._isolation.answered(subject, msg):
            self._leave()

    def _unanswered(self) -> None:
        if self._isolation.silent():
            self._leave()

    async def publish(
        self, subject: str, payload: bytes = b"", headers: Headers = None, reply: str = ""
    ) -> None:
        """Send a message. Raises BrokerUnavailable."""
        if not self._up.is_set():
            raise BrokerUnavailable(f"no connection to {', '.join(self.address.servers)}")
        try:
            await self.client.publish(subject, payload, reply=reply, headers=headers)
        except (NatsError, OSError) as error:
            raise BrokerUnavailable(f"{', '.join(self.address.servers)}: {error or type(error).__name__}") from error

    async def ask(self, subject: str, payload: bytes = b"", headers: Headers = None) -> asyncio.Future[Msg]:
        """Send a message, and return the future of its answer: BrokerUnavailable where none came within `ANSWER`."""
        token, answer = self._questions.ask(subject)
        try:
            await self.publish(subject, payload, headers, f"{self._inbox}.{token}")
        except BaseException:
            self._questions.drop(token)
            raise
        return answer

    async def request(self, subject: str, payload: bytes = b"", headers: Headers = None) -> Msg:
        """Send a message and return its answer. Raises BrokerUnavailable."""
        return await self.answer(await self.ask(subject, payload, headers), subject)

    async def answer(self, future: asyncio.Future[Msg], subject: str, within: float = ANSWER) -> Msg:
        """Wait for an answer. Raises BrokerUnavailable."""
        if within >= ANSWER:
            msg = await future
        else:
            try:
                async with asyncio.timeout(within):
                    msg = await future
            except TimeoutError:
                self._unanswered()
                raise BrokerUnavailable(f"no answer from {subject} within {within:g} s") from None
        if status(msg) == "503":
            raise BrokerUnavailable(f"nobody answers at {subject}: no such stream, or no leader, or JetStream is off")
        return msg

    async def look(self, question: Callable[[float], Awaitable[T]]) -> T:
        """Return the answer to a question that changes nothing, asked again until there is one: a stream without a
        leader, as after its creation or a death, is silent. Raises BrokerUnavailable after `PATIENCE` seconds."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return await question(SOON)
            except BrokerUnavailable as error:
                if type(error) is not BrokerUnavailable or time.monotonic() > until:
                    raise
            await self.connected(max(0.01, until - time.monotonic()))
            await asyncio.sleep(0.02)

    async def asked(self, name: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Ask JetStream's API something that changes nothing. Raises Refused, BrokerUnavailable."""
        return await self.look(lambda within: self.api(name, body, within))

    async def api(self, name: str, body: Mapping[str, object] | None = None, within: float = ANSWER) -> dict[str, Any]:
        """Ask JetStream's API once. Raises Refused, BrokerUnavailable."""
        subject = f"$JS.API.{name}"
        msg = await self.answer(await self.ask(subject, msgspec.json.encode(body) if body else b""), subject, within)
        answer: dict[str, Any] = msgspec.json.decode(msg.data)
        if "error" in answer:
            raise Refused(answer["error"].get("err_code", 0), answer["error"].get("description", ""))
        return answer

    @contextlib.asynccontextmanager
    async def collect(self, subject: str, body: Mapping[str, object]) -> AsyncIterator[asyncio.Queue[Msg | Exception]]:
        """Ask for several messages; an error among them is the last."""
        token, queue = self._questions.collect(subject)
        try:
            await self.publish(subject, msgspec.json.encode(body), None, f"{self._inbox}.{token}")
            yield queue
        finally:
            self._questions.drop(token)

    async def listen(self, subject: str, heard: Callable[[Msg], None]) -> Subscription:
        """Hear what is published to a subject from now on; return what is to be unsubscribed."""
        try:
            return await self.client.hear(subject, heard)
        except NatsError as error:
            raise BrokerUnavailable(f"{', '.join(self.address.servers)}: {error or type(error).__name__}") from error


def status(msg: Msg) -> str | None:
    """Return the status that a message without content has."""
    headers = msg.headers
    return headers.get(STATUS) if headers else None


def accepted(msg: Msg) -> Ack:
    """Return where a message was stored. Raises Refused, LogFull."""
    ack = msgspec.json.decode(msg.data, type=Ack)
    if ack.error is not None:
        code, text = ack.error.get("err_code", 0), ack.error.get("description", "")
        if code in FULL:
            raise LogFull(f"the stream takes no more: {text}")
        raise Refused(code, text)
    return ack
