"""What every command shares: flags, exit codes, clear errors, and JAX set up before it is first imported.

Nothing here imports JAX, so that `--help` and wrong usage answer at once.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("inpaint_jax")
ERROR, USAGE, INTERRUPTED = 1, 2, 130


def run(main: Callable[[], int], usage: str) -> None:
    """Parses the flags, calls `main`, and exits with its code, or with 1 or 2 and one clear message.

    Args:
        main: the command; a ValueError, OSError or FloatingPointError of it is the user's to mend, so its message is
            printed without a traceback (which goes to the log file where there is one).
        usage: the command's docstring, shown by --help.
    """
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
        listed = "".join(f"  --{flag.name}: {flag.help}\n" for flag in own)
        print(f"{usage.strip()}\n\nOptions:\n{listed}", end="")
        sys.exit(0)
    try:
        rest = flags.FLAGS(sys.argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
        _fail(error, USAGE)
    if len(rest) > 1:
        _fail(ValueError(f"unexpected argument {rest[1]!r}: options start with --"), USAGE)
    _show_log_lines()
    try:
        code = main()
    except flags.Error as error:
        _fail(error, USAGE)
    except (ValueError, OSError, FloatingPointError) as error:
        log.debug("traceback of the error", exc_info=error)
        _fail(error, ERROR)
    except KeyboardInterrupt:
        _fail(KeyboardInterrupt("interrupted"), INTERRUPTED)
    sys.exit(code)


@functools.cache
def console() -> "Console":
    """Returns the terminal of log lines and the progress bar; where there is none, lines are not folded."""
    from rich.console import Console

    return Console(stderr=True, width=None if sys.stderr.isatty() else 220)


def _show_log_lines() -> None:
    # Through rich, so that lines and a progress bar share the terminal. Only this project's own: libraries' lines at
    # this level are many.
    from rich.highlighter import NullHighlighter
    from rich.logging import RichHandler

    handler = RichHandler(console=console(), show_path=False, highlighter=NullHighlighter())
    handler.setLevel(logging.INFO)
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    log.propagate = False


def log_to_file(path: Path) -> None:
    """Sends log lines, and tracebacks of errors, to a file as well."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)


def _fail(error: BaseException, code: int) -> None:
    # str() of a KeyError is its repr, quotes and escapes included.
    message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    print(f"error: {message or type(error).__name__}", file=sys.stderr)
    sys.exit(code)


def require(flag: flags.FlagHolder) -> str:
    """Returns a flag's value.

    Raises:
        flags.Error: it was not given.
    """
    if flag.value is None:
        raise flags.ValidationError(f"--{flag.name} is required; --help shows how")
    return flag.value


def prepare_jax(deterministic: bool = False) -> None:
    """Sets what JAX reads from the environment; call before it is imported. What is already set stays.

    Args:
        deterministic: GPU kernels that give the same bits every time, somewhat slower.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Compiled programs are kept between runs: a resumed run starts in seconds, and on GPUs with the same kernels.
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "inpaint_jax" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    if deterministic and "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
