"""The processes that strangers speak to: what they may not, what the web service takes from them, and their end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.client import HTTPSConnection
from pathlib import Path

import psutil
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from web_https import Pki, secure_server
from web_server import CHECKOUT, PASSWORDS, WebServer

import safehttp.main
import safewebserver.front as front_module
from lab.waiting import wait_until
from safekit.bus.front import AnswerHead, FrameError, Kind, Link, Order, RequestHead, Told, packed, unpacked
from safekit.wire.tls import Keys
from safewebserver.front import Connection, Conversation, Front
from safewebserver.workers import NotStarted, Worker

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")

ATTEMPTS = """
import os, socket, sys, tempfile
from pathlib import Path
from safekit import syscalls
from safekit.process.confined import confine

parent, port, secret = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
kept = open(os.devnull)
lacks = confine()

def tries(what, function):
    try:
        function()
    except OSError as error:
        print(what, "refused")
    else:
        print(what, "DONE")

tries("read a file that everybody may", lambda: Path("/etc/passwd").read_bytes())
tries("read a file", lambda: Path(secret).read_bytes())
tries("write a file", lambda: tempfile.TemporaryFile(dir="/tmp"))
tries("list a directory", lambda: os.listdir("/var"))
tries("fork", os.fork)
tries("run a program", lambda: os.posix_spawn("/bin/true", ["true"], {}))
tries("connect", lambda: socket.create_connection(("127.0.0.1", port), 2))
tries("end its parent", lambda: os.kill(parent, 15))
tries("signal a process of its user", lambda: os.kill(os.getpid(), 0))
tries("become root", lambda: os.setuid(0))
tries("look into its parent", lambda: Path(f"/proc/{parent}/mem").open("rb"))
tries("mount", lambda: os.chroot("/tmp"))
tries("make a socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
tries("be root in a name space of its own", lambda: syscalls.unshare(0x10000000))
print("lacks", lacks)
"""


@as_root
def test_a_confined_process_can_do_nothing(tmp_path: Path) -> None:
    """Tried, not read off: each of what a process that was taken over would do first."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, "-c", ATTEMPTS, str(os.getpid()), str(listening.getsockname()[1]), str(secret)]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *tried, lacks = done.stdout.splitlines()
    assert len(tried) == 14 and all(line.endswith("refused") for line in tried), done.stdout
    assert lacks == "lacks []", "this kernel can do all of it"


IN_A_CONTAINER = """
import errno, sys
from safekit import syscalls
from safekit.process.confined import confine

def refused(readable):
    raise OSError(getattr(errno, sys.argv[1]), "refused")

syscalls.restrict_files = refused
print(confine())
"""


@as_root
@pytest.mark.parametrize("error", ["ENOSYS", "EOPNOTSUPP", "EPERM"])
def test_what_a_kernel_or_the_filter_of_a_container_refuses_is_told_and_left_out(error: str) -> None:
    command = [sys.executable, "-c", IN_A_CONTAINER, error]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "no Landlock in this kernel or container" in done.stdout


def children(server: WebServer) -> dict[str, psutil.Process]:
    """The processes below the service by their names."""
    assert server.process is not None
    return {each.name(): each for each in psutil.Process(server.process.pid).children()}


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


@pytest.fixture
def secure(tmp_path: Path, pki: Pki) -> Iterator[tuple[WebServer, HTTPSConnection]]:
    server, port = secure_server(tmp_path, pki, "Define usefile\n")
    server.start()
    wait_until(lambda: {"safehttp", "safetls"} <= set(children(server)), 20)
    context = ssl.create_default_context(cafile=server.safe / "web/conf/cacert.crt")
    context.load_cert_chain(tmp_path / "clients/admin.crt", tmp_path / "clients/admin.key")
    try:
        yield server, HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    finally:
        said = server.stop()
    assert "Traceback" not in said and "not confined" not in said, said
    assert not [each for each in ("safehttp", "safetls") if each in children_names()], "they end with the service"


def children_names() -> list[str]:
    return [each.name() for each in psutil.Process().children(recursive=True)]


def asked(connection: HTTPSConnection) -> str:
    """Who the service says that we are, over one connection."""
    connection.request("GET", "/api/v1/node")
    answer = connection.getresponse()
    return str(json.loads(answer.read()).get("user"))


@as_root
def test_no_process_that_reads_what_strangers_send_is_root(secure: tuple[WebServer, HTTPSConnection]) -> None:
    server, connection = secure
    assert asked(connection) == "administrator"
    found = children(server)
    for name in ("safehttp", "safetls"):
        wait_until(lambda name=name: 0 not in found[name].uids(), 20)
        status = Path(f"/proc/{found[name].pid}/status").read_text()
        assert re.search(r"^Seccomp:\s2$", status, re.MULTILINE)
        assert re.search(r"^Groups:\s*$", status, re.MULTILINE) and re.search(r"^NoNewPrivs:\s1$", status, re.MULTILINE)
        assert all(int(each, 16) == 0 for each in re.findall(r"^Cap(?:Prm|Eff|Inh|Amb):\s(\w+)", status, re.MULTILINE))
        assert os.readlink(f"/proc/{found[name].pid}/ns/net") != os.readlink("/proc/self/ns/net")
    # And the one that is, has no socket of a stranger: his bytes do not reach it.
    connection.request("GET", "/api/v1/openapi.json")
    assert server.process is not None
    ours = connection.sock.getsockname()[1]
    assert not [
        each for each in psutil.Process(server.process.pid).net_connections() if each.raddr and each.raddr.port == ours
    ]
    connection.getresponse().read()


@pytest.mark.parametrize("name", ["safehttp", "safetls"])
def test_a_process_that_was_killed_is_there_again(secure: tuple[WebServer, HTTPSConnection], name: str) -> None:
    server, connection = secure
    assert asked(connection) == "administrator"
    killed = children(server)[name]
    killed.send_signal(signal.SIGKILL)
    wait_until(lambda: name in (now := children(server)) and now[name].pid != killed.pid, 20)
    connection.close()

    def answered() -> bool:
        try:
            return asked(connection) == "administrator"
        except OSError:
            connection.close()
            return False

    wait_until(answered, 20)
    assert f"{name} has ended (-9); it is started again" in server.output.read_text()


def test_a_process_that_cannot_start_is_told_and_nobody_is_accepted() -> None:
    async def run() -> None:
        lost: list[str] = []
        worker = Worker("safehttp", "safehttp.nosuch", lambda told: None, lambda: lost.append("lost"))
        with pytest.raises(NotStarted, match="safehttp has ended at its start"):
            await worker.start()
        assert await worker.ended() == 1 and lost == [], "who starts it is told by the error alone"

    asyncio.run(run())


def test_a_body_comes_only_when_it_is_wanted_and_whole(tmp_path: Path) -> None:
    """Who is refused sends his body to nobody; who says that he waits for it is told to go on."""
    server = WebServer(tmp_path).start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
            sock.sendall(
                b"PUT /api/v1/cluster HTTP/1.1\r\nHost: n1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            )
            assert sock.recv(4096).startswith(b"HTTP/1.1 401 ")
        body = json.dumps({"user": "admin", "password": PASSWORDS["admin"]}).encode()
        head = f"POST http://n1:{server.port}/api/v1/session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
            sock.sendall(f"{head}Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n".encode())
            assert sock.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b"".join(b"1\r\n%c\r\n" % each for each in body) + b"0\r\n\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
            sock.sendall(b"HEAD /api/v1/openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
            assert re.search(rb"\r\nContent-Length: \d{5,}\r\n", answer) and answer.endswith(b"\r\n\r\n"), answer[-99:]
    finally:
        said = server.stop()
    assert "Traceback" not in said, said


def test_who_takes_nothing_of_his_answer_does_not_hold_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safehttp.main, "SILENT_SECONDS", 0.2)

    async def run() -> None:
        links = safehttp.main.Links()
        server = safehttp.main.Server(links)
        ours, theirs = socket.socketpair()
        protocol = server()
        links.add(protocol, await Link.of(theirs))
        with (
            socket.create_server(("127.0.0.1", 0)) as listening,
            socket.create_connection(listening.getsockname()) as c,
        ):
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, listening.accept()[0])
            c.sendall(b"GET /x HTTP/1.1\r\nHost: n1\r\n\r\n")
            service = await Link.of(ours)
            asked = await service.receive()
            assert asked is not None and asked[0] is Kind.REQUEST
            await service.send(Kind.ANSWER, packed(AnswerHead(200, "OK", (), False)))
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(20):
                    while True:
                        await service.send(Kind.DATA, bytes(65536))

    asyncio.run(run())


FOLLOWS = """
import asyncio, os, resource, socket, sys
from safehttp.orders import follow

orders = socket.socket(fileno=os.dup(0))

def take(order, descriptors):
    print(order.number, len(descriptors), flush=True)
    for each in descriptors:
        os.close(each)

async def serve():
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    kept = [os.dup(0) for _ in range(used)]
    most = max(kept) + 1
    os.close(kept.pop())
    if sys.argv[1] == "0":
        most -= 1
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    await follow(orders, take)

asyncio.run(serve())
"""


@pytest.mark.parametrize("free", ["0", "1"])
def test_a_connection_for_which_no_descriptor_is_free_ends_and_the_others_go_on(free: str) -> None:
    orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    orders.settimeout(30)
    with theirs:
        command = [sys.executable, "-c", FOLLOWS, free]
        process = subprocess.Popen(command, cwd=CHECKOUT, stdin=theirs, stdout=subprocess.PIPE, text=True)

    def give(number: int) -> None:
        """An order with a connection; returns when the process has let go of it."""
        ours, connection = socket.socketpair()
        ours.settimeout(30)
        with ours:
            with connection:
                both = (connection.fileno(), connection.fileno())
                socket.send_fds(orders, [packed(Order("serve", number))], both)
            assert ours.recv(1) == b""

    try:
        assert unpacked(Told, orders.recv(4096)).op == "ready"
        give(1)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        give(2)
    finally:
        orders.close()
        said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "2 2\n")


