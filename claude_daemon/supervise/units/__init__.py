"""The units that supervise a daemon, for systemd and launchd: templates, and how they are filled. Pure.

claudectl imports this; nothing here may load more than the standard library.
"""

from claude_daemon.supervise.units.launchd import LABEL, MARK, launch_agent
from claude_daemon.supervise.units.systemd import (
    MARKER,
    Site,
    agents_drop_in,
    credentials_drop_in,
    roots_drop_in,
    system_units,
    sysusers,
    template_units,
    user_units,
)

__all__ = [
    "LABEL",
    "MARK",
    "MARKER",
    "Site",
    "agents_drop_in",
    "credentials_drop_in",
    "launch_agent",
    "roots_drop_in",
    "system_units",
    "sysusers",
    "template_units",
    "user_units",
]
