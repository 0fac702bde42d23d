"""Those who keep a daemon running: systemd for the machine, systemd for one user, launchd for one user."""

from __future__ import annotations

import os
import sys

from claudectl.errors import ControlError
from claudectl.supervisors.kind import Programs, Supervisor, Unit, Wish, tail
from claudectl.supervisors.launchd import Launchd
from claudectl.supervisors.systemd import SystemdOfTheMachine, SystemdOfTheUser

__all__ = ["Programs", "Supervisor", "Unit", "Wish", "choose", "tail"]


def choose(scope: str | None) -> Supervisor:
    """``scope``: system or user; None: root's is the machine's, and else whichever is installed, one's own first.

    Raises ControlError for a scope that this machine does not have.
    """
    if sys.platform == "darwin":
        if scope == "system":
            raise ControlError("there is no system service for launchd: the agent of a user runs the daemon")
        return Launchd.of(os.environ)
    machine, user = SystemdOfTheMachine(), SystemdOfTheUser.of(os.environ)
    if scope is None:
        scope = "system" if os.geteuid() == 0 or (machine.written and not user.written) else "user"
    return machine if scope == "system" else user
