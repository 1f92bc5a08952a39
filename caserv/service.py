"""Requests to the CA service: the pages of the wizard, what they ask for, and `POST /caserv` (guide 11.6.5)."""

from __future__ import annotations

import asyncio
import email
import json
import mimetypes
import sys
import traceback
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web
from aiohttp.helpers import content_disposition_header

from caserv import authority, installed, names, places, proof, tasks
from caserv.client import USER, CaClient
from caserv.errors import PkiError
from caserv.gate import Gate, Refused
from caserv.installed import Say
from caserv.judge import Kind, Known, address, dns_name
from safekit.disk.paths import node_name, safebin
from safekit.wire.proof import ProofError

MAX_BODY = 256 << 10
BODY_SECONDS = 15.0
MAX_FIELDS = 20
PAGES = ("/", "/advanced.html", "/getcsr.html", "/legacy.html")
"""One document: its script shows what belongs to the address."""
CHALLENGE, PROVE = "/caserv/challenge", "/caserv/proof"
PUBLIC = frozenset({"/certs/cacert.crt", "/certs/crl.pem", CHALLENGE, PROVE})
"""What workstations and servers may have without a password; with one, the answer is proved."""
LANGUAGES = ("en", "fr", "ja")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Server": "SafeKit",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": POLICY,
}
TYPES = {".crt": "application/x-x509-ca-cert", ".pem": "application/x-pem-file", ".p12": "application/x-pkcs12"}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Task = Callable[[Say], Any]


def refusal(status: int, code: str, text: str, next_step: str) -> web.Response:
    """An error as every route answers it."""
    return web.json_response({"error": code, "text": text, "next_step": next_step}, status=status)


