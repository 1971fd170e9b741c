"""How a family's states are put into words and read back from them.

A state is described by one sentence a field: `Size 3. Start (0,0). Holes (0,1) (2,1).` The model
writes it, so whatever reads it must take any text and raise nothing but `StateTextError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim import Cell, FamilyError


class StateTextError(ValueError):
    """Text that describes no state of the family."""


@dataclass(frozen=True, eq=False)
class Field:
    """A sentence about a state, such as `Holes (0,1) (2,1).`, and the question that it answers.

    `number`, `word`, `cell` and `cells` make the usual ones.

    Attributes:
        name: of the state's field.
        question: that stage 1 asks about a picture.
        form: how an instruction shows what follows the name: `(row,column) …`.
        write: returns what follows the name, from the state; no full stop may be in it.
        read: returns the field's value from what `write` returned and the values of the fields
            before it. It raises ValueError or LookupError where the text, which may be any text, is
            something else. None where the sentence only says what follows from other fields.
        title: what the sentence begins with; default: the name, its first letter a capital.
        follows: returns what probably comes next, up to the full stop, after the part of the value
            that was already said, given the values of the fields before it; empty where nothing is
            probable. It may raise what `read` may. It saves time when a robot plans (see
            `mgsd_core.drafts`) and changes nothing else.
    """

    name: str
    question: str
    form: str
    write: Callable[[Any], str]
    read: Callable[[str, Mapping[str, Any]], Any] | None
    title: str = ""
    follows: Callable[[str, Mapping[str, Any]], str] | None = None

    def __post_init__(self) -> None:
        title = self.title or self.name[:1].upper() + self.name[1:].replace("_", " ")
        object.__setattr__(self, "title", title)

    def sentence(self, state: Any) -> str:
        """Return the sentence about a state."""
        return f"{self.title} {self.write(state)}."


@dataclass(frozen=True, eq=False)
class Language:
    """All that a model is told of a family, in words.

    Attributes:
        task: what to do and what is illegal, for a pretrained model.
        brief: the same in a few words, for a model that is trained from nothing.
        fields: the sentences, in the order in which they are written and read. Those with `read`
            are the fields of the family's states, every one once; `size` is best the first.
        note: what the instruction adds to the format, if anything.

    Raises:
        FamilyError: two sentences begin alike.
    """

    task: str
    brief: str
    fields: Sequence[Field]
    note: str = ""

    def __post_init__(self) -> None:
        for field in self.fields:
            for other in self.fields:
                if other is not field and f"{other.title} ".startswith(f"{field.title} "):
                    raise FamilyError(
                        f"the sentences {field.title!r} and {other.title!r} begin alike, so that "
                        "one would be read as the other; rename a field"
                    )

    @property
    def form(self) -> str:
        """The form of all sentences, as an instruction shows it."""
        sentences = " ".join(f"{field.title} {field.form}." for field in self.fields)
        return f"'{sentences}'" + (f" {self.note}" if self.note else "")

    def read(self, text: str) -> dict[str, Any]:
        """Return the values of a state's fields from the first sentence of each in `text`.

        Raises:
            StateTextError: a sentence is missing, or it says something else.
        """
        values: dict[str, Any] = {}
        for field in self.fields:
            if field.read is not None:
                said = _sentence(text, field.title)
                try:
                    values[field.name] = field.read(said, values)
                except StateTextError:
                    raise
                except (ValueError, LookupError) as error:
                    raise StateTextError(f"{field.title} {said[:40]!r}: {error}") from None
        return values


# --- the usual fields ---------------------------------------------------------------------------


def number(name: str, question: str = "") -> Field:
    """Return the field of a whole number, 0 to 999."""

    def read(text: str, _: Mapping[str, Any]) -> int:
        if not re.fullmatch(r"\d{1,3}", text):
            raise StateTextError(f"{name} {text[:20]!r} is not a whole number")
        return int(text)

    question = question or f"What is the {name}?"

    def follows(said: str, _: Mapping[str, Any]) -> str:
        return "." if said.isdigit() else ""

    return Field(
        name, question, "N", lambda state: str(getattr(state, name)), read, follows=follows
    )


def word(name: str, words: Collection[str], question: str = "") -> Field:
    """Return the field of a text that is one of `words`."""

    def read(text: str, _: Mapping[str, Any]) -> str:
        if text not in words:
            raise StateTextError(f"{name} {text[:20]!r} is none of: {', '.join(words)}")
        return text

    question = question or f"What is the {name}?"

    def follows(said: str, _: Mapping[str, Any]) -> str:
        fitting = [other for other in words if said and other.startswith(said)]
        return f"{fitting[0][len(said) :]}." if len(fitting) == 1 else ""

    return Field(
        name,
        question,
        "|".join(words),
        lambda state: str(getattr(state, name)),
        read,
        follows=follows,
    )


def cell(name: str, question: str = "") -> Field:
    """Return the field of one cell."""

    def read(text: str, _: Mapping[str, Any]) -> Cell:
        found = read_cells(text)
        if len(found) != 1:
            raise StateTextError(f"{name[:1].upper()}{name[1:]} must be one cell")
        return found[0]

    question = question or f"Where is the {name}?"

    def follows(said: str, _: Mapping[str, Any]) -> str:
        return "." if said.endswith(")") else _close_cell(said)

    return Field(
        name,
        question,
        "(row,column)",
        lambda state: cell_text(getattr(state, name)),
        read,
        follows=follows,
    )


def cells(
    name: str,
    question: str = "",
    of: Callable[[Any], Collection[Cell]] | None = None,
    follows: Callable[[str, Mapping[str, Any]], str] | None = None,
) -> Field:
    """Return the field of any number of cells.

    Args:
        name: of the field.
        question: about it.
        of: returns the cells where they are no field of the state but follow from others.
        follows: see `Field`; for cells of which some tell the others.
    """

    def read(text: str, _: Mapping[str, Any]) -> frozenset[Cell]:
        return frozenset(read_cells(text))

    def write(state: Any) -> str:
        return cells_text(getattr(state, name) if of is None else of(state))

    def close(said: str, _: Mapping[str, Any]) -> str:
        return "." if said == "none" else _close_cell(said)

    question = question or f"Which cells are {name}?"
    return Field(
        name,
        question,
        "(row,column) …",
        write,
        read if of is None else None,
        follows=follows or close,
    )


def cell_text(cell: Cell) -> str:
    """Return `(row,column)`."""
    return f"({cell[0]},{cell[1]})"


def cells_text(cells: Collection[Cell]) -> str:
    """Return cells in their order, or `none`."""
    return " ".join(map(cell_text, sorted(cells))) or "none"


def read_cells(text: str) -> list[Cell]:
    """Return the cells that `cells_text` wrote, in any order; StateTextError for other text."""
    if text == "none":
        return []
    if not re.fullmatch(r"\(\d{1,3},\d{1,3}\)(?: \(\d{1,3},\d{1,3}\))*", text):
        raise StateTextError(f"{text[:40]!r} is no list of cells")
    return [(int(r), int(c)) for r, c in re.findall(r"\((\d+),(\d+)\)", text)]


def _close_cell(said: str) -> str:
    """Return what follows a number in a cell that is not complete."""
    match = re.search(r"\(\d+(,\d+)?$", said)
    return "" if match is None else ")" if match[1] else ","


def _sentence(text: str, title: str) -> str:
    # In two steps: a pattern up to the full stop would look for it again from every title.
    begun = re.search(rf"(?:^|\s){re.escape(title)} ", text)
    end = -1 if begun is None else text.find(".", begun.end())
    if begun is None or end < 0:
        raise StateTextError(f"no sentence '{title} ….'")
    return text[begun.end() : end]
