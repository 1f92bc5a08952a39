"""splitbraincheck and modulecheck as processes."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from pathlib import Path

import pytest

from safekit.disk.modulestate import BadDocument, ModuleState, decode, encode, state_of
from safekit.disk.resources import Resource, ResourceWriter
from safekit.model.types import Check, ModuleCheck, ModuleConfig, SplitbrainCheck
from tests.fakes import FakeServer

pytestmark = pytest.mark.usefixtures("environment")


class Web:
    """A web server of one answer."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        self.paths: list[str] = []
        self.port = 0
        self._server: asyncio.Server | None = None

    def says(self, status: str, body: bytes = b"") -> None:
        self.answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    async def __aenter__(self) -> Web:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.paths.append((await reader.readuntil(b"\r\n\r\n")).split()[1].decode())
        writer.write(self.answer)
        await writer.drain()
        writer.close()


async def verdict(server: FakeServer) -> tuple[str, float]:
    """What splitbraincheck answers to heart, and the seconds that it took."""
    heart = server.endpoints[-1]
    begin = asyncio.get_running_loop().time()
    reply = await heart.by_word("AM/splitbraincheck.w", "isolated", 6.0)
    return str(reply["witness"]), asyncio.get_running_loop().time() - begin


@pytest.mark.parametrize(("arg", "expected"), [("127.0.0.1", "up"), ("no-such-host.invalid", "down")])
def test_a_witness_that_is_pinged(tmp_path: Path, arg: str, expected: str) -> None:
    async def scenario() -> None:
        config = ModuleConfig("AM", 1, check=Check(splitbrain=SplitbrainCheck("w", arg)))
        async with FakeServer(tmp_path, config) as server:
            server.spawn("checkers.splitbraincheck", "--ident", "w")
            await server.until(lambda: "AM/splitbraincheck.w" in server.ports, "it runs")
            found, seconds = await verdict(server)
            assert found == expected and seconds < 4.0
            await server.until(lambda: server.values("splitbrain.w") == [expected], "its resource is set")

    asyncio.run(scenario())


