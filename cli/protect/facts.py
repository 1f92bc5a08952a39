"""What has to be known of a server before a service of it is made a mirror. Pure: `cli.protect.look` finds it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Listening:
    """A TCP socket that waits for clients, and whose it is: the unit, else the process."""

    address: str
    port: int
    owner: str = ""

    @property
    def everywhere(self) -> bool:
        """Whether it takes clients of every address of the server, so of a virtual one too."""
        return self.address in ("0.0.0.0", "::")

    @property
    def local(self) -> bool:
        """Whether only programs of the same server reach it."""
        return self.address.startswith(("127.", "::ffff:127.")) or self.address == "::1"


@dataclass(frozen=True)
class Needed:
    """A file that the unit runs or reads. `digest` is "" where it is missing, "package" where a package brought it."""

    path: str
    digest: str


@dataclass(frozen=True)
class Unit:
    """A service of systemd. `parts`: the units that run, where this one only gathers them (PostgreSQL on Debian).

    `enabled` and `kind` are systemd's words (UnitFileState, Type). `sockets`: units that start it when a client comes.
    """

    name: str
    found: bool = False
    active: bool = False
    enabled: str = ""
    kind: str = ""
    user: str = ""
    package: str = ""
    version: str = ""
    main_pid: int = 0
    sockets: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    needs: tuple[Needed, ...] = ()
    data: tuple[str, ...] = ()
    """Directories that look like its data: where its main process works, and what the unit names."""


@dataclass(frozen=True)
class Directory:
    """A directory that is to be replicated. `state` is safekit.model.directories.State by name. `problem`: why it
    cannot be, in its words. Bytes are those of the files; `whole` says whether all of them were counted. `uids` and
    `gids` own something in it."""

    path: str
    state: str = "MISSING"
    problem: str = ""
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    bytes: int = 0
    entries: int = 0
    whole: bool = True
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    mounts: tuple[str, ...] = ()
    """Other file systems mounted inside."""
    free: int = 0
    """Bytes that are free on its file system (for one that is missing, where it would be made)."""
    module: str = ""
    """The module that has it already, or something in it."""


@dataclass(frozen=True)
class Account:
    """A user or a group and its number."""

    kind: str
    name: str
    number: int


@dataclass(frozen=True)
class Setting:
    """A file of the configuration of the service, outside its data."""

    path: str
    digest: str


@dataclass(frozen=True)
class Server:
    """One server. `clock` is its Unix time; `taken`: the virtual address answers from somewhere."""

    node: str
    release: str
    clock: float
    root: bool
    systemd: bool
    unit: Unit
    directories: tuple[Directory, ...] = ()
    accounts: tuple[Account, ...] = ()
    listening: tuple[Listening, ...] = ()
    networks: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    modules: tuple[str, ...] = ()
    taken: bool = False
    fuse: bool = True

    def names(self, kind: str) -> dict[int, str]:
        """Number -> name of the users, or of the groups."""
        return {each.number: each.name for each in self.accounts if each.kind == kind}

    def directory(self, path: str) -> Directory:
        """What was found there."""
        return next((each for each in self.directories if each.path == path), Directory(path))

    def listens(self) -> tuple[Listening, ...]:
        """The ports of the service, the ones that clients reach first."""
        own = {self.unit.name, *self.unit.parts}
        found = [each for each in self.listening if each.owner in own]
        return tuple(sorted(found, key=lambda each: (each.local, not each.everywhere, each.port)))