def foreign(request: web.Request) -> bool:
    """Whether a page of another site asks, with the password that the browser remembers."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host


class Service:
    """The application. One task at a time changes files."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._busy = asyncio.Lock()

    def app(self) -> web.Application:
        """Routes and what happens around each of them."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY)
        posts: dict[str, Handler] = {
            "/caserv": self._sign, PROVE: self._proof, "/api/first": self._first, "/api/additional": self._additional,
            "/api/firewall": self._firewall, "/api/user": self._user, "/api/requests": self._requests,
            "/api/names": self._set_names, "/api/renew": self._renew, "/api/revoke": self._revoke,
            "/api/upload": self._upload, "/api/ca": self._ca,
        }  # fmt: skip
        app.add_routes([web.post(path, handler) for path, handler in posts.items()])
        app.add_routes([web.get(path, self._page) for path in PAGES])
        app.add_routes(
            [
                web.get(CHALLENGE, self._challenge),
                web.get("/api/state", self._state),
                web.get("/api/files/{name}", self._file),
                web.get("/certs/{name}", self._certificate),
                web.get("/assets/{name}", self._asset),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        key = b""
        try:
            if request.method not in ("GET", "HEAD") and foreign(request):
                raise web.HTTPForbidden(reason="requests of other sites are refused")
            header = request.headers.get("Authorization", "")
            if header or request.path not in PUBLIC:
                key = await self._admit(request, header)
            async with asyncio.timeout(BODY_SECONDS):
                await request.read()
            response = await handler(request)
        except Refused as error:
            response = refusal(
                429 if error.wait else 401, "password", error.text, f"give the password of {USER}; startcaserv sets it"
            )
            if error.wait:
                response.headers["Retry-After"] = str(int(error.wait) + 1)
            elif not request.headers.get("Authorization", "").startswith(proof.SCHEME):
                response.headers["WWW-Authenticate"] = 'Basic realm="SafeKit CA", charset="UTF-8"'
            response.force_close()
        except PkiError as error:
            response = refusal(400, "refused", error.text, error.next_step)
        except TimeoutError:
            response = refusal(408, "timeout", f"the request took more than {BODY_SECONDS:.0f} s", "send it again")
            response.force_close()
        except web.HTTPException as error:
            response = refusal(error.status, "http", error.reason, "see the guide, 11.6.5")
            response.headers.update({k: v for k, v in error.headers.items() if k == "Allow"})
            if error.status in (403, 413):
                response.force_close()
        except OSError as error:
            response = refusal(500, "system", f"{error.filename or ''}: {error.strerror}", "free space, check rights")
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception as error:  # a defect of one handler must not take the service away
            traceback.print_exc(file=sys.stderr)
            response = refusal(500, "defect", f"defect: {type(error).__name__}", "journalctl -u safecaserv")
        return self._finished(response, key)

    async def _admit(self, request: web.Request, header: str) -> bytes:
        """See Gate.admit. The body is read before only where it is signed: a stranger's is not read at all."""
        body = b""
        if header.startswith(proof.SCHEME):
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
        return await self._gate.admit(header, request.remote or "?", request.method, request.raw_path, body)

    def _finished(self, response: web.StreamResponse, key: bytes = b"") -> web.StreamResponse:
        response.headers.update(HEADERS)
        if key and isinstance(response, web.Response):
            content = response.body if isinstance(response.body, bytes) else b""
            response.headers[proof.PROOF] = proof.answer_proof(key, response.status, content)
        return response

    async def _do(self, task: Task) -> tuple[list[str], Any]:
        """Run a task in a thread, one at a time; what it said, and its result. Raises PkiError, OSError."""
        if self._busy.locked():
            raise PkiError("another task of this service is not finished", "wait for it, then try again")
        lines: list[str] = []
        async with self._busy:
            result = await asyncio.to_thread(task, lines.append)
        return lines, result

    async def _told(self, task: Task) -> web.Response:
        try:
            lines, _ = await self._do(task)
        except PkiError as error:
            print(f"safecaserv: {error.text}", file=sys.stderr, flush=True)
            raise
        for line in lines:
            print(f"safecaserv: {line}", flush=True)
        return web.json_response({"lines": lines})

    # Pages and files

    async def _challenge(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(self._gate.challenge())

    async def _proof(self, request: web.Request) -> web.StreamResponse:
        data = await _json(request, "message")
        try:
            message = bytes.fromhex(data.get("message", ""))
            return web.json_response(await self._gate.begin(message, request.remote or "?"))
        except (ValueError, ProofError):
            raise PkiError("message: this is no half of a key", "ask by initssl req") from None

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return _asset_response("page.html")

    async def _asset(self, request: web.Request) -> web.StreamResponse:
        return _asset_response(request.match_info["name"])

    async def _state(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(await asyncio.to_thread(_state))

    async def _certificate(self, request: web.Request) -> web.StreamResponse:
        """Certificates and what an administrator published (guide 11.6.1.4), the CRL."""
        name = request.match_info["name"]
        if name == authority.CRL:
            content = await asyncio.to_thread(authority.published_crl)
            return web.Response(body=content, content_type=TYPES[".pem"])
        return _download(places.certs(), name, (".crt", ".p12"))

    async def _file(self, request: web.Request) -> web.StreamResponse:
        """What was made here: requests, certificates, p12 files. No keys."""
        name = request.match_info["name"]
        return _download(places.certs() if name.endswith(".crt") else places.private(), name, (".crt", ".csr", ".p12"))

    # What changes something

    async def _sign(self, request: web.Request) -> web.StreamResponse:
        """`action=signrequest`: a certificate for a request (PEM)."""
        form = await _form(request)
        if form.get("action") != "signrequest":
            raise PkiError(f"action: {form.get('action', '')[:40]!r} is unknown", "action=signrequest")
        given = [each for each in ("servercsr", "usercsr") if form.get(each)]
        if len(given) != 1:
            raise PkiError(f"{len(given)} requests were given", "one of the fields servercsr and usercsr")
        asked = frozenset(_asked(form["names"])) if form.get("names") else None
        kind = Kind.SERVER if given == ["servercsr"] else Kind.USER
        data, name, client = form[given[0]].encode(), form.get("name", ""), request.remote or ""

        def task(say: Say) -> tuple[str, bytes]:
            ours = authority.load()
            known = Known(names.cluster_owners(), ours.certified_names(), asked, client)
            return tasks.sign(kind, data, name, known)

        _, (made, certificate) = await self._do(task)
        print(f"safecaserv: {made} is signed for {client}", flush=True)
        return web.Response(body=certificate, content_type=TYPES[".pem"])

    async def _first(self, request: web.Request) -> web.StreamResponse:
        data = await _json(request, "subject")
        if installed.is_active() and authority.is_there():
            return web.json_response({"lines": ["this server is configured already; initssl renew renews"]})

        def task(say: Say) -> None:
            names.update()
            tasks.first_server(say, data.get("subject", ""))
            installed.activate(say)

        return await self._told(task)

    async def _ca(self, request: web.Request) -> web.StreamResponse:
        """Certificates only: https stays as it is (the wizard of 7.3)."""
        data = await _json(request, "subject")
        return await self._told(lambda say: tasks.first_server(say, data.get("subject", "")))

    async def _additional(self, request: web.Request) -> web.StreamResponse:
        data = await _json(request, "address", "password", "fingerprint")
        where = data.get("address", "").strip()
        if "://" not in where:
            where = f"https://[{where}]" if where.count(":") > 1 and "[" not in where else f"https://{where}"
        client = CaClient(where, data.get("password", ""), data.get("fingerprint", ""))

        def task(say: Say) -> None:
            names.update()
            tasks.additional_server(client, say)
            installed.activate(say)

        return await self._told(task)

    async def _firewall(self, request: web.Request) -> web.StreamResponse:
        await _json(request)
        return await self._told(lambda say: installed.run([str(safebin() / "firewallcfg"), "add"], say))

    async def _user(self, request: web.Request) -> web.StreamResponse:
        data = await _json(request, "name", "role", "password")
        name, role, password = (data.get(each, "") for each in ("name", "role", "password"))
        lines, path = await self._do(lambda say: tasks.user_certificate(name, role, password, say))
        print(f"safecaserv: {lines[-1]}", flush=True)
        return _download(path.parent, path.name, (".p12",))

    async def _requests(self, request: web.Request) -> web.StreamResponse:
        await _json(request)
        return await self._told(tasks.requests)

    async def _set_names(self, request: web.Request) -> web.StreamResponse:
        data = await _json(request, *names.FILES)
        lists = {file: _asked(data[file]) for file in names.FILES if file in data}
        for file, values in lists.items():
            for each in values:
                dns_name(each) if file == "ipnames.json" else address(each)

        def task(say: Say) -> None:
            for file, values in lists.items():
                names.write_list(file, values)
                say(f"{places.conf() / file}: {', '.join(values)}")

        return await self._told(task)

    async def _renew(self, request: web.Request) -> web.StreamResponse:
        data = await _json(request, "name", "password")
        return await self._told(lambda say: tasks.renew(data.get("name", ""), data.get("password", ""), say))

    async def _revoke(self, request: web.Request) -> web.StreamResponse:
        data = await _json(request, "name")
        return await self._told(lambda say: tasks.revoke(data.get("name", ""), say))

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        data = await _json(
            request, "server.crt", "server.key", "admin.crt", "admin.key", "cacert.crt", "clcacert.crt", "activate"
        )
        activate = bool(data.pop("activate", ""))
        files = {name: text.encode() for name, text in data.items() if text.strip()}

        def task(say: Say) -> None:
            tasks.upload(files, say)
            if activate:
                installed.activate(say)

        return await self._told(task)


def _state() -> dict[str, Any]:
    lists = {}
    for file in names.FILES:
        try:
            lists[file] = names.read_list(file)
        except PkiError:
            lists[file] = []
    there = authority.is_there()
    return {
        "node": node_name(),
        "authority": authority.subject_text(authority.load().certificate.subject) if there else "",
        "https": installed.is_active(),
        "issued": tasks.listed() if there else [],
        "installed": tasks.installed_files(),
        "names": lists,
        "files": sorted(path.name for path in _made()),
    }


def _made() -> list[Path]:
    found = list(places.certs().glob("*.crt")) if places.certs().is_dir() else []
    if places.private().is_dir():
        found += [path for path in places.private().iterdir() if path.suffix in (".csr", ".p12")]
    return found


def _asset_response(name: str) -> web.Response:
    place = resources.files("caserv") / "pages"
    folder = place / "i18n" if name.removesuffix(".json") in LANGUAGES else place
    if name not in {each.name for each in folder.iterdir() if each.is_file()}:
        raise web.HTTPNotFound
    kind = mimetypes.guess_type(name)[0] or "text/plain"
    return web.Response(body=(folder / name).read_bytes(), content_type=kind, charset="utf-8")


def _download(directory: Path, name: str, suffixes: tuple[str, ...]) -> web.Response:
    """A file of that directory, never of another one. Raises PkiError when there is none."""
    path = directory / name
    there = directory.is_dir() and name in {each.name for each in directory.iterdir()}
    if not there or path.suffix not in suffixes or path.is_symlink() or not path.is_file():
        raise web.HTTPNotFound
    disposition = content_disposition_header("attachment", filename=name)
    kind = TYPES.get(path.suffix, "application/octet-stream")
    return web.Response(body=path.read_bytes(), content_type=kind, headers={"Content-Disposition": disposition})


def _asked(text: str) -> list[str]:
    return [each.lower() for each in text.replace(",", " ").split()]


async def _form(request: web.Request) -> dict[str, str]:
    """The fields of a form, in either of the two ways that browsers and curl send one. Raises PkiError."""
    found: dict[str, str] = {}
    try:
        if request.content_type == "multipart/form-data":
            head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
            parts = list(email.message_from_bytes(head + await request.read()).walk())[1:]
            if not 0 < len(parts) <= MAX_FIELDS or any(part.is_multipart() for part in parts):
                raise ValueError
            for part in parts:
                content = part.get_payload(decode=True)
                assert isinstance(content, bytes)
                found[str(part.get_param("name", "", "content-disposition"))] = content.decode()
        else:
            text = (await request.read()).decode()
            fields = parse_qs(text, strict_parsing=bool(text), max_num_fields=MAX_FIELDS, errors="strict")
            found = {name: values[0] for name, values in fields.items()}
    except (ValueError, AssertionError):
        raise PkiError("the form cannot be read", "send action, name, and servercsr or usercsr") from None
    return found


async def _json(request: web.Request, *fields: str) -> dict[str, str]:
    """The texts of a JSON object. That type is one that pages of other sites cannot send unasked. Raises PkiError."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType
    try:
        data = json.loads(await request.read() or b"{}")
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or not all(k in fields and isinstance(v, str) for k, v in data.items()):
        raise PkiError("the request cannot be read", f"send a JSON object with texts: {', '.join(fields)}")
    return data
