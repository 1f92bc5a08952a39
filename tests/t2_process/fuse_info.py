"""What libfuse gives to open and create."""

from __future__ import annotations


class Info:
    """fuse_file_info as far as it is used."""

    def __init__(self, flags: int) -> None:
        self.flags, self.fh, self.direct_io, self.keep_cache = flags, 0, 0, 0
