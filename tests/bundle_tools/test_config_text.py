"""Configurations as text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared_components.bundle_tools.config_text import config_text

CONFIGS = sorted(Path(__file__).resolve().parents[2].glob("bundles/*/configs/train.json"))


@pytest.mark.parametrize("file", CONFIGS[:3], ids=lambda file: file.parts[-3])
def test_content_and_order_stay_and_lines_are_short(file):
    content = json.loads(file.read_text(encoding="utf-8"))
    text = config_text(content)
    assert json.loads(text) == content
    assert list(json.loads(text)) == list(content)
    assert [line for line in text.splitlines() if len(line) > 120 and "$" not in line] == []


def test_what_fits_stands_on_one_line():
    assert config_text({"a": [1, 2], "b": {"c": "d"}}) == '{\n    "a": [1, 2],\n    "b": {"c": "d"}\n}\n'
    assert config_text({"a": [{"b": 1}, {"c": 2}]}).count("\n") == 6
