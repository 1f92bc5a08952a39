"""One message to one channel, now. Blocking, with a bound in time; whoever calls it is a process of its own."""

from __future__ import annotations

import http.client
import json
import smtplib
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any

from safekit.notify.settings import Mail, NotifySettings, Security

SECONDS = 20.0
MAX_SUBJECT = 150


class NotDelivered(Exception):
    """Why not, and what to do. `final`: trying again will not help."""

    def __init__(self, text: str, next_step: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.next_step = next_step
        self.final = final


def deliver(settings: NotifySettings, channel: str, message: Mapping[str, Any]) -> None:
    """`message` has subject, text, id and more for the webhook. Raises NotDelivered."""
    if channel == "mail" and settings.mail is not None:
        _mail(settings.mail, message)
    elif channel == "webhook" and settings.webhook:
        _webhook(settings.webhook, message)
    else:
        raise NotDelivered(f"{channel} is not set up any more", "SAFE/conf/notify.conf", final=True)


def letter(mail: Mail, message: Mapping[str, Any]) -> EmailMessage:
    """The mail. Line breaks in a subject would be headers of somebody's choice."""
    made = EmailMessage()
    made["Subject"] = " ".join(str(message["subject"]).split())[:MAX_SUBJECT]
    made["From"], made["To"] = mail.sender, ", ".join(mail.to)
    made["Date"] = formatdate(float(message.get("date", 0)), localtime=True)
    # Always the same for one message: a mail server that has it already may drop the second copy.
    made["Message-ID"] = f"<{message['id']}@safekit>" if message.get("id") else make_msgid(domain="safekit")
    made["Auto-Submitted"] = "auto-generated"
    made.set_content(str(message["text"]))
    return made


def _mail(mail: Mail, message: Mapping[str, Any]) -> None:
    place = f"{mail.server} port {mail.port}"
    try:
        context = ssl.create_default_context()
        if mail.security is Security.TLS:
            client: smtplib.SMTP = smtplib.SMTP_SSL(mail.server, mail.port, timeout=SECONDS, context=context)
        else:
            client = smtplib.SMTP(mail.server, mail.port, timeout=SECONDS)
        with client:
            if mail.security is Security.STARTTLS:
                client.starttls(context=context)
            if mail.user:
                client.login(mail.user, mail.password)
            refused = client.send_message(letter(mail, message))
        if refused:
            names = ", ".join(f"{who}: {code} {said.decode(errors='replace')}" for who, (code, said) in refused.items())
            raise NotDelivered(f"{place} took it for some only: {names}", "[mail] to", final=True)
    except smtplib.SMTPAuthenticationError as error:
        raise NotDelivered(f"{place} refuses user and password ({error.smtp_code})", "[mail] user, password") from None
    except smtplib.SMTPNotSupportedError as error:
        raise NotDelivered(f"{place}: {error}", "[mail] security") from None
    except smtplib.SMTPRecipientsRefused as error:
        names = ", ".join(str(who) for who in error.recipients)
        raise NotDelivered(f"{place} refuses {names}", "[mail] to") from None
    except ssl.SSLError as error:
        text = f"{place}: {error.reason or error}"
        raise NotDelivered(text, "[mail] security and port; the server's certificate and name") from None
    except (smtplib.SMTPException, OSError) as error:
        raise NotDelivered(f"{place}: {_cause(error)}", "[mail] server, port and security; the network") from None


def _webhook(url: str, message: Mapping[str, Any]) -> None:
    data = json.dumps(dict(message), ensure_ascii=False).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", "User-Agent": "SafeKit"})
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=SECONDS) as answer:
            answer.read(4096)
    except urllib.error.HTTPError as error:
        raise NotDelivered(f"the webhook answers {error.code} {error.reason}", "[webhook] url") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        raise NotDelivered(f"the webhook does not answer: {_cause(cause)}", "[webhook] url; the network") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is told goes where the administrator said, and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _cause(error: object) -> str:
    if isinstance(error, socket.gaierror):
        return "no such name"
    if isinstance(error, TimeoutError):
        return f"no answer within {SECONDS:g} s"
    return str(getattr(error, "strerror", None) or error)
