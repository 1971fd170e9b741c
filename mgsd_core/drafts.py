"""What probably comes next in a response, so that it need not be written token by token.

The format fixes most of a response: how sentences begin, which cell of a table is next, what
follows from fields that were already said, which cell a move leads to, and that the answer repeats
the route. Where the route is still open, a shortest one is proposed. A draft is a guess about the
text alone: whoever uses it asks the model whether it would have written the same, and keeps what
agrees, so a wrong draft costs time and changes nothing.

Knows nothing of tokens or models.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from mgsd_core.language import Field, StateTextError
from mgsd_core.prompts import find_language, parse_state, route_text
from sim import State, find_family, format_plan, solve
from sim.planning import step


class Drafter:
    """Drafts what follows in one response, which grows from call to call.

    Raises:
        UnknownFamilyError, FamilyError: see `prompts.find_language`.
    """

    def __init__(self, family: str) -> None:
        self._family, self._fields = family, find_language(family).fields
        # The sentences that are complete: how many, where the last one ends, what they say.
        self._done, self._end = 0, 0
        self._values: dict[str, Any] = {}
        self._known: tuple[dict[str, Any], State | None] = {}, None

    def draft(self, text: str) -> str:
        """Return what probably follows a response that begins with `text`; empty if nothing does.

        Args:
            text: what was written so far; that of the last call and more.
        """
        self._read(text)
        rest, values, drafted = text[self._end :], self._values, ""
        for i in range(self._done, len(self._fields)):
            more = "" if "." in rest else self._sentence(i, rest, values)
            drafted += more
            sentence, complete, _ = (rest + more).partition(".")
            if not (more and complete):
                return drafted
            try:
                values = self._with_value(i, sentence, values)
            except (ValueError, LookupError):
                return drafted
            rest = ""
        state = self._state(values)
        return drafted if state is None else drafted + _way(state, rest)

    def _read(self, text: str) -> None:
        """Read the sentences that have become complete, up to one that is not as it should be."""
        while self._done < len(self._fields) and (end := text.find(".", self._end)) >= 0:
            try:
                self._values = self._with_value(self._done, text[self._end : end], self._values)
            except (ValueError, LookupError):
                return
            self._done, self._end = self._done + 1, end + 1

    def _with_value(self, i: int, sentence: str, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values with that of a sentence; raises as `Field.read` does."""
        field, opening = self._fields[i], f"{self._opening(i)} "
        if not sentence.startswith(opening):
            raise StateTextError(f"{sentence[:40]!r} is not about {field.title}")
        if field.read is None:
            return values
        return {**values, field.name: field.read(sentence[len(opening) :], values)}

    def _opening(self, i: int) -> str:
        return f" {self._fields[i].title}" if i else self._fields[i].title

    def _sentence(self, i: int, begun: str, values: dict[str, Any]) -> str:
        """Return what follows in a sentence of which `begun` was said."""
        field, opening = self._fields[i], self._opening(i)
        if begun.startswith(f"{opening} "):
            return self._value(field, begun[len(opening) + 1 :], values)
        if not opening.startswith(begun):
            return ""
        value = self._value(field, "", values)
        return opening[len(begun) :] + (f" {value}" if value else "")

    def _value(self, field: Field, said: str, values: dict[str, Any]) -> str:
        """Return what follows `said` in the sentence about a field, given the fields before it."""
        if field.read is not None:
            try:
                return "" if field.follows is None else field.follows(said, values)
            except (ValueError, LookupError):  # as of `read`: a model may have said anything
                return ""
        # It follows from the state, once that is known.
        state = self._state(values)
        whole = "" if state is None else f"{field.write(state)}."
        return whole[len(said) :] if whole.startswith(said) else ""

    def _state(self, values: dict[str, Any]) -> State | None:
        if self._known[0] != values:
            try:
                self._known = values, parse_state(values, self._family)
            except (StateTextError, TypeError):  # contradictory, or not all there yet
                self._known = values, None
        return self._known[1]


def _way(state: State, rest: str) -> str:
    """Return what follows `rest`, which is all that a response says after its state."""
    family = find_family(state.family)
    actions = {action.value: action for action in family.actions}
    said, stop, _ = rest.partition(".")
    gone = tuple(actions[word] for word in said.split() if word in actions)
    if not stop:
        pose = family.begin(state)
        for action in gone:
            after = step(state, pose, action)
            if isinstance(after, StrEnum):
                return ""
            pose = after
        ahead = solve(state, pose)
        if ahead is None:
            return ""
        gone += ahead
        said = f" {route_text(state, gone)[:-1]}"
    whole = f"{said}. {format_plan(gone)}"
    return whole[len(rest) :] if whole.startswith(rest) else ""
