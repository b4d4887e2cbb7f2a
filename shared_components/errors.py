"""The error a user can mend, and how the command line shows it: one line, no traceback."""

from __future__ import annotations

import sys
from types import TracebackType


class InputError(ValueError):
    """A mistake in what the user gave: a file, a value, a key.

    The message is one line that names the file or key, the value found, the value expected and the remedy.
    """


def find_input_error(error: BaseException | None) -> InputError | None:
    """Return the `InputError` in the chain of causes of ``error``, or ``None``."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None


def install_one_line_errors() -> None:
    """Make an uncaught `InputError` end the process with one line on stderr and exit code 1.

    MONAI wraps what a configuration raises in errors of its own, so the whole chain of causes is searched.
    Ctrl-C ends with exit code 130 and one line. Every other exception keeps its traceback.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        mistake = find_input_error(error)
        if mistake is not None:
            sys.stderr.write(f"error: {mistake}\n")
        elif issubclass(kind, KeyboardInterrupt):
            sys.stderr.write("interrupted\n")
            sys.exit(130)
        else:
            previous(kind, error, traceback)

    if getattr(previous, "__name__", "") != "one_line_errors":
        hook.__name__ = "one_line_errors"
        sys.excepthook = hook
