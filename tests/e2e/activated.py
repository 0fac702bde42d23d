"""``python activated.py NAME=FD… -- PROGRAM…``: runs a program as systemd does that has its sockets.

The descriptors become 3, 4, …, ``LISTEN_FDNAMES`` their names, and ``LISTEN_PID`` the process that the program is.
"""

from __future__ import annotations

import fcntl
import os
import sys

_FIRST = 3
_OUT_OF_THE_WAY = 64


def main() -> None:
    split = sys.argv.index("--")
    given, program = [word.split("=") for word in sys.argv[1:split]], sys.argv[split + 1 :]
    aside = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY) for _, fd in given]
    for number, fd in enumerate(aside):
        os.dup2(fd, _FIRST + number, inheritable=True)
    for _, old in given:
        if int(old) >= _FIRST + len(given):
            os.close(int(old))
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(given))
    os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in given)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
