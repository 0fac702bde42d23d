"""Loads the configuration: the one reader of the environment and of ``config.toml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from claude_daemon.config.credential import Credential, credentials_in
from claude_daemon.config.digests import file_digest
from claude_daemon.config.layout import Layout
from claude_daemon.config.models import Settings
from claude_daemon.config.paths import Paths
from claude_daemon.layers.fault import ConfigError, Fault, nearest
from claude_daemon.layers.sources import from_environ, from_flags, read_toml
from claude_daemon.layers.tree import DEFAULT, Layer, Node, Origin, Table, dotted, leaves, merge, origins, table
from claude_daemon.layers.validation import validate
from claude_daemon.secret import Secret

Profile = Literal["dev", "staging", "prod"]

PROFILES: Final[Mapping[str, Mapping[str, Mapping[str, str | int]]]] = MappingProxyType(
    {
        "dev": {"engine": {"upstream": "auto"}, "log": {"format": "console"}},
        "staging": {"engine": {"upstream": "anthropic"}, "log": {"format": "json"}},
        "prod": {
            "engine": {"upstream": "anthropic"},
            "log": {"format": "json"},
            # one client or key alone must not fill what all share
            "http": {"max_connections_per_peer": 512},
            "queue": {"max_queued_per_key": 1000},
        },
    }
)
"""What a situation wants otherwise than the defaults. Beside these, everywhere but in dev: no tool but Read, Grep and
Glob without a sandbox."""

FOREIGN: Final = MappingProxyType(
    {
        "ANTHROPIC_BASE_URL": ("engine", "base_url"),
        "CLAUDE_DAEMON_SOCKET": ("control", "socket"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": ("telemetry", "otlp_endpoint"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The effective configuration.

    ``origins`` has an entry for every dotted key; ``secrets`` holds every secret found, by dotted key or
    variable, unused credentials too (for masking). ``supervisor`` is CLAUDE_DAEMON_SUPERVISOR. ``file_digest`` is the
    configuration file's, None where there is none.
    """

    settings: Settings
    origins: Mapping[str, Origin]
    paths: Paths
    profile: Profile
    secrets: Mapping[str, Secret]
    credential: Credential | None
    supervisor: str | None
    file_digest: str | None = None


def load(argv_flags: Mapping[str, Any], environ: Mapping[str, str], *, home: Path | None = None) -> Loaded:
    """The configuration that flags, environment and ``config.toml`` give together.

    ``argv_flags`` holds ``config``, ``profile``, ``socket``, ``offline`` and dotted keys (``"http.port"``);
    None and a False ``offline`` mean not given. ``home`` is a flag too: systemd's directories yield to it.
    Reads the files that are named and nothing else. Raises ConfigError with everything that is wrong.
    """
    flags = {name: value for name, value in argv_flags.items() if value is not None}
    faults: list[Fault] = []
    layout = Layout.of(environ, home)
    profile, profile_origin = _profile(flags.pop("profile", None), environ, faults)
    config_file, named = _config_file(flags.pop("config", None), environ, layout)
    before = file_digest(config_file)
    root = table(Settings(), DEFAULT)
    for layer in (
        table(PROFILES[profile], profile_origin),
        _foreign(environ),
        read_toml(config_file, Settings, faults, required=named),
        from_environ(environ, Settings, faults),
        from_flags(_dotted(flags), Settings, faults),
    ):
        root = merge(root, layer, faults)
    settings = validate(Settings, root, faults, context=layout)
    credentials = credentials_in(environ, faults)
    if faults or settings is None:
        raise ConfigError(faults)
    values = leaves(settings)
    secrets = {dotted(path): value for path, value in values if isinstance(value, Secret)}
    return Loaded(
        settings=settings,
        origins=origins(settings, root),
        paths=Paths.of(settings, layout, config_file),
        profile=profile,
        secrets=secrets | {name: credential.secret for name, credential in credentials.items()},
        credential=next(iter(credentials.values()), None),
        supervisor=environ.get("CLAUDE_DAEMON_SUPERVISOR") or None,
        file_digest=before,
    )


def check_reload(before: Loaded, new: Loaded) -> None:
    """Raises ConfigError where a file was read before and none is there now: all that it set would be lost unsaid."""
    if before.file_digest is not None and new.file_digest is None:
        message = "is gone since it was loaded; where the defaults are meant, leave an empty file"
        raise ConfigError([Fault(where=str(before.paths.config_file), message=message)])


def _profile(flag: str | None, environ: Mapping[str, str], faults: list[Fault]) -> tuple[Profile, Origin]:
    """The profile, and the origin of the values that it brings."""
    asked = flag or environ.get("CLAUDE_DAEMON_PROFILE") or "dev"
    for profile in get_args(Profile):
        if profile == asked:
            return profile, Origin(layer=Layer.PROFILE, where=profile)
    where = "--profile" if flag else "CLAUDE_DAEMON_PROFILE"
    message = f"unknown profile {asked!r}{nearest(asked, get_args(Profile)) or ': dev, staging or prod'}"
    faults.append(Fault(where=where, message=message))
    return "dev", Origin(layer=Layer.PROFILE, where="dev")


def _config_file(flag: object, environ: Mapping[str, str], layout: Layout) -> tuple[Path, bool]:
    """The file, and whether it was named and must exist. A named one may be relative to where we stand."""
    asked = str(flag or environ.get("CLAUDE_DAEMON_CONFIG") or "")
    if not asked:
        return layout.configuration / "config.toml", False
    path = Path(asked)
    return Path.cwd() / (layout.resolve(path) if path.parts[0] == "~" else path), True


def _foreign(environ: Mapping[str, str]) -> Table:
    """Variables that set a key without being named for it; our file and our own variables come over them."""
    found: dict[str, Node] = {}
    for name, (section, key) in FOREIGN.items():
        if value := environ.get(name):
            found[section] = table({key: value}, Origin(layer=Layer.ENVIRONMENT, where=name))
    return Table(entries=found, origin=Origin(layer=Layer.ENVIRONMENT))


def _dotted(flags: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(flag, dotted key, value) of each."""
    for name, value in flags.items():
        if name == "socket":
            yield "--socket", "control.socket", value
        elif name != "offline":
            yield f"--{name}", name, value
        elif value:
            yield "--offline", "engine.upstream", "offline"
