"""An object store in a folder, `fake://`: what stores cannot do it refuses, and it fails or dies at a given operation.

    FAKE_STORE=FOLDER [FAKE_FAULT=die:put:17] python tests/fake_store.py main OPTIONS OF launch/main.py

There are objects alone and no folders; an object is there whole or not at all, and never grows. `die:put:17` kills the
process before its 17th put has done anything, `die_after:put:17` after it has done all; `fail:any:3:9` lets operations
3 to 9 fail as a broken connection does; at `term:put:17` the process is told to end. Nobody waits between tries.
"""

import os
import random
import runpy
import signal
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec

from inpaint_jax import object_store

ROOT = Path(__file__).parents[1]


def fault_of(text: str) -> Callable[[int, str, bool], None]:
    """Returns what is done at each operation: (its number from 1, its name, whether it has been done) -> None."""
    kind, wanted, *numbers = text.split(":")
    first, last = int(numbers[0]), int(numbers[-1])
    seen: list[str] = []
    counting = threading.Lock()

    def fault(number: int, name: str, done: bool) -> None:
        if wanted not in ("any", name):
            return
        with counting:
            seen.extend([] if done else [name])
            number = len(seen)
        # Puts go side by side: when the one of this number is done, more may have begun.
        if (kind == "die" and number == first and not done) or (kind == "die_after" and number >= first and done):
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "term" and number == first and not done:
            os.kill(os.getpid(), signal.SIGTERM)
        if kind == "fail" and first <= number <= last and not done:
            raise ConnectionResetError("the connection is broken")

    return fault


class FakeStore(fsspec.AbstractFileSystem):
    """See above; `calls` has the names of all operations so far, `fault` is called before and after each."""

    protocol = "fake"
    calls: list[str] = []  # noqa: RUF012 - of all instances
    fault: Callable[[int, str, bool], None] | None = None
    _lock = threading.Lock()

    def _do(self, name: str, work: Callable[[], object]) -> object:
        with self._lock:
            self.calls.append(name)
            number = len(self.calls)
        fault = type(self).fault
        if fault:
            fault(number, name, False)
        result = work()
        if fault:
            fault(number, name, True)
        return result

    def _at(self, path: str) -> Path:
        key = self._strip_protocol(path)
        assert not {"", ".", ".."} & set(key.split("/")), key
        return Path(os.environ["FAKE_STORE"], key)

    def pipe_file(self, path, value, mode="overwrite", **options):
        def work() -> None:
            at = self._at(path)
            at.parent.mkdir(parents=True, exist_ok=True)
            part = Path(os.environ["FAKE_STORE"], f".part-{uuid.uuid4().hex}")
            part.write_bytes(value)
            if mode == "create":
                os.link(part, at)  # FileExistsError where it is
                part.unlink()
            else:
                part.replace(at)

        assert not options
        self._do("put", work)

    def put_file(self, lpath, rpath, **options):
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def cat_file(self, path, **options):
        return self._do("get", self._at(path).read_bytes)

    def get_file(self, rpath, lpath, **options):
        Path(lpath).write_bytes(self.cat_file(rpath))

    def rm_file(self, path):
        self._do("delete", self._at(path).unlink)

    def find(self, path, maxdepth=None, withdirs=False, detail=False, **options):
        assert not withdirs
        assert maxdepth is None
        root, key = Path(os.environ["FAKE_STORE"]), self._strip_protocol(path)

        def work() -> dict:
            files = [at for at in root.rglob("*") if at.is_file() and not at.name.startswith(".part-")]
            random.shuffle(files)
            keys = [at.relative_to(root).as_posix() for at in files]
            found = {k: self._info(k) for k in keys if k.startswith(f"{key}/")}
            # As the pages on which people look at stores leave one behind.
            return found | {f"{key}/": {"name": f"{key}/", "size": 0, "type": "directory"}}

        found = self._do("list", work)
        return found if detail else sorted(found)

    def _info(self, key: str) -> dict:
        status = Path(os.environ["FAKE_STORE"], key).stat()
        told = {
            "name": key,
            "size": status.st_size,
            "type": "file",
            "ETag": f"{status.st_mtime_ns:x}-{status.st_ino:x}",
        }
        return told | {"LastModified": status.st_mtime}

    def refuse(self, *arguments, **options):
        raise NotImplementedError("object stores cannot do that")

    mv = move = rename = cp_file = touch = open = _open = mkdir = makedirs = rmdir = ls = rm = refuse


def register() -> None:
    """Lets fsspec know `fake://`, in this process."""
    fsspec.register_implementation("fake", FakeStore, clobber=True)


def _main() -> None:
    register()
    object_store.WAITS = (0.0, 0.0)
    if os.environ.get("FAKE_FAULT"):
        FakeStore.fault = staticmethod(fault_of(os.environ["FAKE_FAULT"]))
    program = str(ROOT / "launch" / f"{sys.argv[1]}.py")
    sys.argv = [program, *sys.argv[2:]]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    _main()
