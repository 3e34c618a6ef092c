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
from ml_collections import config_flags

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
    """Returns the terminal of log lines and the progress bar."""
    from rich.console import Console

    return Console(stderr=True)


def _show_log_lines() -> None:
    # Through rich, so that lines and a progress bar share the terminal. Only this project's own: libraries' lines at
    # this level are many.
    from rich.highlighter import NullHighlighter
    from rich.logging import RichHandler

    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(console=console(), show_path=False, highlighter=NullHighlighter())
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
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
    print(f"error: {_message(error) or type(error).__name__}", file=sys.stderr)
    sys.exit(code)


def _message(error: BaseException) -> str:
    # ml_collections wraps the KeyError of an unknown field, and str() of a KeyError is its repr, escapes included.
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    if isinstance(error, KeyError) and error.args:
        return "the config has no field " + str(error.args[0]).replace("\n", ": ")
    lines = str(error).strip().splitlines()
    # What a config file raises comes with its traceback as text; its last line says what is wrong.
    if any(line.startswith("Traceback") for line in lines):
        return f"{lines[0]} {lines[-1]}"
    return "\n".join(lines)


def require(flag: flags.FlagHolder) -> str:
    """Returns a flag's value.

    Raises:
        flags.Error: it was not given, or it is a config file that cannot be read.
    """
    if flag.value is None:
        raise flags.ValidationError(f"--{flag.name} is required; --help shows how")
    try:
        # A config file that could not be opened raises only here, at the first look into it.
        getattr(flag.value, "seed", None)
    except OSError as error:
        given = config_flags.get_config_filename(flags.FLAGS[flag.name])
        message = f"--{flag.name}={given}: there is no such config file, or it is unreadable"
        raise flags.ValidationError(message) from error
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
