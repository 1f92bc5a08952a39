"""The null request, as a program of its own: `ask.py DIRECTORY`, exit status 0 when the mount answered; else 1, and
what it answered on standard output.

statfs is never answered from a cache of the kernel; the access afterwards makes the file system look at its root.
"""

import os
import sys

if __name__ == "__main__":
    try:
        os.statvfs(sys.argv[1])
        os.close(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY))
    except OSError as error:
        print(error.strerror)
        sys.exit(1)
