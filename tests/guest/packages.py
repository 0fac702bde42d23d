"""What a guest is made of: Debian's packages, unpacked into a directory. Nothing is installed, no root is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KERNEL: Final = "linux-image-amd64"  # names the newest one; the kernel for clouds has no 9p
QEMU: Final = "qemu-system-x86"
BUSYBOX: Final = "busybox-static"
_FETCH_S: Final = 600.0  # some 100 MB; a mirror that is slower is none
# The kernel's package is 400 MB unpacked. These have what a root from 9p with an overlay needs.
_OF_KERNEL: Final = re.compile(
    r"boot/vmlinuz-.*|.*/modules\.builtin"
    r"|.*/kernel/(drivers/virtio|net/9p|fs/9p|fs/netfs|fs/fscache|fs/overlayfs)/.*\.ko(\.xz)?"
)
_APT: Final = ("-qq", "-y", "-o", "Debug::NoLocking=true", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1")


class CannotFetch(Exception):
    """What could not be had, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Where they lie. ``qemu``: the command, to be given more arguments; ``modules``: the directory of the kernel's."""

    kernel: Path
    modules: Path
    busybox: Path
    qemu: tuple[str, ...]


def parts(directory: Path) -> Parts:
    """Fetched at the first time, kept in ``directory`` from then on. Raises CannotFetch."""
    if not directory.exists():
        unfinished = directory.with_name(f"{directory.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        _fetch(unfinished)
        unfinished.rename(directory)
    root = directory / "root"
    return Parts(
        kernel=_one(root, "boot/vmlinuz-*"),
        modules=_one(root, "*/modules/*", "*/*/modules/*"),
        busybox=_one(root, "bin/busybox", "usr/bin/busybox"),
        qemu=_qemu(root),
    )


def _one(root: Path, *patterns: str) -> Path:
    found = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    if not found:
        raise CannotFetch(f"{root} has no {' or '.join(patterns)}: remove {root.parent} to fetch it again")
    return found[0]


def _qemu(root: Path) -> tuple[str, ...]:
    """The machine's own, where there is one; else the one unpacked, with the libraries that were missing here."""
    if (own := shutil.which("qemu-system-x86_64")) is not None:
        return (own,)
    libraries = [str(path) for path in (root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu")]
    data = [word for name in ("qemu", "seabios") for word in ("-L", str(root / "usr/share" / name))]
    program = str(_one(root, "usr/bin/qemu-system-x86_64"))
    return ("env", f"LD_LIBRARY_PATH={':'.join(libraries)}", program, *data)


def _fetch(directory: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise CannotFetch("the guest is made of Debian's packages, and apt-get is not here")
    archives, root = directory / "archives", directory / "root"
    (archives / "partial").mkdir(parents=True)
    root.mkdir()
    print(f"fetching a kernel and qemu from Debian's packages into {directory.parent} (100 MB)", flush=True)
    kernel = _newest_kernel()
    _apt(archives, "download", kernel, BUSYBOX)
    if shutil.which("qemu-system-x86_64") is None:
        where = ("-o", f"Dir::Cache::archives={archives}")
        _apt(archives, "install", "--download-only", "--no-install-recommends", *where, QEMU)
    for archive in sorted(archives.glob("*.deb")):
        _unpack(archive, root, _OF_KERNEL if archive.name.startswith(kernel) else None)
    shutil.rmtree(archives)


def _newest_kernel() -> str:
    """The package that the other one, which has no files, depends upon."""
    told = _told("apt-cache", "depends", KERNEL)
    if told is None and os.geteuid() == 0:  # a container knows of no package before it has asked
        _told("apt-get", "-qq", "update")
        told = _told("apt-cache", "depends", KERNEL)
    names = re.findall(r"Depends: (linux-image-[0-9]\S*)", told or "")
    if not names:
        raise CannotFetch(f"apt knows of no {KERNEL}: this needs Debian on amd64, and sudo apt-get update")
    return str(names[0])


def _told(*argv: str) -> str | None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_FETCH_S)
    return done.stdout if done.returncode == 0 and done.stdout.strip() else None


def _apt(directory: Path, *args: str) -> None:
    argv = ["apt-get", *_APT, *args]
    done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, check=False, timeout=_FETCH_S)
    if done.returncode != 0:
        raise CannotFetch(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")


def _unpack(archive: Path, root: Path, wanted: re.Pattern[str] | None) -> None:
    """All of it, or the files whose names match."""
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as files,
    ):
        files.extractall(root, members=_matching(files, wanted), filter="tar")
    if unpacking.returncode != 0:
        raise CannotFetch(f"{archive.name} cannot be unpacked")


def _matching(files: tarfile.TarFile, wanted: re.Pattern[str] | None) -> Iterator[tarfile.TarInfo]:
    for file in files:
        if wanted is None or (file.isfile() and wanted.fullmatch(file.name.removeprefix("./"))):
            yield file


def modules_for(names: Sequence[str], modules: Path) -> list[Path]:
    """The files of these modules and of what they depend upon, in the order to be loaded. Raises CannotFetch."""
    found = {path.name.partition(".")[0].replace("-", "_"): path for path in modules.rglob("*.ko*")}
    builtin = {Path(line).stem.replace("-", "_") for line in (modules / "modules.builtin").read_text().split()}
    order: dict[Path, None] = {}

    def add(name: str) -> None:
        name = name.replace("-", "_")
        if name in builtin:
            return
        if name not in found:
            raise CannotFetch(f"the kernel in {modules} has no module {name}")
        told = re.search(rb"(?:^|\0)depends=([^\0]*)\0", read_module(found[name]))
        for other in told[1].decode().split(",") if told else ():
            if other:
                add(other)
        order[found[name]] = None

    for name in names:
        add(name)
    return list(order)


def read_module(path: Path) -> bytes:
    """As the kernel loads it."""
    if path.suffix == ".xz":
        import lzma

        return lzma.decompress(path.read_bytes())
    return path.read_bytes()
