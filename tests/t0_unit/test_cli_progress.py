"""Distributed commands: what a program reads of them. Progress: what is left by the rate so far; long bodies in
blocks, each with its own time."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from safekit import webclient
from safekit.cli.distributed import as_data
from safekit.cli.progress import Live, Meter
from safekit.cli.targets import Target
from safekit.webclient import Ask, CallError, call


def test_a_meter_tells_rate_and_time_left() -> None:
    now = 100.0
    meter = Meter(48 << 20, clock=lambda: now)
    assert meter.line(0) == "0 bytes of 48.0 MB (0%)"
    now = 104.0
    assert meter.line(12 << 20) == "12.0 MB of 48.0 MB (25%), 3.0 MB/s, 12 s left"
    assert meter.line(48 << 20) == "48.0 MB of 48.0 MB (100%), 12.0 MB/s"
    assert Meter(0).line(0) == "0 bytes of 0 bytes (100%)"


def test_nothing_is_shown_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with Live() as live:
        live.show("working")
    assert capsys.readouterr().out == ""


def test_a_long_body_on_a_slow_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than a silent server is waited for, as a whole; the bytes that are sent are told."""
    monkeypatch.setattr(webclient, "IDLE_SECONDS", 1.0)
    body, got = bytes(3 << 20), bytearray()
    told: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while len(got.partition(b"\r\n\r\n")[2]) < len(body):
                    got.extend(connection.recv(65536))
                    time.sleep(0.05)
                connection.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"status": 0}')

        thread = threading.Thread(target=serve)
        thread.start()
        target = Target("", "http", "127.0.0.1", listening.getsockname()[1])
        begun = time.monotonic()
        answer, in_clear = call(target, Ask("PUT", "/x", body, sent=told.append), ())
        thread.join()
    assert answer == {"status": 0} and not in_clear
    assert time.monotonic() - begun > 1.5, "it would have ended in time at once, too: the test shows nothing"
    assert told[0] == 0 and told[-1] == len(body)
    head = bytes(got).partition(b"\r\n\r\n")[0].lower()
    assert f"content-length: {len(body)}".encode() in head and b"chunked" not in head


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