def test_a_witness_that_is_an_url(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Web() as web:
            check = SplitbrainCheck("w", f"http://127.0.0.1:{web.port}/alive?x=1", "http")
            async with FakeServer(tmp_path, ModuleConfig("AM", 1, check=Check(splitbrain=check))) as server:
                server.spawn("checkers.splitbraincheck", "--ident", "w")
                await server.until(lambda: server.values("splitbrain.w") == ["up"], "2xx is up")
                assert web.paths[0] == "/alive?x=1"
                web.says("503 Service Unavailable")
                assert (await verdict(server))[0] == "down"
                web.answer = b"\x00\xff nonsense \r\n\r\n"
                assert (await verdict(server))[0] == "down"
                web.says("204 No Content")
                assert (await verdict(server))[0] == "up"

    asyncio.run(scenario())


def test_a_witness_that_is_a_server_answers_after_the_question(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = ModuleConfig("AM", 1, check=Check(splitbrain=SplitbrainCheck("w", "n3", "node")))
        async with FakeServer(tmp_path, config) as server:
            age = {"n3": 40.0}
            admin = server.endpoints[0]
            mapper = admin._handler

            async def serve(request: object) -> dict[str, object] | None:
                if getattr(request, "op", "") == "members":
                    return {"nodes": {"n3": {"lans": {"default": age["n3"]}}}}
                return await mapper(request)  # type: ignore[arg-type]

            admin._handler = serve
            server.spawn("checkers.splitbraincheck", "--ident", "w")
            await server.until(lambda: "AM/splitbraincheck.w" in server.ports, "it runs")
            assert (await verdict(server))[0] == "down", "a server heard before the question is history"
            age["n3"] = 0.01
            assert (await verdict(server))[0] == "up"

    asyncio.run(scenario())


def document(state: str, color: str, run: str) -> bytes:
    return encode(ModuleState("other", "n2", state, color, 1.0, run))


def test_modulecheck_follows_a_module_and_its_restarts(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Web() as web:
            web.says("404 Not Found")
            check = ModuleCheck("other", "other", "127.0.0.1", web.port, interval=1, timeout=1)
            async with FakeServer(tmp_path, ModuleConfig("AM", 1, check=Check(module=(check,)))) as server:
                own = ResourceWriter(server.paths.resources)
                own.set("state.local", "WAIT", "test")
                server.spawn("checkers.modulecheck", "--ident", "other")
                await server.until(lambda: server.values("module.other") == ["down"], "unknown is down")
                assert web.paths[0] == "/var/modules/other/state.json"
                web.says("200 OK", document("UP", "green", "n2/1"))
                await server.until(lambda: server.values("module.other") == ["down", "up"], "green is up")
                own.set("state.local", "UP", "test")
                web.says("200 OK", document("UP", "green", "n2/2"))

                def orders() -> list[str]:
                    return [f["action"] + " " + f["identity"] for _, op, f in server.told if op == "control"]

                await server.until(orders, "a new run is told")
                assert orders() == ["stopstart modulecheck"]
                assert server.values("module.other") == ["down", "up"], "it was never seen down"
                web.says("200 OK", document("PRIM", "magenta", ""))
                await server.until(lambda: server.values("module.other")[-1] == "down", "in transition is down")
                web.says("200 OK", b"[" * 5000)
                await asyncio.sleep(1.5)
                assert server.processes[-1].poll() is None, "hostile bytes end nothing"

    asyncio.run(scenario())


def authority(directory: Path, name: str) -> None:
    """cacert.crt, server.crt and server.key of a cluster with an authority of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    openssl = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    ca = ["-CA", directory / "cacert.crt", "-CAkey", directory / "ca.key"]
    for subject, base, more in ((f"/CN={name}", "cacert", ["-x509"]), ("/CN=n2", "server", ["-x509", *ca])):
        key = "ca.key" if base == "cacert" else "server.key"
        files = ["-keyout", directory / key, "-out", directory / f"{base}.crt"]
        subprocess.run([*openssl, *more, "-subj", subject, *files], check=True, capture_output=True)


def test_modulecheck_over_https_believes_its_own_authority_only(tmp_path: Path) -> None:
    authority(tmp_path / "safe" / "web" / "conf", "ours")
    authority(tmp_path / "theirs", "theirs")

    def served(directory: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "server.crt", directory / "server.key")
        return context

    ours = served(tmp_path / "safe" / "web" / "conf")
    ours.load_verify_locations(tmp_path / "safe" / "web" / "conf" / "cacert.crt")
    ours.verify_mode = ssl.CERT_REQUIRED

    async def scenario() -> None:
        async with Web(ours) as web, Web(served(tmp_path / "theirs")) as other, Web() as plain:
            for one in (web, other, plain):
                one.says("200 OK", document("UP", "green", "n2/1"))
            checks = tuple(
                ModuleCheck(ident, "other", "127.0.0.1", one.port, interval=1, timeout=2, secure=True)
                for ident, one in (("ours", web), ("theirs", other), ("plain", plain))
            )
            async with FakeServer(tmp_path, ModuleConfig("AM", 1, check=Check(module=checks))) as server:
                for check in checks:
                    server.spawn("checkers.modulecheck", "--ident", check.ident)
                await server.until(lambda: server.values("module.ours") == ["up"], "a server of the cluster")
                await server.until(lambda: server.values("module.theirs") == ["down"], "another authority")
                await server.until(lambda: server.values("module.plain") == ["down"], "no TLS at all")
                (tmp_path / "safe" / "web" / "conf" / "cacert.crt").unlink()
                await server.until(lambda: server.values("module.ours") == ["up", "down"], "no authority")
                assert any("HTTPS needs cacert.crt" in line.text() for line in server.log())

    asyncio.run(scenario())


def test_the_document_of_a_module() -> None:
    resources = {
        "state.local": Resource("state.local", "ALONE", 10.0, "heart"),
        "state.color": Resource("state.color", "green", 20.0, "heart"),
    }
    alone = state_of("AM", "n1", resources)
    assert decode(encode(alone)) == alone and alone.serves and alone.since == 20.0
    resources["state.local"] = Resource("state.local", "PRIM", 30.0, "heart")
    assert state_of("AM", "n1", resources).run == alone.run, "ALONE -> PRIM restarts nothing"
    for bad in (b"", b"{}", b"[]", b"\xff", b'{"module":1}', json.dumps({"since": "x"}).encode(), b"1" * 20000):
        with pytest.raises(BadDocument):
            decode(bad)
