"""Configurations as JSON text in the layout that people write: what fits on a line stands on one."""

from __future__ import annotations

import json
from typing import Any

_WIDTH = 120
_STEP = "    "


def config_text(content: Any) -> str:
    """Return JSON text, indented by four, with lists and objects on one line where they fit into 120 columns."""
    return _text(content, "", 0) + "\n"


def _text(content: Any, indent: str, taken: int) -> str:
    short = json.dumps(content, ensure_ascii=False)
    top = not indent
    if not isinstance(content, (dict, list)) or not content:
        return short
    if not top and len(indent) + taken + len(short) < _WIDTH and not _holds_objects(content):
        return short
    inner = indent + _STEP
    if isinstance(content, dict):
        keys = {key: f"{json.dumps(key, ensure_ascii=False)}: " for key in content}
        lines = [inner + keys[key] + _text(value, inner, len(keys[key])) for key, value in content.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    lines = [inner + _text(value, inner, 0) for value in content]
    return "[\n" + ",\n".join(lines) + f"\n{indent}]"


def _holds_objects(content: dict | list) -> bool:
    values = content.values() if isinstance(content, dict) else content
    return any(isinstance(value, dict) for value in values)
