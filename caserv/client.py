"""Asks the authority on another server (guide 11.6.4, `initssl req <url> <user>`)."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import NoReturn
from urllib.parse import urlencode, urlsplit

from caserv import proof
from caserv.errors import PkiError
from safekit.model.ports import CASERV
from safekit.wire.proof import Asking, ProofError, hash_with

USER = "CA_admin"
SECONDS = 30.0
MAX_ANSWER = 1 << 20
MAX_SKEW = 120.0


@dataclass
class CaClient:
    """The authority at `url`. `fingerprint` (SHA-256, hexadecimal) of its certificate when that is known."""

    url: str
    password: str
    fingerprint: str = ""
    skew: float = 0.0
    """Seconds by which its clock is ahead of ours."""
    _hashes: dict[str, bytes] = field(default_factory=dict, repr=False)
    _seen: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url if "://" in self.url else f"https://{self.url}")
            host, port = parts.hostname, parts.port or CASERV
        except ValueError:
            host, port = None, 0
        if not host or parts.scheme != "https" or parts.path not in ("", "/") or not host.isprintable() or " " in host:
            raise PkiError(f"{self.url[:200]!r} is not the URL of a CA service", "https://ADDRESS:9001")
        self._host, self._port = host, port

    def ca_certificate(self) -> bytes:
        """PEM. Raises PkiError."""
        return self._ask("GET", "/certs/cacert.crt", b"")

    def crl(self) -> bytes:
        """PEM. Raises PkiError."""
        return self._ask("GET", "/certs/crl.pem", b"")

    def sign(self, field_name: str, name: str, request: bytes, names: tuple[str, ...] = ()) -> bytes:
        """The certificate for a request; `field_name` is servercsr or usercsr. Raises PkiError."""
        form = {"action": "signrequest", "name": name, field_name: request.decode("ascii")}
        if names:
            form["names"] = " ".join(names)
        return self._ask("POST", "/caserv", urlencode(form).encode())

    def _ask(self, method: str, path: str, body: bytes) -> bytes:
        """One request, with proof of both sides. Raises PkiError."""
        connection = self._connect()
        try:
            session, key = self._agreed(connection)
            headers = {
                "Authorization": proof.authorization(key, session, method, path, body),
                "Content-Type": "application/x-www-form-urlencoded",
            }
            status, headers_of_it, content = _exchanged(connection, method, path, body or None, headers)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, ProofError) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()
        return self._judged(status, headers_of_it.get(proof.PROOF, ""), content, key)

    def _agreed(self, connection: http.client.HTTPSConnection) -> tuple[str, bytes]:
        """Session and key for one request. Raises PkiError, ProofError, ValueError, KeyError, OSError."""
        status, headers, content = _exchanged(connection, "GET", "/caserv/challenge", None, {})
        date = headers.get("Date")
        if date:
            self.skew = parsedate_to_datetime(date).timestamp() - time.time()
        salt = str(json.loads(content)["salt"])
        if salt not in self._hashes:
            self._hashes[salt] = hash_with(self.password, salt)
        asking = Asking(USER, proof.name_of(self._seen), self._hashes[salt])
        body = json.dumps({"message": asking.message.hex()})
        status, _, content = _exchanged(
            connection, "POST", "/caserv/proof", body.encode(), {"Content-Type": "application/json"}
        )
        if status != 200:
            self._refused(status, content)
        found = json.loads(content)
        return str(found["session"]), asking.key(bytes.fromhex(found["message"]))

    def _refused(self, status: int, content: bytes) -> NoReturn:
        told = _told(content) or {"text": f"HTTP status {status}", "next_step": "there: journalctl -u safecaserv"}
        raise PkiError(f"{self.where}: {told['text']}", told["next_step"])

    def _judged(self, status: int, mac: str, content: bytes, key: bytes) -> bytes:
        if not proof.answer_is_right(key, status, content, mac):
            raise PkiError(
                f"{self.where}: the password of {USER} is wrong, or this is not your CA server (the fingerprint of "
                f"its certificate is {proof.name_of(self._seen)})",
                "compare the fingerprint with the one that startcaserv printed there; give the password that was "
                "entered there",
            )
        if status != 200:
            self._refused(status, content)
        return content

    def _connect(self) -> http.client.HTTPSConnection:
        """The certificate of the service is nobody's: the password proves it, see proof.py. Raises PkiError."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=SECONDS, context=context)
        try:
            connection.connect()
        except OSError as error:
            raise self._unreachable(error) from None
        assert isinstance(connection.sock, ssl.SSLSocket)
        certificate = connection.sock.getpeercert(binary_form=True) or b""
        wanted = self.fingerprint.replace(":", "").lower()
        if (self._seen and certificate != self._seen) or (wanted and proof.name_of(certificate) != wanted):
            connection.close()
            raise PkiError(
                f"{self.where}: its certificate has the fingerprint {proof.name_of(certificate)}, and not "
                f"{wanted or proof.name_of(self._seen)}",
                "somebody may stand between the servers; compare with what startcaserv printed there",
            )
        self._seen = certificate
        return connection

    @property
    def where(self) -> str:
        """Its address, for messages."""
        return f"https://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    def _unreachable(self, error: Exception) -> PkiError:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return PkiError(
            f"{self.where} cannot be asked: {why}",
            f"there: startcaserv; between the servers: TCP port {self._port} must be open",
        )


def _exchanged(
    connection: http.client.HTTPSConnection, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> tuple[int, Message, bytes]:
    """One request and its answer: status, headers, content. Raises OSError, HTTPException, ValueError."""
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    content = response.read(MAX_ANSWER + 1)
    if len(content) > MAX_ANSWER:
        raise ValueError(f"an answer of more than {MAX_ANSWER} bytes")
    return response.status, response.headers, content


def _told(content: bytes) -> dict[str, str]:
    try:
        found = json.loads(content)
        return {"text": str(found["text"]), "next_step": str(found["next_step"])}
    except (ValueError, KeyError, TypeError):
        return {}
