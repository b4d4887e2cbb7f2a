"""What the pages for people promise: commands whose files and options exist, links that lead somewhere."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_components.__main__ import _check_options
from shared_components.bundle_tools.settings import _check_names
from shared_components.commands import COMMANDS

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "bundles/*/docs/*.md")
    for path in REPOSITORY.glob(pattern)
)
# bundles that a command before makes
MADE = ("my_", "dist/", "apps/")


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command of a page's blocks, with the shell variables that a block sets."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        known: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            if given := re.fullmatch(r"([A-Z_]+)=[\"']?(.*?)[\"']?", line.strip()):
                known[given.group(1)] = given.group(2)
                continue
            for name, value in known.items():
                line = line.replace(f"${name}", value)
            yield shlex.split(line, comments=True)


def after(words: list[str], *start: str) -> list[str] | None:
    """What follows these words, up to where another command or a file begins; ``None`` if they do not occur."""
    for place in range(len(words)):
        if tuple(words[place : place + len(start)]) == start:
            rest = words[place + len(start) :]
            return rest[: next((n for n, word in enumerate(rest) if word in (";", "|", ">", "&&", "done")), len(rest))]
    return None


def config_files(options: list[str]) -> list[str]:
    text = " ".join(options)
    return re.findall(r"[^\[\]',\s\"=]+\.json", text[text.index("--config_file") :].split(" --")[0])


def parametrised() -> list:
    return [pytest.param(page, id=str(page.relative_to(REPOSITORY))) for page in PAGES]


@pytest.mark.parametrize("page", parametrised())
def test_options_of_commands_on_bundles_exist(page, monkeypatch):
    inside = page.parent.parent if page.parent.parent.parent.name == "bundles" else REPOSITORY
    for words in commands(page):
        options = after(words, "-m", "monai.bundle", "run")
        if options is None or all(file.startswith(MADE) for file in config_files(options)):
            continue
        files = config_files(options)
        folder = next((f for f in (REPOSITORY, inside) if all((f / file).is_file() for file in files)), None)
        assert files and folder, f"no such files: {files}"
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["monai/bundle/__main__.py", "run", *options])
        _check_names(())


@pytest.mark.parametrize("page", parametrised())
def test_commands_of_the_package_and_their_options_exist(page):
    for words in commands(page):
        options = after(words, "-m", "shared_components")
        if options is None or "--help" in options:
            continue
        assert options[0] in COMMANDS, options
        _check_options(options[0], [re.sub(r"^--from$", "--from_", option) for option in options[1:]])


@pytest.mark.parametrize("page", parametrised())
def test_links_lead_to_files_and_headings_that_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: no {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, f"{page.name}: no heading {target}"


def test_there_are_commands_to_check():
    assert (
        sum(after(words, "-m", "monai.bundle", "run") is not None for page in PAGES for words in commands(page)) > 100
    )
