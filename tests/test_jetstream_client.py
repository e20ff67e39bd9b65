"""What is changed in the client of NATS: how it reads headers, and that messages are heard without its queue."""

from __future__ import annotations

import logging

import pytest
from jetstream_logs import new_url
from nats.aio.client import Client

from refold.brokers.jetstream.address import parse
from refold.brokers.jetstream.client import QuickClient
from refold.brokers.jetstream.connection import Link

HEADERS = [
    b"",
    b"\r\n",
    b"Nats-Msg-Id: 3f2a-1c\r\n\r\n",
    b"Nats-Msg-Id: 3f2a-1c\r\nRefold-Sizes: 12,44\r\n\r\n",
    b"Name:without a space\r\nName-2:\ta tab\r\n\r\n",
    b"Twice: a\r\nTwice: b\r\n",
    b"Time: 2026-11-25T03:30:00.1Z\r\nEmpty:\r\nno colon\r\n\r\n",
    "Text: Gr\u00fc\u00dfe \u4f60\r\nSpaced: \u00a0x\u00a0 \r\n".encode(),
    b"Broken: \xff\xfe\xe4\r\nNext: 1\r\n\r\n",
]


@pytest.mark.parametrize("raw", HEADERS)
def test_headers_are_read_as_the_client_itself_would_read_them(raw):
    assert QuickClient._parse_header_lines(raw) == Client._parse_header_lines(raw)


def test_the_client_reads_headers_by_the_function_that_is_replaced():
    client = QuickClient()
    found = client._process_headers(b"NATS/1.0\r\nNats-Msg-Id: a\r\n\r\n")
    with pytest.raises(StopIteration) as ended:
        found.send(None)
    assert ended.value.value == {"Nats-Msg-Id": "a"}


# ---- hearing ---------------------------------------------------------------------------------------------------------
def test_messages_are_heard_in_order_and_a_listener_that_raises_ends_neither_the_connection_nor_the_rest(
    nats_address, go, until, caplog
):
    heard: list[int] = []

    def listen(msg) -> None:
        n = int(msg.data)
        if n % 100 == 50:
            raise ZeroDivisionError(n)
        heard.append(n)

    async def main():
        link = Link(parse(new_url(nats_address)))
        await link.open()
        try:
            subject = link.client.new_inbox()
            listening = await link.listen(subject, listen)
            for n in range(1000):
                await link.publish(subject, b"%d" % n)
            await until(lambda: heard[-1:] == [999])
            assert heard == [n for n in range(1000) if n % 100 != 50]
            await listening.unsubscribe()
            await link.publish(subject, b"1000")
            await link.client.flush()
            assert heard[-1] == 999
            assert link.reconnects == 0
        finally:
            await link.close()

    with caplog.at_level(logging.ERROR, logger="refold.nats"):
        go(main())
    assert len([r for r in caplog.records if r.exc_info]) == 10


def test_what_comes_before_the_listener_is_in_place_is_heard_by_it(nats_address, go, until, monkeypatch):
    heard: list[bytes] = []
    subscribe = Client.subscribe

    async def slowly(self, subject, **settings):
        made = await subscribe(self, subject, **settings)
        if subject == "early":
            await self.publish(subject, b"1")
            await self.publish(subject, b"2")
            await until(lambda: made.pending_msgs == 2)
        return made

    async def main():
        monkeypatch.setattr(Client, "subscribe", slowly)
        link = Link(parse(new_url(nats_address)))
        await link.open()
        try:
            await link.listen("early", lambda msg: heard.append(msg.data))
            assert heard == [b"1", b"2"]
        finally:
            await link.close()

    go(main())
