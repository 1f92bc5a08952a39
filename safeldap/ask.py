"""One directory, asked: who has a name, whether a password is right, and which groups he is in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import bonsai
from bonsai.errors import LDAPError

from safekit.model.ldap import LdapSettings, same_dn, usable_name

SECONDS = 5.0
MAX_DEPTH = 10
MAX_GROUPS = 300
ANY = "(objectClass=*)"
IN_CHAIN = "1.2.840.113556.1.4.1941"
"""Active Directory's rule for groups in groups; other directories know nobody by it."""
_SCOPES = {
    "base": bonsai.LDAPSearchScope.BASE,
    "one": bonsai.LDAPSearchScope.ONELEVEL,
    "sub": bonsai.LDAPSearchScope.SUBTREE,
}


class Unanswered(Exception):
    """Nobody can tell: the directory does not answer, or its answer is of no use. The text names the next step."""


@dataclass(frozen=True)
class Found:
    """A user. `role` is None for one who is in none of the groups."""

    role: str | None


class Asker:
    """Asks the servers of the settings in their order."""

    def __init__(self, settings: LdapSettings) -> None:
        self.settings = settings
        self._base_is_there = False

    async def check(self, name: str, password: str) -> Found | None:
        """The user when the password is right; None for a wrong one, and for somebody unknown. Raises Unanswered."""
        # With an empty password many directories say yes to everybody: an anonymous bind is no proof.
        if not password or "\0" in password or not usable_name(name):
            return None
        server, connection = await self._connect()
        try:
            entry = await self._entry(connection, name)
            if entry is None:
                return None
            if not await self._is_right(server, str(entry.dn), password):
                return None
            return Found(await self._role(connection, entry, name))
        except LDAPError as error:
            raise _unanswered(server, error) from None
        finally:
            connection.close()

    async def person(self, name: str) -> Found | None:
        """The user as he is now; None for somebody unknown. Raises Unanswered."""
        if not usable_name(name):
            return None
        server, connection = await self._connect()
        try:
            entry = await self._entry(connection, name)
            return None if entry is None else Found(await self._role(connection, entry, name))
        except LDAPError as error:
            raise _unanswered(server, error) from None
        finally:
            connection.close()

    def _client(self, server: str) -> Any:
        client = bonsai.LDAPClient(server, self.settings.starttls)
        # What another server would say, one that nobody configured, is not asked.
        client.set_server_chase_referrals(False)
        client.set_cert_policy("demand")
        if self.settings.authority:
            client.set_ca_cert(self.settings.authority)
        return client

    async def _connect(self) -> tuple[str, Any]:
        """A connection with the rights of binddn to the first server that answers."""
        last: Unanswered | None = None
        for server in self.settings.servers:
            client = self._client(server)
            if self.settings.binddn:
                client.set_credentials("SIMPLE", user=self.settings.binddn, password=self.settings.bindpwd)
            try:
                return server, await client.connect(is_async=True, timeout=SECONDS)
            except bonsai.AuthenticationError:
                raise Unanswered(f"{server} refuses binddn with bindpwd: correct them in httpd.conf") from None
            except LDAPError as error:
                last = _unanswered(server, error)
        raise last or Unanswered("searchurl names no server")

    async def _is_right(self, server: str, dn: str, password: str) -> bool:
        client = self._client(server)
        client.set_credentials("SIMPLE", user=dn, password=password)
        try:
            (await client.connect(is_async=True, timeout=SECONDS)).close()
        except bonsai.AuthenticationError:
            return False
        except bonsai.errors.UnwillingToPerform:  # a locked account
            return False
        return True

    async def _entry(self, connection: Any, name: str) -> Any:
        """The one entry with that name, None without one."""
        chosen = f"(&{self.settings.filter}({self.settings.attribute}={bonsai.escape_filter_exp(name)}))"
        scope = _SCOPES[self.settings.scope]
        found = await connection.search(
            self.settings.base, scope, chosen, [self.settings.attribute, self.settings.membership], timeout=SECONDS,
            sizelimit=0,
        )  # fmt: skip
        if len(found) > 1:
            raise Unanswered(
                f"{len(found)} entries have {self.settings.attribute}={name}: narrow searchurl in httpd.conf"
            )
        if not found and not self._base_is_there and not await self._read(connection, self.settings.base, ANY, "cn"):
            # Else a base with a mistake would be a wrong password for everybody.
            raise Unanswered(
                f"the base of searchurl, {self.settings.base}, is not there, or binddn may not read it: see httpd.conf"
            )
        self._base_is_there = True
        return found[0] if found else None

    async def _role(self, connection: Any, entry: Any, name: str) -> str | None:
        """The highest role of the groups that he is in, himself or by a group in a group; Admin without groups."""
        if not self.settings.groups:
            return "Admin"
        inside = {same_dn(each) for each in await self._groups_of(connection, entry)}
        for role, group in self.settings.groups:
            if same_dn(group) in inside or await self._is_member(connection, str(entry.dn), group, name):
                return role
        return None

    async def _groups_of(self, connection: Any, entry: Any) -> set[str]:
        """By the attribute of the user, and of his groups; at most MAX_DEPTH deep, a circle ends."""
        known: dict[str, str] = {}
        waiting = [str(each) for each in entry.get(self.settings.membership, [])]
        for _ in range(MAX_DEPTH):
            fresh = {same_dn(each): each for each in waiting}
            fresh = {key: each for key, each in fresh.items() if key not in known}
            known.update(fresh)
            if not fresh or len(known) > MAX_GROUPS:
                break
            waiting = []
            for group in fresh.values():
                for above in await self._read(connection, group, ANY, self.settings.membership):
                    waiting += [str(each) for each in above.get(self.settings.membership, [])]
        return set(known.values())

    async def _is_member(self, connection: Any, dn: str, group: str, name: str) -> bool:
        """By the group's own list, and by Active Directory's rule for groups in groups."""
        user, account = bonsai.escape_filter_exp(dn), bonsai.escape_filter_exp(name)
        lists = f"(|(member={user})(uniqueMember={user})(memberUid={account}))"
        if await self._read(connection, group, lists, "cn"):
            return True
        chain = f"({self.settings.membership}:{IN_CHAIN}:={bonsai.escape_filter_exp(group)})"
        return bool(await self._read(connection, dn, chain, "cn"))

    async def _read(self, connection: Any, dn: str, chosen: str, attribute: str) -> list[Any]:
        """The entry `dn` if it is there, may be read, and fits the filter."""
        try:
            found: list[Any] = await connection.search(
                dn, bonsai.LDAPSearchScope.BASE, chosen, [attribute], timeout=SECONDS
            )
        except (bonsai.errors.NoSuchObjectError, bonsai.errors.InvalidDN, bonsai.errors.InsufficientAccess):
            return []
        return found


def _unanswered(server: str, error: LDAPError) -> Unanswered:
    host = server.partition("://")[2]
    if "certificate" in str(error).lower() or "tls" in str(error).lower():
        return Unanswered(f"{server}: {error}: is its authority in ldapcacert of httpd.conf, and its name right?")
    return Unanswered(f"the directory {host} does not answer ({error}): is its port open from this server?")
