"""The application: routes, and what happens to every request before and after its handler."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import sys
import time
import traceback
from urllib.parse import urlsplit

from aiohttp import web

from safekit.disk.paths import node_name
from safekit.model.cluster import ClusterError, load_cluster
from safewebserver import pages
from safewebserver.api import PREFIX, Api, ApiError, Handler, reply
from safewebserver.identity import Busy, Gate, Strangers, Unauthorized
from safewebserver.modules import NoModule

PUBLIC = frozenset({f"{PREFIX}/openapi.json", "/safekit/mosaic.html", "/safekit/localhost.html"})
PUBLIC_BELOW = "/var/modules/"
_NEXT_STEPS = {
    "clock": "set the clocks of the servers (NTP): date; timedatectl",
    "key": "distribute the cluster configuration from the server that has the right one: safekit -H '*' -G",
    "target": "use the address of that server in cluster.xml",
    "credentials": "give the name and password of a user of that server (safekit -H asks for them)",
}


def known_host(host: str) -> bool:
    """Whether a Host header is an address, or a name of this cluster: a page that reached us under a name of its own
    (DNS rebinding) is not the administrator."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ipaddress.ip_address(name.partition("%")[0])
        return True
    except ValueError:
        known = {"localhost", socket.gethostname().lower(), node_name().lower()}
    with contextlib.suppress(ClusterError):
        known |= {text.lower() for lan in load_cluster().lans for node in lan.nodes for text in (node.name, node.addr)}
    return name in known


def is_public(path: str) -> bool:
    """What load balancers, module checkers and strangers may see."""
    return path in PUBLIC or path.startswith(PUBLIC_BELOW)


def foreign(request: web.Request) -> bool:
    """Whether a page of another site makes this request in the name of its visitor."""
    origin = request.headers.get("Origin")
    if origin is None or request.method in ("GET", "HEAD"):
        return False
    return urlsplit(origin).netloc != request.host


def refuse(request: web.Request, status: int, code: str, text: str, next_step: str) -> web.Response:
    """An error as every route answers it."""
    return reply(request, {"error": code, "text": text, "next_step": next_step}, status)


def _challenge(request: web.Request, error: Unauthorized) -> web.Response:
    body = {
        "error": error.kind,
        "text": error.text,
        "next_step": _NEXT_STEPS.get(error.kind, "see the log of the web service"),
    }
    if error.kind == "clock":
        body["skew"] = str(round(error.skew, 3))
    response = reply(request, body, 401)
    if error.kind == "credentials":
        response.headers["WWW-Authenticate"] = 'Basic realm="SafeKit", charset="UTF-8"'
    return response


def make_app(gate: Gate, api: Api) -> web.Application:
    """The application. Every route asks who is there, but the public ones."""
    strangers = Strangers(lambda text: print(f"safewebserver: {text}", file=sys.stderr, flush=True))

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if foreign(request):
                raise ApiError(403, "origin", "requests from pages of other sites are refused")
            if request.path == "/" and pages.loopback(request.host):
                raise web.HTTPFound("/safekit/localhost.html")
            if not is_public(request.path):
                name = request.transport.get_extra_info("sockname") if request.transport is not None else None
                port = int(name[1]) if name else 0
                header = request.headers.get("Authorization")
                who = request["caller"] = await gate.identify(header, request.method, request.raw_path, port)
                if who.anonymous and request.method not in ("GET", "HEAD") and not known_host(request.host):
                    text = "without passwords, changes are accepted under an address or a name of cluster.xml only"
                    raise ApiError(403, "host", text)
            response = await handler(request)
        except ApiError as error:
            response = reply(request, error.body, error.status)
        except Unauthorized as error:
            if request.headers.get("Authorization"):
                strangers.refused(request.remote or "?", error.text, time.monotonic())
            response = _challenge(request, error)
        except NoModule as error:
            response = refuse(request, 404, "no_module", str(error), "safekit module list")
        except Busy:
            response = reply(
                request, {"error": "busy", "text": "too many logins at once", "next_step": "try again"}, 503
            )
        except web.HTTPException as error:
            if error.status < 400:
                raise
            response = reply(
                request, {"error": "http", "text": error.reason, "next_step": "see openapi.json"}, error.status
            )
            response.headers.update({k: v for k, v in error.headers.items() if k == "Allow"})
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception as error:  # a defect of one handler must not take the service away from the others
            traceback.print_exc(file=sys.stderr)
            text = f"defect in the web service: {type(error).__name__}"
            response = reply(
                request, {"error": "defect", "text": text, "next_step": "journalctl -u safewebserver"}, 500
            )
        if not response.prepared:
            response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    app = web.Application(middlewares=[guard])
    app.add_routes([*api.routes(), *pages.routes()])
    return app
