"""Every text that a model reads or writes: state descriptions, questions, instructions, responses.

Student and teacher share one response format: the recovered state, one route sentence, the answer
block. Only that makes the teacher's probabilities mean something on the student's tokens. This
module knows nothing of tokenizers or chat templates, and imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sim import (
    FAMILIES,
    Action,
    Cell,
    FrozenLake,
    Maze,
    MiniBehaviour,
    Plan,
    PlanSyntaxError,
    State,
    StateError,
    format_plan,
    legal_actions,
    parse_plan,
    simulate,
)
from sim.actions import check_family
from sim.states import WALL_DOWN, WALL_LEFT, WALL_RIGHT, WALL_UP

#: Generation ends with this text; what would follow is never read.
STOP_TEXT = "</answer>"

_OPEN_SIDES = (("L", WALL_LEFT), ("D", WALL_DOWN), ("R", WALL_RIGHT), ("U", WALL_UP))


class PromptError(ValueError):
    """A prompt style that does not exist."""


class StateTextError(ValueError):
    """Text that describes no state of the family."""


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


# --- states as text -----------------------------------------------------------------------------


def state_fields(state: State) -> dict[str, str]:
    """Return the sentences that describe a state, by field, in the order of `state_text`."""
    fields = {"size": f"Size {state.size}."}
    if isinstance(state, MiniBehaviour):
        fields |= {
            "agent": f"Agent {_cell(state.agent)}.",
            "printer": f"Printer {_cell(state.printer)}.",
            "table": f"Table {_cells(state.table)}.",
            "beside printer": f"Beside printer {_cells(state.beside([state.printer]))}.",
            "beside table": f"Beside table {_cells(state.beside(state.table))}.",
        }
        return fields
    fields |= {"start": f"Start {_cell(state.start)}.", "goal": f"Goal {_cell(state.goal)}."}
    if isinstance(state, FrozenLake):
        fields["holes"] = f"Holes {_cells(state.holes)}."
    else:
        rows = range(state.size)
        table = " ".join(
            f"{_cell((r, c))} {_open_sides(state, (r, c))}" for r in rows for c in rows
        )
        fields["open"] = f"Open {table}."
    return fields


def state_text(state: State) -> str:
    """Return the symbolic state T in words: all fields, one sentence each."""
    return " ".join(state_fields(state).values())


def parse_state_text(text: str, family: str) -> State:
    """Read the first description of a state in `text`; the inverse of `state_text`.

    Sets may be in any order. Fields that follow from others (cells beside something) need not
    agree with them: they are derived, not part of the state.

    Raises:
        StateTextError: a field is missing or malformed, or the fields contradict each other.
    """
    check_family(family)
    size_text = _sentence(text, "Size")
    if not re.fullmatch(r"\d{1,3}", size_text):
        raise StateTextError(f"size {size_text[:20]!r} is not a whole number")
    size = int(size_text)
    try:
        if family == "frozenlake":
            return FrozenLake(
                size,
                _read_cell(text, "Start"),
                _read_cell(text, "Goal"),
                frozenset(_read_cells(_sentence(text, "Holes"))),
            )
        if family == "maze":
            return Maze(
                size, _read_cell(text, "Start"), _read_cell(text, "Goal"), _read_walls(text, size)
            )
        return MiniBehaviour(
            size,
            _read_cell(text, "Agent"),
            _read_cell(text, "Printer"),
            frozenset(_read_cells(_sentence(text, "Table"))),
        )
    except StateError as error:
        raise StateTextError(str(error)) from None


def _cell(cell: Cell) -> str:
    return f"({cell[0]},{cell[1]})"


def _cells(cells: frozenset[Cell]) -> str:
    return " ".join(_cell(c) for c in sorted(cells)) or "none"


def _open_sides(state: Maze, cell: Cell) -> str:
    return "".join(name for name, bit in _OPEN_SIDES if state.is_open(cell, bit)) or "none"


def _sentence(text: str, name: str) -> str:
    match = re.search(rf"(?:^|\s){name} ([^.]*)\.", text)
    if match is None:
        raise StateTextError(f"no sentence '{name} ….'")
    return match[1]


def _read_cells(text: str) -> list[Cell]:
    if text == "none":
        return []
    if not re.fullmatch(r"\(\d{1,3},\d{1,3}\)(?: \(\d{1,3},\d{1,3}\))*", text):
        raise StateTextError(f"{text[:40]!r} is no list of cells")
    return [(int(r), int(c)) for r, c in re.findall(r"\((\d+),(\d+)\)", text)]


def _read_cell(text: str, name: str) -> Cell:
    cells = _read_cells(_sentence(text, name))
    if len(cells) != 1:
        raise StateTextError(f"{name} must be one cell")
    return cells[0]


def _read_walls(text: str, size: int) -> tuple[tuple[int, ...], ...]:
    table = _sentence(text, "Open")
    entry = r"\((\d{1,3}),(\d{1,3})\) ([LDRU]{1,4}|none)"
    if not re.fullmatch(rf"{entry}(?: {entry})*", table):
        raise StateTextError(f"{table[:40]!r} is no table of open sides")
    walls: dict[Cell, int] = {}
    for r, c, sides in re.findall(entry, table):
        opened = "" if sides == "none" else sides
        walls[(int(r), int(c))] = sum(bit for name, bit in _OPEN_SIDES if name not in opened)
    if set(walls) != {(r, c) for r in range(size) for c in range(size)}:
        raise StateTextError(f"the table of open sides does not list the {size * size} cells")
    return tuple(tuple(walls[r, c] for c in range(size)) for r in range(size))


# --- responses ----------------------------------------------------------------------------------


def route_text(state: State, plan: Plan) -> str:
    """Return the route sentence: the cells on the way, with the action that leaves each."""
    path = simulate(state, plan).path
    words = [_cell(path[0])]
    for before, after, action in zip(path, path[1:], plan, strict=False):
        words.append(action.value)
        if after != before:
            words.append(_cell(after))
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

_QUESTIONS = {
    "state": "What is the state?",
    "size": "What is the size?",
    "start": "Where is the start?",
    "goal": "Where is the goal?",
    "holes": "Which cells are holes?",
    "open": "Which sides of every cell are open?",
    "agent": "Where is the agent?",
    "printer": "Where is the printer?",
    "table": "Which cells are the table?",
    "beside printer": "Which cells are beside the printer?",
    "beside table": "Which cells are beside the table?",
    "legal": "Which actions are legal now?",
}


def questions(state: State) -> list[tuple[str, str]]:
    """Return (question, answer) pairs about a state; answers use the sentences of `state_text`."""
    answers = {"state": state_text(state), **state_fields(state)}
    answers["legal"] = f"Legal {' '.join(map(str, legal_actions(state))) or 'none'}."
    return [(_QUESTIONS[field], answer) for field, answer in answers.items()]


# --- prompts ------------------------------------------------------------------------------------

_FORMATS = {
    "frozenlake": "'Size N. Start (row,column). Goal (row,column). Holes (row,column) ….'",
    "maze": "'Size N. Start (row,column). Goal (row,column). Open (row,column) LDRU ….' "
    "with the open sides of every cell",
    "minibehaviour": "'Size N. Agent (row,column). Printer (row,column). Table (row,column) …. "
    "Beside printer (row,column) …. Beside table (row,column) ….'",
}

_TASKS = {
    "frozenlake": "Move over a frozen lake from the start to the goal with the actions L, D, R, U. "
    "Never enter a hole, never leave the grid.",
    "maze": "Move through a maze from the start to the goal with the actions L, D, R, U. "
    "Never cross a wall.",
    "minibehaviour": "Move with L, D, R, U to a cell beside the printer, PICK it up, carry it to a "
    "cell beside the table and DROP it there. Never enter the table, nor the printer's cell before "
    "PICK, never leave the grid.",
}

_BRIEF_TASKS = {
    "frozenlake": "Cross the lake.",
    "maze": "Leave the maze.",
    "minibehaviour": "Bring the printer.",
}

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
    check_family(family)
    if style not in PROMPT_STYLES:
        raise PromptError(f"unknown prompt style {style!r}; styles are: {', '.join(PROMPT_STYLES)}")
    if style == "brief":
        return _BRIEF_TASKS[family]
    return (
        f"{_TASKS[family]} Cells are (row,column), from (0,0) at the top left. Find the shortest "
        f"plan. First say what the scene is, as {_FORMATS[family]}; then the way, cell by cell, as "
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
        text += f" Reference {' '.join(Action(a).value for a in plan)}."
    return Prompt(_SYSTEMS[style]["teacher"], text, has_image=False)


def prompts_digest(style: str, families: Sequence[str] = FAMILIES) -> str:
    """Return the SHA-256 (hex) of all that a student of this style reads and writes by rule.

    A bundle stores it: weights trained under other prompts are then noticed, not silently wrong.
    """
    texts = {f: [student_prompt(f, style).system, instruction(f, style)] for f in families}
    texts["format"] = [STOP_TEXT, *_FORMATS.values()]
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
