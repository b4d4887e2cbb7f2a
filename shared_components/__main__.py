"""The command line: ``python -m shared_components COMMAND --option value``."""

from __future__ import annotations

import inspect
import logging
import re
import signal
import sys
from difflib import get_close_matches

from fire import Fire
from fire.core import FireExit

from shared_components.commands import COMMANDS
from shared_components.errors import InputError, install_one_line_errors

_NAME = "python -m shared_components"
_HELP_FLAGS = ("--help", "-h", "help")


def main(arguments: list[str]) -> None:
    """Run the command that ``arguments`` (those after the program's name) ask for.

    Raises:
        InputError: no such command, no such option, or what the command itself finds wrong.
        SystemExit: with code 0 after help, 1 or 2 after an error already told.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    if not arguments or arguments[0] in _HELP_FLAGS:
        sys.stdout.write(_overview())
        sys.exit(0 if arguments else 2)
    name, *options = arguments
    if name not in COMMANDS:
        raise InputError(f"no command '{name}'{_nearest(name, COMMANDS)}; commands: {', '.join(COMMANDS)}")
    if any(option in _HELP_FLAGS[:2] for option in options):
        sys.stdout.write(_command_help(name))
        return
    options = [re.sub(r"^--from(?==|$)", "--from_", option) for option in options]  # a word of Python's own
    _check_options(name, options)
    try:
        Fire(COMMANDS[name], command=options, name=f"{_NAME} {name}")
    except FireExit as error:
        sys.exit(error.code)


def _overview() -> str:
    lines = [f"  {name:<18} {inspect.getdoc(function).splitlines()[0]}" for name, function in COMMANDS.items()]
    return "\n".join(
        [f"usage: {_NAME} COMMAND --option value", "", *lines, "", "COMMAND --help tells its options.", ""]
    )


def _command_help(name: str) -> str:
    parameters = inspect.signature(COMMANDS[name]).parameters.values()
    usage = [
        f"--{_shown(p.name)} {_shown(p.name).upper()}" if p.default is p.empty else f"[--{p.name} {p.name.upper()}]"
        for p in parameters
    ]
    text = inspect.getdoc(COMMANDS[name]).replace("    from_:", "    from:")
    return f"usage: {_NAME} {name} {' '.join(usage)}\n\n{text}\n"


def _shown(parameter: str) -> str:
    return parameter.rstrip("_")


def _check_options(name: str, options: list[str]) -> None:
    """Refuse what the command does not know and what it lacks, before it runs."""
    parameters = inspect.signature(COMMANDS[name]).parameters
    given: list[str] = []
    num_positional = 0
    awaiting = ""
    for option in [*options, "--"]:
        if option.startswith("--") and awaiting:
            raise InputError(f"{name}: --{awaiting} needs a value")
        if option.startswith("--") and option != "--":
            key, equals, _ = option[2:].partition("=")
            key = key.replace("-", "_")
            if key not in parameters:
                known = ", ".join(f"--{_shown(parameter)}" for parameter in parameters)
                raise InputError(f"{name}: no option '--{key}'{_nearest(key, parameters, '--')}; options: {known}")
            given.append(key)
            awaiting = "" if equals else key
        elif awaiting:
            awaiting = ""
        else:
            num_positional += option != "--"
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in given]
    if num_positional > len(positional):
        raise InputError(f"{name}: {num_positional} values without a name; write --option value")
    required = [p.name for p in parameters.values() if p.default is p.empty and p.name not in given]
    if missing := required[num_positional:]:
        raise InputError(f"{name}: --{_shown(missing[0])} is missing; {_NAME} {name} --help tells the options")


def _nearest(name: str, known, prefix: str = "") -> str:
    matches = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{prefix}{matches[0]}'?" if matches else ""


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    install_one_line_errors()
    main(sys.argv[1:])
