"""What a report of trouble should come with: gathered as far as it can be, redacted, in one archive."""

from __future__ import annotations

import gzip
import io
import json
import os
import platform
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

from claude_daemon import __version__
from claudectl.clean import clean_line
from claudectl.diagnosis import Approach, approached, ended, examine
from claudectl.errors import Conflict, ControlError, Denied
from claudectl.logs import place
from claudectl.options import Options
from claudectl.redaction import Redactor, known_secrets
from claudectl.render import Document, known, mapping
from claudectl.supervisors import choose

# The last minutes of a busy daemon, hours of a quiet one; an attachment of this size is taken everywhere.
LOG_BYTES = 1024 * 1024
JOURNAL_LINES = 5000
PROGRAM_SECONDS = 60.0
_ASKED = ("health", "workers", "config", "stacks")
_HEADER = """What claudectl debug-bundle has gathered of a claude-daemon.

Secrets were taken out: what looks like a key or stands under the name of one, and all that were known here.
Prompts and answers are in none of it. Paths, user names and addresses are: look through it before you pass it on.
"""


@contextmanager
def made(path: Path) -> Iterator[BinaryIO]:
    """A new file that only this user may read; gone again where the block fails. Raises Conflict for one that is there,
    ControlError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise Conflict(f"{path} is there already") from None
    except PermissionError as error:
        raise Denied(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ControlError(f"{path}: {error.strerror}") from None
        raise


class Bundle:
    """The parts by their names in the archive, and why others are missing."""

    def __init__(self, options: Options, *, config: str | None = None, profile: str | None = None) -> None:
        self.parts: dict[str, bytes] = {}
        self.missing: dict[str, str] = {}
        self._options = options
        self._config = config
        self._profile = profile
        self._status: Document = {}
        self._environ: Mapping[str, str] = {}
        self._redactor = Redactor(())

    def gather(self, told: Callable[[str], None]) -> None:
        """``told`` hears what is being done. What cannot be had is missing, and nothing else."""
        told("the daemon")
        approach = approached(self._options)
        self._status, self._environ = approach.status or {}, approach.environ
        answers = dict(self._ask(approach))
        environ = {**os.environ, **self._environ}
        self._redactor = Redactor(known_secrets(environ, self._home, self._config_file))
        for name, document in answers.items():
            self._put(f"{name}.json", _json(self._redactor.document(document)))
        told("what is around it")
        findings = list(examine(approach, config=self._config, profile=self._profile))
        self._put("doctor.json", _json(self._redactor.document({"findings": findings})))
        told("versions, configuration and log")
        self._put("versions.json", _json(_versions(self._status)))
        self._program("config.txt", self._check_config())
        self._log(approach)

    def archive(self) -> bytes:
        """A tar.gz of it, with a page that says what it is."""
        written = io.BytesIO()
        now = time.time()
        with (
            gzip.GzipFile(filename="", fileobj=written, mode="wb", mtime=now) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            for name, content in {"README.txt": self._readme(), **self.parts}.items():
                member = tarfile.TarInfo(f"claude-daemon-debug/{name}")
                member.size, member.mode, member.mtime = len(content), 0o600, int(now)
                archive.addfile(member, io.BytesIO(content))
        return written.getvalue()

    def _readme(self) -> bytes:
        missing = "".join(f"  {name}: {reason}\n" for name, reason in self.missing.items())
        told = f"\nWhat is missing:\n{self._redactor.text(missing)}" if missing else ""
        parts = "".join(f"  {name}\n" for name in self.parts)
        return f"{_HEADER}\nParts:\n{parts}{told}".encode()

    def _put(self, name: str, content: str) -> None:
        self.parts[name] = content.encode(errors="replace")

    # the daemon's

    def _ask(self, approach: Approach) -> Iterator[tuple[str, Document]]:
        if approach.status is None:
            reason = known(approach.found[0].get("reason"))
            self.missing |= {f"{name}.json": reason for name in ("status", *_ASKED)}
            return
        yield "status", approach.status
        client = self._options.client()
        for path in _ASKED:
            try:
                yield path, client.get(path, also=(503,))[1]
            except ControlError as error:
                self.missing[f"{path}.json"] = clean_line(str(error).splitlines()[0])

    @property
    def _home(self) -> Path:
        environ = self._environ
        named = known(self._status.get("home")) or environ.get("STATE_DIRECTORY") or environ.get("CLAUDE_DAEMON_HOME")
        return Path(named or f"{environ.get('HOME') or '~'}/.claude-daemon").expanduser()

    @property
    def _config_file(self) -> Path:
        named = self._config or known(mapping(self._status.get("config")).get("file"))
        directory = Path(self._environ.get("CONFIGURATION_DIRECTORY") or self._home)
        return Path(named or self._environ.get("CLAUDE_DAEMON_CONFIG") or directory / "config.toml")

    # programs and files

    def _check_config(self) -> list[str]:
        command = [sys.executable, "-m", "claude_daemon", "check-config"]
        if self._config_file.exists():
            command.append(f"--config={self._config_file}")
        profile = self._profile or known(self._status.get("profile"))
        return [*command, *([f"--profile={profile}"] if profile else [])]

    def _program(self, name: str, command: Sequence[str]) -> None:
        environ = dict(self._environ)
        if "STATE_DIRECTORY" not in environ:
            environ["CLAUDE_DAEMON_HOME"] = str(self._home)
        try:
            done = ended(command, environ, PROGRAM_SECONDS)
        except ControlError as error:
            self.missing[name] = str(error)
            return
        said = (done.stdout + done.stderr).decode(errors="replace")
        if said.strip():
            self._put(name, self._redactor.text(said))
        else:
            self.missing[name] = f"{command[0]} said nothing (status {done.returncode})"

    def _log(self, approach: Approach) -> None:
        try:
            self._put("daemon.log", self._redactor.text(_tail(self._log_file(approach))))
        except ControlError as error:
            self.missing["daemon.log"] = str(error)
        except OSError as error:
            self.missing["daemon.log"] = f"{error.filename}: {error.strerror}"
        if approach.unit.installed:
            self._program("journal.txt", choose(None).logs(follow=False, lines=JOURNAL_LINES))

    def _log_file(self, approach: Approach) -> Path:
        """Raises ControlError."""
        if approach.status is not None:
            return place.file_of(approach.status)
        path, tried = place.guessed(self._options.socket, self._environ)
        if path is None:
            raise ControlError(f"no log is found, looked at {', '.join(map(str, tried))}")
        return path


def _tail(path: Path) -> str:
    """The last lines that fit. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LOG_BYTES))
        text = file.read(LOG_BYTES).decode(errors="replace")
    return text if size <= LOG_BYTES else text.partition("\n")[2]


def _versions(status: Document) -> Document:
    packages = sorted(text.split(";")[0].split("[")[0] for text in metadata.requires("claude-daemon") or ())
    names = sorted({name.split(">")[0].split("<")[0].split("=")[0].split("!")[0].strip() for name in packages})
    return {
        "claudectl": __version__,
        "claude-daemon": status.get("version"),
        "claude-code": mapping(status.get("cli")).get("version"),
        "python": sys.version,
        "platform": platform.platform(),
        "packages": {name: found for name in names if (found := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _json(document: object) -> str:
    return json.dumps(document, indent=2) + "\n"
