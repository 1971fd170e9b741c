"""Every text that a model reads or writes: state descriptions, questions, instructions, responses.

What differs between families is a `Language` each; everything else is said here, once.

Student and teacher share one response format: the recovered state, one route sentence, the answer
block. Only that makes the teacher's probabilities mean something on the student's tokens. This
module knows nothing of tokenizers or chat templates, and imports neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mgsd_core.language import (
    Field,
    Language,
    StateTextError,
    cell,
    cell_text,
    cells,
    cells_text,
    number,
)
from sim import (
    FAMILIES,
    Cell,
    FamilyError,
    Maze,
    MiniBehaviour,
    Plan,
    PlanSyntaxError,
    State,
    StateError,
    find_family,
    format_plan,
    legal_actions,
    parse_plan,
    simulate,
)
from sim.family import load_plugin
from sim.states import WALL_DOWN, WALL_LEFT, WALL_RIGHT, WALL_UP, all_cells

#: Generation ends with this text; what would follow is never read.
STOP_TEXT = "</answer>"

#: Entry point group in which an installed package names the languages of its families.
LANGUAGES = "mgsd.languages"

# A table of open sides is drafted so many cells ahead: with a third of the guesses wrong, more is
# seldom right.
_CELLS_AHEAD = 4

_OPEN_SIDES = (("L", WALL_LEFT), ("D", WALL_DOWN), ("R", WALL_RIGHT), ("U", WALL_UP))


class PromptError(ValueError):
    """A prompt style that does not exist."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One turn of a conversation: what the system says, what the user says.

    The user's text comes before the image: instruction and system text are the same for every
    frame, so their keys and values are computed once on a robot.
    """

    system: str
    user: str
    has_image: bool


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """What a response says. `state` or `plan` is None where the text holds none."""

    state: State | None
    plan: Plan | None
    problem: str | None


# --- the families of this package ---------------------------------------------------------------


def _write_open(state: Maze) -> str:
    def sides(cell: Cell) -> str:
        return "".join(name for name, bit in _OPEN_SIDES if state.is_open(cell, bit)) or "none"

    return " ".join(f"{cell_text(cell)} {sides(cell)}" for cell in all_cells(state.size))


def _read_open(text: str, values: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    size = values["size"]
    entry = r"\((\d{1,3}),(\d{1,3})\) ([LDRU]{1,4}|none)"
    if not re.fullmatch(rf"{entry}(?: {entry})*", text):
        raise StateTextError(f"{text[:40]!r} is no table of open sides")
    walls: dict[Cell, int] = {}
    for r, c, sides in re.findall(entry, text):
        opened = "" if sides == "none" else sides
        walls[(int(r), int(c))] = sum(bit for name, bit in _OPEN_SIDES if name not in opened)
    if set(walls) != {(r, c) for r in range(size) for c in range(size)}:
        raise StateTextError(f"the table of open sides does not list the {size * size} cells")
    return tuple(tuple(walls[r, c] for c in range(size)) for r in range(size))


def _follow_open(said: str, values: Mapping[str, Any]) -> str:
    """Return how a table of open sides probably goes on.

    Which cell is next is sure, and the cells before it have said whether its left and upper sides
    are open. The others are guessed: ways lead straight on, and seldom fork. In mazes of `sample`
    two cells in three are guessed right, so it pays to guess a few of them.
    """
    size = values["size"]
    entries = said.split(" (")  # the last one may be in the making
    known = {divmod(i, size): entry.partition(" ")[2] for i, entry in enumerate(entries)}
    follows, begun = "", entries[-1].removeprefix("(")
    last = min(len(entries) + _CELLS_AHEAD, size * size)
    for i in range(len(entries) - 1, last):
        here = divmod(i, size)
        known[here] = known.get(here) or _guess_open(here, known, size)
        entry = f"{here[0]},{here[1]}) {known[here]}"
        if not entry.startswith(begun):
            return ""
        opening = " (" if i >= len(entries) else "" if said else "("
        follows += opening + entry[len(begun) :]
        begun = ""
    # What follows the table depends on all of it: too much to base on several guesses.
    is_sure = last == size * size and last - len(entries) <= 1
    return f"{follows}." if is_sure else follows


def _guess_open(cell: Cell, known: Mapping[Cell, str], size: int) -> str:
    row, column = cell
    left = "R" in known.get((row, column - 1), "")
    up = "D" in known.get((row - 1, column), "")
    down, right = row + 1 < size, column + 1 < size
    if left != up:  # straight on, or round the corner
        down, right = down and (up or not right), right and (left or not down)
    elif left:
        down = right = False
    opened = {"L": left, "D": down, "R": right, "U": up}
    return "".join(side for side, is_open in opened.items() if is_open) or "none"


def _follow_table(said: str, values: Mapping[str, Any]) -> str:
    """Return the other cells of a table, which covers 2 × 3 cells one way or the other."""
    first = re.match(r"\((\d+),(\d+)\)", said)
    if first is None:
        return ""
    row, column = int(first[1]), int(first[2])
    for rows, columns in ((2, 3), (3, 2)):
        block = [(row + r, column + c) for r in range(rows) for c in range(columns)]
        whole = f"{cells_text(block)}."
        if max(block[-1]) < values["size"] and whole.startswith(said):
            return whole[len(said) :]
    return ""


def _beside_printer(state: MiniBehaviour) -> frozenset[Cell]:
    return state.beside([state.printer])


def _beside_table(state: MiniBehaviour) -> frozenset[Cell]:
    return state.beside(state.table)


_BUILT_IN = {
    "frozenlake": Language(
        task="Move over a frozen lake from the start to the goal with the actions L, D, R, U. "
        "Never enter a hole, never leave the grid.",
        brief="Cross the lake.",
        fields=(number("size"), cell("start"), cell("goal"), cells("holes")),
    ),
    "maze": Language(
        task="Move through a maze from the start to the goal with the actions L, D, R, U. "
        "Never cross a wall.",
        brief="Leave the maze.",
        fields=(
            number("size"),
            cell("start"),
            cell("goal"),
            Field(
                "walls",
                "Which sides of every cell are open?",
                "(row,column) LDRU …",
                _write_open,
                _read_open,
                title="Open",
                follows=_follow_open,
            ),
        ),
        note="with the open sides of every cell",
    ),
    "minibehaviour": Language(
        task="Move with L, D, R, U to a cell beside the printer, PICK it up, carry it to a cell "
        "beside the table and DROP it there. Never enter the table, nor the printer's cell before "
        "PICK, never leave the grid.",
        brief="Bring the printer.",
        fields=(
            number("size"),
            cell("agent"),
            cell("printer"),
            cells("table", "Which cells are the table?", follows=_follow_table),
            cells("beside printer", "Which cells are beside the printer?", of=_beside_printer),
            cells("beside table", "Which cells are beside the table?", of=_beside_table),
        ),
    ),
}


@cache
def find_language(family: str) -> Language:
    """Return the language of a family.

    Raises:
        UnknownFamilyError: there is no such family.
        FamilyError: its language is not there, cannot be loaded, or lacks a field of its states.
    """
    states = find_family(family).state
    language = (
        _BUILT_IN[family] if family in _BUILT_IN else load_plugin(family, LANGUAGES, Language)
    )
    said = sorted(field.name for field in language.fields if field.read is not None)
    has = sorted(field.name for field in dataclasses.fields(states))
    if said != has:
        raise FamilyError(f"a state of {family} has the fields {has}, but its language has {said}")
    return language


# --- states as text -----------------------------------------------------------------------------


def state_fields(state: State) -> dict[str, str]:
    """Return the sentences that describe a state, by field, in the order of `state_text`."""
    return {field.name: field.sentence(state) for field in find_language(state.family).fields}


def state_text(state: State) -> str:
    """Return the symbolic state T in words: all fields, one sentence each."""
    return " ".join(state_fields(state).values())


def parse_state_text(text: str, family: str) -> State:
    """Read the first description of a state in `text`; the inverse of `state_text`.

    Sets may be in any order. Fields that follow from others (cells beside something) need not
    agree with them: they are derived, not part of the state.

    Raises:
        StateTextError: a field is missing or malformed, or the fields contradict each other.
        UnknownFamilyError, FamilyError: see `find_language`.
    """
    return parse_state(find_language(family).read(text), family)


def parse_state(values: Mapping[str, Any], family: str) -> State:
    """Return the state of a family whose fields have these values.

    Raises:
        StateTextError: they contradict each other.
    """
    new_state: Any = find_family(family).state
    try:
        state: State = new_state(**values)
    except StateError as error:
        raise StateTextError(str(error)) from None
    return state


# --- responses ----------------------------------------------------------------------------------


def route_text(state: State, plan: Plan) -> str:
    """Return the route sentence: the cells on the way, with the action that leaves each."""
    path = simulate(state, plan).path
    words = [cell_text(path[0])]
    for before, after, action in zip(path, path[1:], plan, strict=False):
        words.append(action.value)
        if after != before:
            words.append(cell_text(after))
    return f"Route {' '.join(words)}."


def response_text(state: State, plan: Plan) -> str:
    """Return the response a perfect planner gives: state, route sentence, answer block."""
    return f"{state_text(state)} {route_text(state, plan)} {format_plan(plan)}"


def parse_response(text: str, family: str) -> ParsedResponse:
    """Read the state and the plan out of a model's response; never raises on a model's text.

    Raises:
        UnknownFamilyError: `family` does not exist.
    """
    state: State | None = None
    plan: Plan | None = None
    problem: str | None = None
    try:
        state = parse_state_text(text, family)
    except StateTextError as error:
        problem = f"state: {error}"
    try:
        plan = parse_plan(text, family)
    except PlanSyntaxError as error:
        problem = f"plan: {error}"
    return ParsedResponse(state, plan, problem)


# --- questions of stage 1 -----------------------------------------------------------------------

#: Asks for all of a state at once.
STATE_QUESTION = "What is the state?"

_LEGAL_QUESTION = "Which actions are legal now?"


def questions(state: State) -> list[tuple[str, str]]:
    """Return (question, answer) pairs about a state; answers use the sentences of `state_text`."""
    fields = find_language(state.family).fields
    return [
        (STATE_QUESTION, state_text(state)),
        *((field.question, field.sentence(state)) for field in fields),
        (_LEGAL_QUESTION, f"Legal {' '.join(map(str, legal_actions(state))) or 'none'}."),
    ]


# --- prompts ------------------------------------------------------------------------------------

_SYSTEMS = {
    "full": {
        "student": "You plan for a robot from a picture taken from above.",
        "teacher": "You plan for a robot from an exact description of the scene.",
    },
    "brief": {"student": "See.", "teacher": "Read."},
}

#: `full` explains the task to a pretrained model; `brief` only names it, for a model that is
#: trained from nothing and would spend most of its computation on reading explanations.
PROMPT_STYLES = tuple(_SYSTEMS)


def instruction(family: str, style: str) -> str:
    """Return the instruction Q of a family: what to do and in which format to answer."""
    language = find_language(family)
    if style not in PROMPT_STYLES:
        raise PromptError(f"unknown prompt style {style!r}; styles are: {', '.join(PROMPT_STYLES)}")
    if style == "brief":
        return language.brief
    return (
        f"{language.task} Cells are (row,column), from (0,0) at the top left. Find the shortest "
        f"plan. First say what the scene is, as {language.form}; then the way, cell by cell, as "
        "'Route (row,column) action (row,column) ….'; then the actions alone, as "
        "'<answer>action action …</answer>'."
    )


def student_prompt(family: str, style: str) -> Prompt:
    """Return what the student reads before the image."""
    return Prompt(_SYSTEMS[style]["student"], instruction(family, style), has_image=True)


def question_prompt(question: str, style: str) -> Prompt:
    """Return a stage-1 question about an image."""
    return Prompt(_SYSTEMS[style]["student"], question, has_image=True)


def symbolic_prompt(state: State, style: str, plan: Plan | None = None) -> Prompt:
    """Return what the teacher reads: instruction, symbolic state and, if given, a reference plan.

    Without the plan it is also the symbolic-text input of the evaluation's upper bound.
    """
    text = f"{instruction(state.family, style)} {state_text(state)}"
    if plan is not None:
        text += f" Reference {' '.join(a.value for a in plan)}."
    return Prompt(_SYSTEMS[style]["teacher"], text, has_image=False)


def prompts_digest(style: str, families: Sequence[str] = FAMILIES) -> str:
    """Return the SHA-256 (hex) of all that a student of this style reads and writes by rule.

    A bundle stores it: weights trained under other prompts are then noticed, not silently wrong.
    """
    texts = {f: [student_prompt(f, style).system, instruction(f, style)] for f in families}
    others = [find_language(family) for family in families if family not in _BUILT_IN]
    texts["format"] = [STOP_TEXT, *(spoken.form for spoken in (*_BUILT_IN.values(), *others))]
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
