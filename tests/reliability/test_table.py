"""The table in the documentation and the tests are in step."""

from __future__ import annotations

import re

from tests.runs.commands import REPOSITORY


def test_every_row_has_a_test_and_every_test_stands_in_its_row():
    rows = re.findall(
        r"^\| (\d+) \|.*\|(.*)\|$", (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted({int(row) for row, _ in rows}) == list(range(1, 61))
    named = {name for row, tests in rows for name in re.findall(r"`(test_row_\w+)`", tests)}
    files = [*(REPOSITORY / "tests" / "reliability").glob("test_*.py"), REPOSITORY / "tests" / "runs" / "test_train.py"]
    defined = {
        name
        for file in files
        for name in re.findall(r"^def (test_row_\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named == defined
    assert [row for row, tests in rows if {int(n) for n in re.findall(r"`test_row_(\d+)", tests)} != {int(row)}] == []
