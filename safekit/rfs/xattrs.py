"""Extended attributes that are replicated (guide 13.6.3, acl)."""

from __future__ import annotations

import errno
import os
from typing import Final

ACL_PREFIX: Final = "system.posix_acl_"


def read_xattrs(real: bytes, *, acl: bool) -> dict[bytes, bytes]:
    """Extended attributes that are replicated."""
    try:
        names = os.listxattr(real, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    found = {}
    for name in names:
        if acl or not name.startswith(ACL_PREFIX):
            try:
                found[os.fsencode(name)] = os.getxattr(real, name, follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.ENODATA:  # it was removed meanwhile
                    raise
    return found
