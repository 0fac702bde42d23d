"""The settings: what can be set (``models``, of ``fields``), and where the daemon's files are (``paths``).

:func:`load` is the one reader of the environment and of ``config.toml``. Relative paths stand below the home,
where ``run/`` and ``log/`` are systemd's directories if it gave us some (``layout``). ``layers`` beside this
package keeps the origin of every value.
"""

from claude_daemon.config.credential import Credential
from claude_daemon.config.fields import Level
from claude_daemon.config.loading import Loaded, Profile, load
from claude_daemon.config.models import Log, Settings
from claude_daemon.config.paths import Paths
from claude_daemon.layers import ConfigError, Fault, Origin
from claude_daemon.secret import Secret

__all__ = [
    "ConfigError",
    "Credential",
    "Fault",
    "Level",
    "Loaded",
    "Log",
    "Origin",
    "Paths",
    "Profile",
    "Secret",
    "Settings",
    "load",
]
