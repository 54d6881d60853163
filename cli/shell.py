"""What the shell hands to a command, made harmless before it runs: locale, streams, variables.

Only the command line does this, to its own process and those it starts; as a library the packages leave
all of it to the program that imports them.
"""

import codecs
import contextlib
import locale
import logging
import os
import pwd
import sys

from star.base.names import shown

__all__ = ["prepare"]


def prepare() -> None:
    """Call once, first of all. It may start the program anew (``_read_names_as_utf8``)."""
    _open_closed_streams()
    _read_names_as_utf8()
    _print_everything()
    _forget_odd_variables()
    _draw_into_files()


def _open_closed_streams() -> None:
    """A closed stdout (``>&-``) would have its number given to the next file that is opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _read_names_as_utf8() -> None:
    """Start anew in Python's UTF-8 mode (PEP 540; the default from 3.15 on) if the locale is not UTF-8.

    There a name beyond its letters could not even be opened. The terminal still gets its own encoding.
    """
    given = sys.argv[1:]
    of_another_program = sys.orig_argv[len(sys.orig_argv) - len(given) :] != given
    if sys.getfilesystemencoding() == "utf-8" or of_another_program or not sys.executable:
        return
    if "utf8" in sys._xoptions:  # asked for in so many words, or started anew already
        return
    os.environ["PYTHONUTF8"] = "1"
    if not os.environ.get("PYTHONIOENCODING"):
        os.environ["PYTHONIOENCODING"] = locale.getencoding()
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _print_everything() -> None:
    """What a stream cannot encode is printed as an escape, as names are everywhere."""
    codecs.register_error("escaped", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="escaped")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = shown(error.object[error.start : error.end])
    return text.encode("ascii", errors="backslashreplace").decode(), error.end


def _forget_odd_variables() -> None:
    """A width of 0 columns (nothing would be printed) is none; who has no home gets one of no use."""
    for name in ("COLUMNS", "LINES"):
        if not os.environ.get(name, "1").isdecimal() or int(os.environ.get(name, "1")) == 0:
            del os.environ[name]
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:  # a container's user without an entry, for whom looking up either is an error
        os.environ.setdefault("HOME", os.path.sep)
        os.environ.setdefault("LOGNAME", str(os.getuid()))


def _draw_into_files() -> None:
    """Matplotlib draws without a window, whatever a notebook or a matplotlibrc asks for, in silence.

    It would complain of settings and of folders for its caches, neither of which our pictures need.
    """
    os.environ["MPLBACKEND"] = "agg"
    os.environ["MATPLOTLIBRC"] = os.devnull
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    if os.path.isfile("matplotlibrc"):
        _import_matplotlib_elsewhere()


def _import_matplotlib_elsewhere() -> None:
    """A matplotlibrc of the working folder goes before all variables; a broken one ends the import."""
    here = os.open(os.curdir, getattr(os, "O_PATH", os.O_RDONLY))  # it need not be readable
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    try:
        import matplotlib  # noqa: F401
    finally:
        os.fchdir(here)
        os.close(here)
