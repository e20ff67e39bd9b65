"""What is paid for when a process is killed: after the record never again, before it once more with the same key.

Run it: python examples/never_twice.py [FOLDER]   (keeps the provider's invoice and the log in FOLDER)
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from refold import Agent, Context, MessageBus

buyer = Agent("buyer")


def buy(shop: str, item: str, key: str) -> str:
    request = urllib.request.Request(shop, item.encode(), {"Idempotency-Key": key})
    with urllib.request.urlopen(request) as answer:
        return str(answer.read(), "utf-8")


@buyer.on_task
async def order(ctx: Context, job: dict[str, str]) -> str:
    receipt = await ctx.effect("buy", buy, job["shop"], job["item"], ctx.idempotency_key)
    await ctx.receive("arrived")
    return receipt


class Provider(ThreadingHTTPServer):
    """The shop. It runs in this process, which is never killed, and writes a line for each call."""

    daemon_threads = True

    def __init__(self, invoice: Path, *, honours_keys: bool, keeps_first_answer_back: bool) -> None:
        super().__init__(("127.0.0.1", 0), Till)
        self.invoice = invoice
        self.honours_keys = honours_keys
        self.answers = threading.Event()
        self.called = threading.Event()
        if not keeps_first_answer_back:
            self.answers.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def bill(self, item: str, key: str) -> None:
        known = any(line["key"] == key for line in self.lines())
        line = {"item": item, "key": key, "billed": not (known and self.honours_keys)}
        with self.invoice.open("a") as invoice:
            invoice.write(json.dumps(line) + "\n")

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.invoice.read_text().splitlines()] if self.invoice.exists() else []


class Till(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        provider = self.server
        assert isinstance(provider, Provider)
        item = self.rfile.read(int(self.headers["Content-Length"])).decode()
        key = self.headers["Idempotency-Key"]
        provider.bill(item, key)
        provider.called.set()
        provider.answers.wait()
        with contextlib.suppress(ConnectionError):  # the caller may have been killed meanwhile
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"receipt for {item}".encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def start_worker(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "refold.cli", "run", str(Path(__file__).resolve())]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)


async def story(folder: Path, name: str, *, after_the_record: bool, honours_keys: bool) -> Provider:
    """Order one item, kill the worker with SIGKILL after the call or after the record, let another finish."""
    provider = Provider(
        folder / f"{name}.jsonl", honours_keys=honours_keys, keeps_first_answer_back=not after_the_record
    )
    first = second = start_worker(folder)
    try:
        async with MessageBus.open(f"sqlite:///{folder}/refold.db") as bus:
            job = {"shop": f"http://127.0.0.1:{provider.server_port}", "item": name}
            handle = await bus.start(order, job, id=name)
            if after_the_record:
                async for event in handle.events():
                    if event.message.message_type == "effect_completed":
                        break
            else:
                await asyncio.to_thread(provider.called.wait)
            first.kill()
            first.wait()
            provider.answers.set()
            second = start_worker(folder)
            await handle.send(kind="arrived")
            assert await handle.result(timeout=60) == f"receipt for {name}"
    finally:
        second.terminate()
        second.wait()
        provider.shutdown()
        provider.server_close()
    return provider


def tell(title: str, provider: Provider) -> None:
    lines = provider.lines()
    keys = {line["key"] for line in lines}
    billed = sum(bool(line["billed"]) for line in lines)
    print(f"{title}: {len(lines)} call(s) with {len(keys)} key, billed {billed} time(s)")


async def main(folder: Path) -> None:
    tell("killed after the record", await story(folder, "book", after_the_record=True, honours_keys=True))
    print("killed between the call and the record, where the provider")
    tell("  honours the key", await story(folder, "lamp", after_the_record=False, honours_keys=True))
    tell("  ignores the key", await story(folder, "desk", after_the_record=False, honours_keys=False))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary).resolve()))
