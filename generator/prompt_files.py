"""Prompts from text files, one file per category: what they are called, and how they are read and written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from exchange import files
from exchange.errors import UserError

# What some file system cannot hold, and % itself, so that no two names share a file.
_UNSAFE = re.compile(r'[%/\\:*?"<>|\x00-\x1f\x7f]|^\.')
_LONGEST = 200  # bytes; file systems take 255, of which a writer adds some


def prompt_file_name(category: str) -> str:
    """The file of a category: its name as the data set has it, and ``.txt``.

    Control characters, ``% / \\ : * ? " < > |`` and a dot in front stand there as in a URL: ``and/or`` is
    ``and%2For.txt``. Raises UserError for a name that is too long for a file.
    """
    name = _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", category) + ".txt"
    if len(name.encode()) > _LONGEST:
        raise UserError(f"the category {category[:40]!r}… has a name too long for a file: shorten it")
    return name


def read_prompts(folder: str, categories: Iterable[str]) -> dict[str, Sequence[str]]:
    """The prompts of each category, by its name: one a line, without blank lines and those that begin with ``#``.

    Raises UserError where ``folder`` has no file of a category, and for one that is no UTF-8 or has no prompt in it.
    """
    there = set(files.list_dir(folder))
    if not there:
        raise UserError(
            f"there are no files in GENERATOR.PROMPT_FOLDER {folder}: it takes one of each category, as mrca "
            "write-prompts makes them"
        )
    names = {category: prompt_file_name(category) for category in categories}
    missing = [category for category, name in names.items() if name not in there]
    if missing:
        more = f" (and {len(missing) - 1} more categories have none)" if len(missing) > 1 else ""
        raise UserError(
            f"GENERATOR.PROMPT_FOLDER {folder} has no prompts for the category {missing[0]!r}{more}: write "
            f"{names[missing[0]]!r}, a prompt a line, or have mrca write-prompts do it"
        )
    return {category: _read(files.join(folder, name)) for category, name in names.items()}


def write_prompts(folder: str, category: str, prompts: Sequence[str], comment: str) -> None:
    """Writes the file of a category, whole or not at all, with ``comment`` above its prompts."""
    lines = [f"# {' '.join(comment.split())}", *prompts, ""]
    files.write_bytes(files.join(folder, prompt_file_name(category)), "\n".join(lines).encode())


def _read(path: str) -> list[str]:
    try:
        text = files.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no UTF-8 text (at byte {error.start}): save it with that encoding"
        ) from error
    if "\0" in text:
        raise UserError(f"{path} is no UTF-8 text (it has a zero byte): save it with that encoding")
    lines = (" ".join(line.split()) for line in text.splitlines())
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"{path} has no prompt in it: write one a line")
    return prompts
