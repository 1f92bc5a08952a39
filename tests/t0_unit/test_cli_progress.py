"""Distributed commands: what a program reads of them. Progress: what is left by the rate so far; long bodies in
blocks, each with its own time."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading

import pytest

from cli import main
from cli.distributed import as_data
from cli.progress import Live, Meter
from safekit.wire import webclient
from safekit.wire.targets import Target
from safekit.wire.webclient import Ask, CallError, call


def test_a_meter_tells_rate_and_time_left() -> None:
    now = 100.0
    meter = Meter(48 << 20, clock=lambda: now)
    assert meter.line(0) == "0%: 0 bytes of 48.0 MB"
    now = 104.0
    assert meter.line(12 << 20) == "25%, 12 s left: 12.0 MB of 48.0 MB, 3.0 MB/s"
    assert meter.line(48 << 20) == "100%: 48.0 MB of 48.0 MB, 12.0 MB/s"
    assert Meter(0).line(0) == "100%: 0 bytes of 0 bytes"


def test_nothing_is_shown_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with Live() as live:
        live.show("working")
    assert capsys.readouterr().out == ""


def test_a_long_body_arrives_and_the_bytes_that_are_sent_are_told() -> None:
    body, got = os.urandom(3 << 20), bytearray()
    told: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while len(got.partition(b"\r\n\r\n")[2]) < len(body):
                    got.extend(connection.recv(1 << 20))
                connection.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"status": 0}')

        thread = threading.Thread(target=serve)
        thread.start()
        target = Target("", "http", "127.0.0.1", listening.getsockname()[1])
        answer, in_clear = call(target, Ask("PUT", "/x", body, sent=told.append), ())
        thread.join()
    assert answer == {"status": 0} and not in_clear
    assert told[0] == 0 and len(told) > 40 and max(told) == len(body)
    head, _, arrived = bytes(got).partition(b"\r\n\r\n")
    assert arrived == body
    assert f"content-length: {len(body)}".encode() in head.lower() and b"chunked" not in head.lower()


class SlowLine:
    """What the kernel still holds, step by step, each `seconds` later; `answered`: the other side says something."""

    def __init__(self, held: list[int], seconds: float, *, answered: bool = False) -> None:
        self._held, self._seconds, self._answered = held, seconds, answered
        self._now = 0.0

    def ioctl(self, connection: object, request: int, room: bytes) -> bytes:
        left = self._held.pop(0) if len(self._held) > 1 else self._held[0]
        return left.to_bytes(len(room), sys.byteorder)

    def select(self, readers: list[object], *_: object) -> tuple[list[object], list[object], list[object]]:
        self._now += self._seconds
        return (readers if self._answered else []), [], []

    def monotonic(self) -> float:
        return self._now


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (SlowLine([900, 600, 300, 0], 9.0), [100, 400, 700, 1000]),  # 27 s, and something moved all the time
        (SlowLine([900, 600, 300, 0], 9.0, answered=True), [100]),
        (SlowLine([900, 600], 4.0), None),
    ],
    ids=["slow", "answered", "stuck"],
)
def test_a_server_is_silent_only_when_it_has_everything(
    line: SlowLine, told: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webclient, "fcntl", line)
    monkeypatch.setattr(webclient, "select", line)
    monkeypatch.setattr(webclient, "time", line)
    found: list[int] = []
    with socket.socket() as connection:
        if told is None:
            with pytest.raises(TimeoutError):
                webclient._until_arrived(connection, 1000, found.append)
            assert line.monotonic() > webclient.IDLE_SECONDS
        else:
            webclient._until_arrived(connection, 1000, found.append)
            assert found == told


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ('{"a": 1}\n', {"a": 1}),
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ("", []),
        ("Error: no\n", "Error: no\n"),
    ],
)
def test_a_program_reads_the_json_of_every_server(text: str, output: object) -> None:
    target = Target("n1", "http", "10.0.0.1", 9010)
    place = {"node": "n1", "url": "http://10.0.0.1:9010"}
    answer = {"status": 3, "output": text, "ended": True}
    assert as_data(target, (answer, False)) == {**place, "status": 3, "ended": True, "output": output}


def test_a_server_that_does_not_answer_is_in_the_json() -> None:
    told = as_data(Target("n1", "http", "10.0.0.1", 9010), CallError("connect", "no connection", "start it"))
    said = [told[name] for name in ("status", "error", "text", "next_step")]
    assert said == [1, "connect", "no connection", "start it"]


def test_an_event_loop_does_not_take_ctrl_c_away() -> None:
    """Its own handler only cancels the task: one that has just ended ends all the same, and the command goes on."""

    async def handler() -> object:
        return signal.getsignal(signal.SIGINT)

    former = signal.signal(signal.SIGINT, main._interrupted)
    try:
        assert asyncio.run(handler()) is main._interrupted
    finally:
        signal.signal(signal.SIGINT, former)
