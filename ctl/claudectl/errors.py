"""What can go wrong, each with its exit code.

::

    ControlError         failed: the daemon refused, or the work did                        1
    ├── NotFound         there is no such thing                                             1
    ├── BadInput         what was given on the command line or on stdin cannot be sent      2
    ├── NotReady         the daemon is up but takes no work: starting, draining, unhealthy  3
    ├── NotRunning       no socket answers, or the one that did went away                   4
    ├── Denied           the socket or the daemon turns this user away                      5
    ├── Mismatch         what answers does not speak our control protocol                   6
    ├── Conflict         the daemon is in no state for this                                 7
    ├── TimedOut         --timeout, or the bound of an ordinary request, has passed       124
    └── Interrupted      Ctrl-C                                                           130
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of claudectl; scripts depend on them (INTERFACE.md)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_READY = 3
    NOT_RUNNING = 4
    DENIED = 5
    MISMATCH = 6
    CONFLICT = 7
    TIMED_OUT = 124
    INTERRUPTED = 130


class ControlError(Exception):
    """Ends the command: its message goes to stderr, its exit code to the caller."""

    exit_code = Exit.FAILED


class NotFound(ControlError):
    pass


class BadInput(ControlError):
    exit_code = Exit.USAGE


class NotReady(ControlError):
    exit_code = Exit.NOT_READY


class NotRunning(ControlError):
    exit_code = Exit.NOT_RUNNING


class Denied(ControlError):
    exit_code = Exit.DENIED


class Mismatch(ControlError):
    exit_code = Exit.MISMATCH


class Conflict(ControlError):
    exit_code = Exit.CONFLICT


class TimedOut(ControlError):
    exit_code = Exit.TIMED_OUT


class Interrupted(ControlError):
    exit_code = Exit.INTERRUPTED
