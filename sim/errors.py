"""What an error says, in one line."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """Return what an error says, its lines joined; the name of its type where that is nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says: some libraries explain at length below it."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
