"""What a box is given: its surroundings and its configuration; and how it refuses what it is asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfsbox.pair.engine import Root, Settings
from safekit.model.types import Rfs
from safekit.rfs.exclusions import Exclusions

Fields = dict[str, Any]


def text_of(error: OSError) -> str:
    """What people are told of an error of the system, or of one of ours."""
    return error.strerror or str(error)


class BoxError(Exception):
    """An operation that was refused: `code` for programs, text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True)
class Place:
    """What a box needs to know of its surroundings. `listen` None: no address on the replication network."""

    module: str
    node: str
    directory: Path
    keys: Callable[[], Sequence[bytes]]
    listen: tuple[str, int] | None


def roots_of(rfs: Rfs) -> tuple[Root, ...]:
    """The replicated directories of a configuration. Raises BoxError('root') for an expression that is wrong."""
    try:
        return tuple(
            Root(
                index,
                os.fsencode(item.dir),
                os.fsencode(rfs.backing(item)),
                Exclusions(item.notreplicated_paths, item.notreplicated_regex),
                tuple(os.fsencode(path.strip("/")) for path in item.tocheck),
            )
            for index, item in enumerate(rfs.replicated)
        )
    except ValueError as error:
        raise BoxError("root", str(error)) from None


def settings_of(rfs: Rfs) -> Settings:
    """The attributes that concern nfsbox."""
    return Settings(
        sendtimeout=float(rfs.sendtimeout),
        locktimeout=float(rfs.locktimeout),
        durable=rfs.async_mode == "none",
        acl=rfs.acl,
        zone_size=rfs.ruzone_blocksize,
        packet=rfs.reipacketsize,
        bandwidth=rfs.reiallowedbw * 1024.0 if rfs.reiallowedbw else None,
        writeback=rfs.cache == "writeback",
    )
