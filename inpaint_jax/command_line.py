"""What every command shares: flags, exit codes, clear errors, and JAX set up before it is first imported.

Nothing here imports JAX, so that `--help` and wrong usage answer at once.
"""

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags

from inpaint_jax import full_disk, object_store

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("inpaint_jax")
ERROR, USAGE, PREEMPTED, INTERRUPTED = 1, 2, 75, 130
USERS_ERRORS = (ValueError, OSError, FloatingPointError)  # what the user is to mend: told without a traceback
# What a config file, or a field of it on the command line, raises beside the flags' own errors and OSError.
CONFIG_FILE_ERRORS = (AttributeError, LookupError, TypeError, ValueError, SyntaxError, ImportError, NameError)


def run(main: Callable[..., int], usage: str, arguments: bool = False, urls: Sequence[str] = ()) -> None:
    """Parses the flags, calls `main`, and exits with its code, or with 1 or 2 and one clear message.

    Args:
        main: the command; a ValueError, OSError or FloatingPointError of it is the user's to mend, so its message is
            printed without a traceback (which goes to the log file where there is one).
        usage: the command's docstring, shown by --help.
        arguments: call `main` with the list of what stands on the command line beside options; False: refuse it.
        urls: options that take a place on an object store, such as gs://bucket/run; "" = the arguments.
    """
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
        listed = "".join(f"  --{flag.name}: {flag.help}{_default(flag)}\n" for flag in own)
        print(f"{usage.strip()}\n\nOptions:\n{listed}", end="")
        sys.exit(0)
    if arguments:
        flags.FLAGS.set_gnu_getopt(True)  # options may follow arguments
    try:
        rest = flags.FLAGS(sys.argv)
    except flags.Error as error:
        _fail(error, USAGE)
    except OSError:
        _fail(ValueError(_no_config_file("config")), USAGE)
    except CONFIG_FILE_ERRORS as error:
        if isinstance(_innermost(error), KeyError):
            _fail(error, USAGE)
        _fail(ValueError(f"the config file, or a field set on the command line, is wrong ({error}): mend it"), USAGE)
    if len(rest) > 1 and not arguments:
        _fail(ValueError(f"unexpected argument {rest[1]!r}: options start with --"), USAGE)
    _refuse_urls(rest[1:], urls)
    _show_log_lines()
    try:
        code = main(rest[1:]) if arguments else main()
    except flags.Error as error:
        _fail(error, USAGE)
    except USERS_ERRORS as error:
        log.debug("traceback of the error", exc_info=error)
        _fail(error, ERROR)
    except KeyboardInterrupt:
        _fail(KeyboardInterrupt("interrupted"), INTERRUPTED)
    sys.exit(code)


def _refuse_urls(rest: Sequence[str], urls: Sequence[str]) -> None:
    """Ends the command where a folder is needed and a URL is given: as a path it would be a strange folder here."""
    given = {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    for name, value in {**given, "": list(rest)}.items():
        for text in value if isinstance(value, list) else [value]:
            if name not in urls and object_store.is_url(text):
                option = f"--{name}={text}" if name else text
                _fail(
                    ValueError(f"{option} is a place on an object store: give a folder or file of this machine"), USAGE
                )


def _default(flag: flags.Flag) -> str:
    return "" if flag.default in (None, False, "", []) else f" (default {flag.default_as_str.strip(chr(39))})"


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


class _LogFile(logging.Handler):
    """Appends log lines to a file; on a full disk they wait, as the rows of a run do."""

    def __init__(self, path: Path):
        super().__init__()
        self._file = full_disk.Appender(path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.append((self.format(record) + "\n").encode(errors="backslashreplace"))
        except (OSError, ValueError):
            self.handleError(record)

    def close(self) -> None:
        self._file.close()
        super().close()


def log_to_file(path: Path) -> None:
    """Sends log lines, and tracebacks of errors, to a file as well."""
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)


def _fail(error: BaseException, code: int) -> None:
    print(f"error: {message(error) or type(error).__name__}", file=sys.stderr)
    sys.exit(code)


# What converters of values raise -> what the user is to do.
_GIVE = {
    "invalid literal for int()": "give a whole number",
    "could not convert string to float": "give a number",
    "Non-boolean argument": "give True or False",
    "as a ConfigDict": "this is a group of fields; set one of the fields in it",
    "while parsing string": "give a tuple, such as (1,2,3)",
}


def _innermost(error: BaseException) -> BaseException:
    # ml_collections wraps the KeyError of an unknown field.
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return error


def message(error: BaseException) -> str:
    """Returns what an error says, as a sentence for the user."""
    error = _innermost(error)
    # The text of a KeyError is its repr, escapes included.
    if isinstance(error, KeyError) and error.args:
        field, _, suggestion = str(error.args[0]).partition("\n")
        return f"the config has no field {field}: {suggestion or 'all fields stand in configs/common.py'}"
    if isinstance(error, OSError) and full_disk.is_full(error):
        return f"the disk is full ({error}): free some space, and run the same command again"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)!r} cannot be read or written ({error.strerror}): mend it, or give another"
    if isinstance(error, flags.IllegalFlagValueError):
        for raised, give in _GIVE.items():
            if raised in str(error):
                # "flag --name=value: what the converter raised"
                return f"{str(error).removeprefix('flag ').split(': ')[0]}: {give}"
    lines = str(error).strip().splitlines()
    # What a config file raises comes with its traceback as text; its last line says what is wrong.
    if any(line.startswith("Traceback") for line in lines):
        return f"{lines[0].removeprefix('flag ')} {lines[-1]}"
    return "\n".join(lines)


def _no_config_file(flag: str) -> str:
    # From the command line itself: the flag does not know its value yet where parsing ends early.
    words = [word for argument in sys.argv[1:] for word in argument.split("=", 1)]
    given = words[[word.lstrip("-") for word in words].index(flag) + 1]
    return f"--{flag}={given}: there is no such config file, or it is unreadable"


def leave_preempted(number: int, frame: FrameType | None = None) -> None:
    """Ends the process where it stands, as preempted: a handler of signals for where nothing is to be saved."""
    log.warning("%s: there is nothing to save; run the same command again", signal.Signals(number).name)
    if sys.stderr.isatty():
        console().show_cursor()  # a progress bar hides it
    os._exit(PREEMPTED)


def require(flag: flags.FlagHolder) -> Any:
    """Returns a flag's value, for one that can be repeated a list of texts.

    Raises:
        flags.Error: it was not given, or it is a config file that cannot be read.
    """
    if flag.value is None and flags.FLAGS[flag.name].present:
        raise flags.ValidationError(f"--{flag.name}: get_config gives nothing: let it return the config")
    if flag.value is None or flag.value == "":
        raise flags.ValidationError(f"--{flag.name} is required; --help shows how")
    try:
        # A config file that could not be opened raises only here, at the first look into it.
        getattr(flag.value, "seed", None)
    except OSError as error:
        raise flags.ValidationError(_no_config_file(flag.name)) from error
    repeated = isinstance(flags.FLAGS[flag.name], flags.MultiFlag)
    if not repeated and not isinstance(flag.value, str | ml_collections.ConfigDict):
        raise flags.ValidationError(
            f"--{flag.name}: get_config gives a {type(flag.value).__name__}: let it return a ConfigDict that starts "
            "from common.base()"
        )
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
    # JAX packs those programs with zstandard where it is installed, without a checksum: with a flipped bit they crash.
    # With zlib, which has one, what is damaged is compiled anew. None is as if it were not installed.
    sys.modules.setdefault("zstandard", None)
    if deterministic and "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
