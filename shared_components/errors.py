"""The error a user can mend, and how the command line shows it: one line, no traceback."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator
from types import TracebackType

# what a package is called where it is installed, if not as it is imported
_DISTRIBUTIONS = {"ignite": "pytorch-ignite", "skimage": "scikit-image", "PIL": "pillow", "yaml": "pyyaml"}
# MONAI's SaveImage hides what the system said behind advice to install writers
_NOT_WRITTEN = re.compile(r"suitable writer for ([^\n]+)\.\n[\s\S]*\n\w+: \[Errno \d+\] ([^\n]+)")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class InputError(ValueError):
    """A mistake in what the user gave: a file, a value, a key.

    The message is one line that names the file or key, the value found, the value expected and the remedy.
    """


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise `InputError` unless ``value`` is one of ``choices``, which the message lists."""
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def check_count(name: str, value: object) -> None:
    """Raise `InputError` unless ``value`` is a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")


def check_share(name: str, value: object) -> None:
    """Raise `InputError` unless ``value`` is a number above 0 and below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise InputError(f"{name} must be a number above 0 and below 1, not {value!r}")


def find_input_error(error: BaseException | None) -> InputError | None:
    """Return the `InputError` in the chain of causes of ``error``, or ``None``."""
    return next((cause for cause in _causes(error) if isinstance(cause, InputError)), None)


def out_of_memory(error: BaseException | None) -> bool:
    """Tell whether the processor or the accelerator ran out of memory, whatever library says so."""
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"
        or (isinstance(cause, RuntimeError) and any(words in str(cause) for words in _OUT_OF_MEMORY))
        for cause in _causes(error, contexts=False)
    )


def install_one_line_errors() -> None:
    """Make an uncaught error that a user can mend end the process with one line on stderr and exit code 1.

    That is an `InputError`, a lack of memory or a package that is not installed. MONAI wraps what a configuration
    raises in errors of its own, so the whole chain of causes is searched. Ctrl-C ends with exit code 130 and one line.
    Every other exception keeps its traceback.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        message = one_line(error)
        if issubclass(kind, KeyboardInterrupt):
            sys.stderr.write(
                "interrupted; with --resume True a training goes on after its last complete epoch, an inference after "
                "its last case\n"
            )
            sys.exit(130)
        elif message:
            sys.stderr.write(f"error: {message}\n")
        else:
            previous(kind, error, traceback)

    if getattr(previous, "__name__", "") != "one_line_errors":
        hook.__name__ = "one_line_errors"
        sys.excepthook = hook


def one_line(error: BaseException) -> str:
    """Return what to tell a user who can mend the error, '' for every other error."""
    mistake = find_input_error(error)
    if mistake is not None:
        return str(mistake)
    for cause in _causes(error, contexts=False):
        if isinstance(cause, ModuleNotFoundError) and cause.name and not cause.name.startswith(__package__):
            return missing_package(cause.name)
    for cause in _causes(error):
        if unwritten := _NOT_WRITTEN.search(str(cause)):
            return f"{unwritten[1]} could not be written: {unwritten[2]}; make room or give another --output_dir"
    if out_of_memory(error):
        return "out of memory; lower --batch_size or --num_samples, or end what else uses the memory"
    return ""


def missing_package(module: str) -> str:
    """Say that a module cannot be imported, and how to install it."""
    top = module.partition(".")[0]
    return f"the package {top} is not installed; pip install {_DISTRIBUTIONS.get(top, top)}"


def _causes(error: BaseException | None, contexts: bool = True) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, and so on; ``contexts``: also what was being handled when it was."""
    while error is not None:
        yield error
        error = error.__cause__ or (error.__context__ if contexts else None)
