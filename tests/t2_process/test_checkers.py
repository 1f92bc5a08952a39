"""Checkers as processes, against a heart that records what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from checkers.tcpcheck import accepts
from safekit.disk.resources import ResourceWriter
from safekit.model.types import Check, CustomCheck, IpCheck, ModuleConfig, PingCheck, Replicated, Rfs, TcpCheck
from safekit.process.frame import NOT_CONFIGURED
from tests.fakes import FakeServer

pytestmark = pytest.mark.usefixtures("environment")


def module(check: Check) -> ModuleConfig:
    return ModuleConfig("AM", 1, check=check)


def listener(port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    return sock


def test_tcpcheck_follows_a_service(tmp_path: Path) -> None:
    async def scenario() -> None:
        service = listener()
        port = service.getsockname()[1]
        config = module(Check(tcp=(TcpCheck("web", "prim", "127.0.0.1", port, interval=1, timeout=1),)))
        async with FakeServer(tmp_path, config) as server:
            process = server.spawn("checkers.tcpcheck", "--ident", "web")
            await server.until(lambda: server.values("tcp.web") == ["up"], "the service is seen")
            service.close()
            await server.until(lambda: server.values("tcp.web") == ["up", "down"], "its end is seen")
            again = listener(port)
            await server.until(lambda: server.values("tcp.web")[-1] == "up", "its return is seen")
            assert {fields["who"] for _, op, fields in server.told if op == "set"} == {"tcpcheck"}
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 5) == 0
            again.close()

    asyncio.run(scenario())


def test_a_checker_that_is_not_configured_any_more_is_no_defect(tmp_path: Path) -> None:
    """A dynamic configuration takes it away while the supervisor starts it."""

    async def scenario() -> None:
        async with FakeServer(tmp_path, module(Check())) as server:
            process = server.spawn("checkers.tcpcheck", "--ident", "web")
            _, said = await asyncio.to_thread(process.communicate, None, 20)
            logs = b"".join(path.read_bytes() for path in tmp_path.rglob("*.log"))
            assert process.returncode == NOT_CONFIGURED and b"tcpcheck web is not in the configuration" in logs + said
            assert b"Traceback" not in logs + said

    asyncio.run(scenario())


def test_pingcheck_of_the_loopback_and_of_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        check = Check(
            ping=(
                PingCheck("four", "127.0.0.1", interval=1, timeout=1),
                PingCheck("six", "::1", interval=1, timeout=1),
                PingCheck("name", "no-such-host.invalid", interval=1, timeout=1),
            )
        )
        async with FakeServer(tmp_path, module(check)) as server:
            for ident in ("four", "six", "name"):
                server.spawn("checkers.pingcheck", "--ident", ident)
            await server.until(lambda: server.values("ping.four") == ["up"], "IPv4 answers")
            await server.until(lambda: server.values("ping.six") == ["up"], "IPv6 answers")
            await server.until(lambda: server.values("ping.name") == ["down"], "an unknown name is down")

    asyncio.run(scenario())


def test_a_value_is_delivered_to_a_heart_that_comes_later(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = module(Check(ip=(IpCheck("lo", "127.0.0.1", interval=60),)))
        async with FakeServer(tmp_path, config) as server:
            heart = server.endpoints.pop()
            server.ports.clear()
            await heart.close()
            server.spawn("checkers.ipcheck", "--ident", "lo")
            await server.until(lambda: "AM/ipcheck.lo" in server.ports, "the checker runs")
            from safekit.bus.endpoint import Endpoint

            server.endpoints.append(await Endpoint.open("AM/heart", server._heart))
            await server.until(lambda: server.values("ip.lo") == ["up"], "the value arrives")

    asyncio.run(scenario())


WILD = """#!/bin/sh
trap '' TERM
(trap '' TERM; while :; do sleep 0.2; done) &
(setsid sh -c 'trap "" TERM; echo $$ > "$SAFEUSERVAR/detached"; while :; do sleep 0.2; done' &)
head -c 5000000 /dev/zero | tr '\\0' x
echo ready > "$SAFEUSERVAR/ready"
while :; do sleep 0.2; done
"""


def test_a_wild_custom_checker_ends_with_all_that_it_started(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = module(Check(custom=(CustomCheck("wild", "prim", "wild"),)))
        async with FakeServer(tmp_path, config) as server:
            script = server.paths.userbin / "wild"
            script.write_text(WILD)
            script.chmod(0o755)
            process = server.spawn("checkers.customcheck", "--ident", "wild")
            await server.until((server.paths.var / "ready").exists, "the checker runs")
            detached = int((server.paths.var / "detached").read_text())
            assert (server.paths.log_dir / "custom.wild.out").stat().st_size <= 1 << 20
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 10)
            assert not Path(f"/proc/{detached}").exists(), "a detached child survived"

    asyncio.run(scenario())


def test_the_program_of_a_killed_customcheck_is_ended_by_its_successor(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = module(Check(custom=(CustomCheck("wild", "prim", "wild"),)))
        async with FakeServer(tmp_path, config) as server:
            script = server.paths.userbin / "wild"
            script.write_text(WILD)
            script.chmod(0o755)
            process = server.spawn("checkers.customcheck", "--ident", "wild")
            ready = server.paths.var / "ready"
            await server.until(ready.exists, "the checker runs")
            detached = int((server.paths.var / "detached").read_text())
            process.kill()
            await asyncio.to_thread(process.wait, 10)
            assert Path(f"/proc/{detached}").exists(), "nobody could end it yet"
            ready.unlink()
            second = server.spawn("checkers.customcheck", "--ident", "wild")
            await server.until(lambda: not Path(f"/proc/{detached}").exists(), "the old one is ended")
            await server.until(ready.exists, "the new one runs")
            detached = int((server.paths.var / "detached").read_text())
            second.terminate()
            await asyncio.to_thread(second.wait, 20)
            await server.until(lambda: not Path(f"/proc/{detached}").exists(), "an orderly end leaves nothing behind")

    asyncio.run(scenario())


def test_a_custom_checker_that_dies_is_started_again_and_logged(tmp_path: Path) -> None:
    async def scenario() -> None:
        short = CustomCheck("short", "prim", "short", "one 'two three'")
        config = module(Check(custom=(short, CustomCheck("none", "prim", "none"))))
        async with FakeServer(tmp_path, config) as server:
            script = server.paths.userbin / "short"
            script.write_text('#!/bin/sh\necho "$# $1 $2 $4" >> "$SAFEUSERVAR/runs"\nexit 3\n')
            script.chmod(0o755)
            server.spawn("checkers.customcheck", "--ident", "short")
            server.spawn("checkers.customcheck", "--ident", "none")
            runs = server.paths.var / "runs"
            twice = 2 * "4 AM custom.short two three\n"
            await server.until(lambda: runs.exists() and runs.read_text() == twice, "it is started again")
            codes = {line.code for line in server.log()}
            assert {"custom_ended", "custom_missing"} <= codes
            assert any("exit status 3" in line.text() for line in server.log())

    asyncio.run(scenario())


def test_syncedcheck_notes_when_the_data_was_up_to_date(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = ModuleConfig("AM", 1, rfs=Rfs(replicated=(Replicated("/d"),), flow="default", port=5600, syncdelta=2))
        async with FakeServer(tmp_path, config) as server:
            note, own = server.paths.var / "rfs.lastsync", ResourceWriter(server.paths.resources)

            async def first_word(value: str) -> None:
                process = server.spawn("checkers.syncedcheck", "--ident", "synced")
                await server.until(lambda: server.values("rfs.synced")[-1:] == [value], value)
                process.terminate()
                await asyncio.to_thread(process.wait, 10)

            own.set("rfs.uptodate", "down", "heart")
            await first_word("down")
            assert not note.exists(), "never up to date"
            own.set("rfs.uptodate", "up", "heart")
            await first_word("up")
            assert abs(float(note.read_text()) - time.time()) < 30
            own.set("rfs.uptodate", "down", "heart")
            server.told.clear()
            await first_word("up")
            own.set("rfs.inconsistent", "up", "nfsadmin")
            await first_word("down")
            own.set("rfs.inconsistent", "down", "nfsadmin")
            note.write_text("damaged")
            server.told.clear()
            await first_word("down")

    asyncio.run(scenario())


@pytest.mark.parametrize(("addr", "family"), [("::1", socket.AF_INET6), ("localhost", socket.AF_INET)])
def test_tcpcheck_takes_ipv6_and_names(addr: str, family: socket.AddressFamily) -> None:
    with socket.socket(family) as service:
        service.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        port = service.getsockname()[1]
        assert not asyncio.run(accepts(addr, port, 5.0)), "nobody listens yet"
        service.listen()
        assert asyncio.run(accepts(addr, port, 5.0))


def test_a_service_that_does_not_answer_is_down_after_the_timeout() -> None:
    with socket.socket() as service, contextlib.ExitStack() as waiting:
        service.bind(("127.0.0.1", 0))
        service.listen(0)
        for _ in range(4):
            # its queue is full: further connections are neither taken nor refused
            full = waiting.enter_context(socket.socket())
            full.setblocking(False)
            full.connect_ex(service.getsockname())
        begin = time.monotonic()
        assert not asyncio.run(accepts("127.0.0.1", service.getsockname()[1], 1.0))
        assert 0.9 < time.monotonic() - begin < 5.0


def test_a_name_service_that_is_away_is_no_fault_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The addresses that the name had are used, whether the resolver fails or hangs; and nobody waits for it."""
    hang = threading.Event()
    answers: list[Callable[[], list[object]]] = []
    real = socket.getaddrinfo

    def resolver(host: str, port: int, *_: object, **options: int) -> list[object]:
        if options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        return answers.pop()()

    def fails() -> list[object]:
        raise socket.gaierror(socket.EAI_AGAIN, "no name server")

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]

        async def scenario() -> None:
            answers.append(fails)
            assert not await accepts("db.example", port, 2.0), "a name that was never known"
            answers.append(lambda: list(real("127.0.0.1", port, type=socket.SOCK_STREAM)))
            assert await accepts("db.example", port, 2.0)
            answers.append(fails)
            assert await accepts("db.example", port, 2.0)
            answers.append(lambda: [hang.wait(60)][:0])
            assert await accepts("db.example", port, 2.0)
            assert await accepts("db.example", port, 2.0), "one question at a time: the resolver still hangs"

        begin = time.monotonic()
        asyncio.run(scenario())
        assert time.monotonic() - begin < 10.0
        hang.set()
