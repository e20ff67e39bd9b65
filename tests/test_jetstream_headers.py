"""How headers are read on NATS, beside what the client itself makes of them."""

from __future__ import annotations

import pytest
from nats.aio.client import Client

from refold.brokers.jetstream.connection import QuickClient

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
