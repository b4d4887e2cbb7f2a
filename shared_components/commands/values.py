"""How the values of options are read; whoever writes one wrong is told what was expected.

Each function raises InputError when it cannot read the text.
"""

from __future__ import annotations

from shared_components.errors import InputError


def integer(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise InputError(f"found '{text}', expected a whole number") from None


def truth(text: str) -> bool:
    """``true`` or ``false``, whatever the case."""
    if text.lower() not in ("true", "false"):
        raise InputError(f"found '{text}', expected true or false")
    return text.lower() == "true"


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"found '{text}', expected a number") from None


def numbers(text: str) -> list[float]:
    """Numbers with commas between them, in brackets or not."""
    try:
        return [float(part) for part in text.strip("[]()").split(",")]
    except ValueError:
        raise InputError(f"found '{text}', expected numbers such as 1,2") from None
