"""Those who keep a daemon running: systemd for the machine, systemd for one user, launchd for one user."""

from __future__ import annotations

import os
import sys

from claudectl.supervisors.kind import Programs, Supervisor, Unit, Wish
from claudectl.supervisors.launchd import Launchd
from claudectl.supervisors.systemd import SystemdOfTheMachine, SystemdOfTheUser

__all__ = ["Programs", "Supervisor", "Unit", "Wish", "choose"]


def choose(scope: str | None) -> Supervisor:
    """``scope``: system or user; None: what this user on this machine would expect."""
    if sys.platform == "darwin":
        return Launchd.of(os.environ)
    if scope == "system" or (scope is None and os.geteuid() == 0):
        return SystemdOfTheMachine()
    return SystemdOfTheUser.of(os.environ)
