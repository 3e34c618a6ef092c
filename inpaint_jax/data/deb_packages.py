"""Debian packages as sources of pictures: finding or downloading them, and reading their files without dpkg.

A package (deb(5)) is an `ar` archive whose member `data.tar.*` holds the files. Game data often lies in a zip archive
in there, so a member is named either `usr/share/a.png` or `usr/share/a.pk3//textures/b.png`.
"""

import contextlib
import fnmatch
import gzip
import hashlib
import io
import logging
import lzma
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

log = logging.getLogger("inpaint_jax")

INSIDE = "//"  # between the name of a zip archive and the name of a file in it
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_BLOCK = 1 << 20
_LARGEST = 1 << 30  # bytes of an unpacked file that is read; a damaged or malicious size must not fill the memory
# What the standard library raises on archives that are damaged.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError),
    RuntimeError,  # of zipfile: encrypted, or compressed in an unknown way
)


class _Section(io.RawIOBase):
    """A part of an open file, read once from its beginning to its end."""

    def __init__(self, file: IO[bytes], size: int):
        self.file, self.left = file, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self.file.read(min(len(buffer), self.left))
        buffer[: len(data)] = data
        self.left -= len(data)
        return len(data)


def file_names(package: Mapping[str, str]) -> list[str]:
    """Returns the names a package's file may have: as apt-get writes it, and as it lies in an archive of packages."""
    name, version, architecture = package["name"], package["version"], package["architecture"]
    # apt-get keeps the epoch, the number before a colon, and escapes the colon.
    versions = dict.fromkeys([version.replace(":", "%3a"), version.split(":", 1)[-1]])
    return [f"{name}_{some}_{architecture}.deb" for some in versions]


def fetch(packages: Sequence[Mapping[str, str]], folder: Path, release: str) -> list[Path]:
    """Returns the packages' files below a folder, in order; what is missing is downloaded with apt-get.

    Args:
        packages: "name", "version", "architecture" and "sha256" of each.
        folder: where the files are looked for and put.
        release: the Debian release that holds them, for messages.

    Raises:
        ValueError: a file is not the one that is named, or it is missing and cannot be downloaded.
    """
    missing = [package for package in packages if _find(package, folder) is None]
    problem = "apt-get is not on this machine"
    if missing and shutil.which("apt-get"):
        problem = "apt-get cannot download them"
        for package in missing:
            problem = _download(package, folder) or problem
        missing = [package for package in packages if _find(package, folder) is None]
    if missing:
        wanted = "".join(f"\n  {file_names(package)[-1]}  SHA-256 {package['sha256']}" for package in missing)
        raise ValueError(
            f"{len(missing)} packages of {release} are not in {str(folder)!r}, and {problem}: get these files from "
            f"Debian's archive of packages, put them there, and run this command again:{wanted}"
        )
    found = [_find(package, folder) for package in packages]
    for package, path in zip(packages, found, strict=True):
        _refuse_other(package, path)
    return found


def _find(package: Mapping[str, str], folder: Path) -> Path | None:
    return next((folder / name for name in file_names(package) if (folder / name).is_file()), None)