# What a process that was taken over may say


LIAR = """
import base64, os, socket
from safekit.bus.front import Told, packed

orders = socket.socket(fileno=os.dup(0))
for each in (Told("ready"), Told("shaken", 1, base64.b64encode(b"of somebody else").decode())):
    orders.send(packed(each))
orders.recv(1)
"""


def test_safehttp_cannot_say_which_certificate_was_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows the numbers of handshakes, which count up: it may not answer one of them before safetls does."""

    async def run() -> None:
        runner = web.AppRunner(web.Application())
        await runner.setup()
        assert runner.server is not None
        front = Front(runner.server)
        monkeypatch.setattr(Worker, "_program", lambda worker: [sys.executable, "-c", LIAR])
        shaking = front._shaking[1] = asyncio.get_running_loop().create_future()
        lost = asyncio.Event()
        monkeypatch.setattr(front, "_lost", lambda worker: lost.set())
        try:
            await front.start(secure=False)
            waits = asyncio.ensure_future(lost.wait())
            await asyncio.wait({waits, shaking}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            assert lost.is_set() and not shaking.done(), "it is not believed, and is started again"
        finally:
            await front.close()
            await runner.cleanup()

    asyncio.run(run())


def test_safetls_that_ends_before_it_has_its_keys_is_started_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two starts at a time would take the socket of each other."""
    monkeypatch.setattr(front_module, "AGAIN_SECONDS", 0.0)

    async def run() -> None:
        runner = web.AppRunner(web.Application())
        await runner.setup()
        assert runner.server is not None
        said: list[str] = []
        front = Front(runner.server, said.append)
        front._keys = Keys("", "", "")
        starts = 0

        async def start() -> None:
            nonlocal starts
            starts += 1

        monkeypatch.setattr(front._tls, "start", start)  # and it ends at once: its channel is not there
        await asyncio.wait_for(front._again(front._tls), 20)
        assert (starts, said) == (1, [])
        await front.close()
        await runner.cleanup()

    asyncio.run(run())


