"""How commands name weights: a directory, or `hf:` and a name that transformers resolves."""

from __future__ import annotations

from pathlib import Path

#: What the name of a model on a hub begins with.
HUB = "hf:"


def weights_place(word: str) -> Path | str:
    """Return where the weights are that a command names; a text is a name on a hub.

    Said, not guessed: a mistyped directory must not become a request to a hub.
    """
    return word.removeprefix(HUB) if word.startswith(HUB) else Path(word)


def weights_word(place: str) -> str:
    """Return how a command names the weights of a configuration, a directory or a hub's name."""
    return place if Path(place).is_dir() else HUB + place