def _refuse_other(package: Mapping[str, str], path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package["sha256"]:
        raise ValueError(
            f"{path} is not {package['name']} {package['version']} as the recipe names it: its SHA-256 is {digest}, "
            f"and must be {package['sha256']}: remove it, and run this command again"
        )


def _download(package: Mapping[str, str], folder: Path) -> str:
    """Downloads a package into the folder; returns what went wrong, or ""."""
    wanted = f"{package['name']}={package['version']}"
    log.info("downloading %s", wanted)
    folder.mkdir(parents=True, exist_ok=True)
    # apt-get writes under the final name at once, so a download that was cut short must not lie in the folder itself.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
        command = ["apt-get", "download", wanted]
        done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            return f"'{' '.join(command)}' failed ({lines[-1].removeprefix('E: ') if lines else done.returncode})"
        for path in Path(temporary).glob("*.deb"):
            _refuse_other(package, path)
            path.replace(folder / path.name)
    return ""


def members(path: Path, patterns: Sequence[str], scratch: Path | None = None) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of the files in a package whose names match, in the order in which they are stored.

    Args:
        path: the package.
        patterns: shell-style patterns, case-sensitive, in which `*` also matches `/`; one with `//` is for files in a
            zip archive, whose name is matched by what comes before.
        scratch: folder for the copy of a zip archive that is read; None = the system's.

    Raises:
        ValueError: not such a package, damaged, compressed in a way that this Python cannot read, a name that would
            lie outside the folder it is unpacked to, or a file above a gigabyte.
    """
    archives = [pattern.split(INSIDE, 1)[0] for pattern in patterns if INSIDE in pattern]
    try:
        with path.open("rb") as file, _unpacked(file, path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for entry in tar:
                name = entry.name.removeprefix("./")
                if not entry.isfile():
                    continue
                if matches(name, patterns):
                    yield _safe(name, entry.size, path), tar.extractfile(entry).read()
                elif matches(name, archives):
                    yield from _zip_members(tar.extractfile(entry), name, patterns, path, scratch)
    except _DAMAGE as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): replace it with a complete copy") from error


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Returns whether a name matches one of some shell-style patterns, in which `*` also matches `/`."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _safe(name: str, size: int, path: Path) -> str:
    if size > _LARGEST:
        raise ValueError(f"{path} holds {name!r} with {size} bytes, more than any picture has: do not use it")
    for part in name.split(INSIDE, 1):
        folders = PurePosixPath(part).parts
        if not folders or folders[0] == "/" or ".." in folders or ":" in folders[0] or "\\" in part or "\0" in part:
            raise ValueError(f"{path} holds a file named {name!r}, which would lie outside its folder: do not use it")
    return name


def _zip_members(
    archive: IO[bytes], name: str, patterns: Sequence[str], path: Path, scratch: Path | None
) -> Iterator[tuple[str, bytes]]:
    # A zip archive is read from its end, and a stream cannot go there.
    with tempfile.TemporaryFile(dir=scratch) as copy:
        shutil.copyfileobj(archive, copy, _BLOCK)
        with zipfile.ZipFile(copy) as inner:
            for entry in inner.infolist():
                full = f"{name}{INSIDE}{entry.filename}"
                if not entry.is_dir() and matches(full, patterns):
                    yield _safe(full, entry.file_size, path), inner.read(entry)


@contextlib.contextmanager
def _unpacked(file: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """Gives the tar stream in a package; raises ValueError where there is none, or no way to read it."""
    name, size = _data_member(file, path)
    section = io.BufferedReader(_Section(file, size), _BLOCK)
    if name.endswith(".zst"):
        try:
            from compression import zstd  # from Python 3.14 on
        except ImportError:
            raise ValueError(
                f"{path} is compressed with zstandard, which this Python cannot read: use Python 3.14 or later"
            ) from None
        opened = zstd.open(section)
    elif opener := {".xz": lzma.open, ".gz": gzip.open, ".tar": lambda part: part}.get(Path(name).suffix):
        opened = opener(section)
    else:
        raise ValueError(f"{path} holds {name}, which is compressed in an unknown way: use another build of it")
    with opened:
        yield opened


def _data_member(file: IO[bytes], path: Path) -> tuple[str, int]:
    """Returns name and size of the member `data.tar.*`; the file is left at its first byte."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise ValueError(f"{path} is no Debian package: replace it with a complete copy")
    while header := file.read(_AR_HEADER):
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), header[48:58].strip()
        if len(header) < _AR_HEADER or header[58:] != b"`\n" or not size.isdigit():
            break
        if name.startswith("data.tar"):
            return name, int(size)
        file.seek(int(size) + int(size) % 2, io.SEEK_CUR)  # members begin at even places
    raise ValueError(f"{path} holds no data.tar: replace it with a complete copy")