async def _echo(request: web.Request) -> web.StreamResponse:
    body = b"".join([part async for part in request.content.iter_chunked(1024)])
    known = {"secure": request.secure, "remote": request.remote, "port": request.get_extra_info("sockname")[1]}
    certificate = request.get_extra_info("certificate")
    return web.json_response({**known, "certificate": certificate.decode() if certificate else None, "body": len(body)})


@asynccontextmanager
async def conversation() -> AsyncIterator[tuple[Link, asyncio.StreamWriter, asyncio.Task[None]]]:
    """The web service's side of a connection, and ours."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", _echo)
    runner = web.AppRunner(app)
    await runner.setup()
    assert runner.server is not None
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    known = Connection(("127.0.0.1", 9010), ("10.0.0.7", 4711), False)
    task = asyncio.create_task(Conversation(known, await Link.of(theirs), runner.server).run())
    try:
        yield Link(reader, writer), writer, task
    finally:
        writer.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.cleanup()


def head(**changed: object) -> bytes:
    fields = {"method": "POST", "target": "/x", "headers": [["Host", "n1"], ["X-Forwarded-For", "127.0.0.1"]]}
    return json.dumps(fields | changed).encode()


def test_it_cannot_say_whence_a_request_comes() -> None:
    """Neither headers nor fields of its own: address, port, protocol and certificate are those of the connection."""

    async def run() -> None:
        async with conversation() as (link, _, _task):
            await link.send(Kind.REQUEST, head())
            assert await link.receive() == (Kind.WANT, b"")
            await link.send(Kind.DATA, b"x" * 100_000)
            await link.send(Kind.END)
            frame = await link.receive()
            assert frame is not None and unpacked(AnswerHead, frame[1]).status == 200
            frame = await link.receive()
            assert frame is not None and json.loads(frame[1]) == {
                "secure": False, "remote": "10.0.0.7", "port": 9010, "certificate": None, "body": 100_000,
            }  # fmt: skip
            assert await link.receive() == (Kind.END, b"")
        async with conversation() as (link, _, task):
            await link.send(Kind.REQUEST, head(certificate="x", secure=True, remote="127.0.0.1"))
            with pytest.raises(FrameError, match="unknown key 'certificate'"):
                await task

    asyncio.run(run())


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"Q\0\0\0\0", "b'Q' is not a valid Kind"),
        (b"R\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
        (struct.pack(">cI", b"D", 1) + b"x", "DATA where a request begins"),
        (struct.pack(">cI", b"R", 2) + b"[]", "an object"),
        (struct.pack(">cI", b"R", len(head(target="x"))) + head(target="x"), "no head of a request"),
        (struct.pack(">cI", b"R", len(head(method=""))) + head(method=""), "no head of a request"),
        (struct.pack(">cI", b"R", len(head(headers=[["a"]]))) + head(headers=[["a"]]), "a list of 2"),
        (struct.pack(">cI", b"R", len(head())) + head() + struct.pack(">cI", b"A", 0), "ANSWER within a body"),
    ],
)  # fmt: skip
def test_what_it_may_not_say_ends_the_connection(sent: bytes, why: str) -> None:
    async def run() -> None:
        async with conversation() as (_, writer, task):
            writer.write(sent)
            with pytest.raises(FrameError, match=re.escape(why)):
                async with asyncio.timeout(10):
                    await task

    asyncio.run(run())


words = st.text(max_size=9)
heads = st.builds(
    RequestHead,
    st.text("GET", min_size=1, max_size=9),
    st.text(max_size=30).map("/".__add__),
    st.lists(st.tuples(words, words), max_size=4).map(tuple),
)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300) | heads.map(packed))
def test_any_head_is_taken_or_refused(data: bytes) -> None:
    """Whatever it says: an answer, or FrameError; nothing else comes out of it."""

    async def run() -> None:
        async with conversation() as (link, _, task):
            await link.send(Kind.REQUEST, data)
            await link.send(Kind.END)
            answered = asyncio.ensure_future(link.receive())
            async with asyncio.timeout(10):
                await asyncio.wait({answered, task}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                answered.cancel()
                assert isinstance(task.exception(), FrameError)
            else:
                frame = answered.result()
                assert frame is not None and frame[0] in (Kind.WANT, Kind.ANSWER)

    asyncio.run(run())
