"""Tries a task family out before anything is trained on it: do its parts agree with each other?"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mgsd_core import prompts
from sim import (
    FamilyError,
    State,
    find_family,
    format_plan,
    parse_plan,
    sample,
    solve,
    state_from_dict,
    state_to_dict,
)

_SIDE = 64  # of the pictures that are drawn [px]


def check_task(name: str, states: int = 20) -> dict[str, Any]:
    """Try out the family of a name on random states of every level.

    Args:
        name: of the family.
        states: to try of each level.

    Returns:
        {"family", "drawn": whether pictures were drawn and read back, "levels": {level: {"states":
        different ones, "shortest", "longest": plans [actions], "solve_seconds": at most}}}.

    Raises:
        UnknownFamilyError: no installed package has it.
        FamilyError: it cannot be loaded, or its parts do not agree; says which, and in what state.
    """
    family = find_family(name)
    for style in prompts.PROMPT_STYLES:
        prompts.instruction(name, style)
    levels = {level: _check_level(name, level, states) for level in family.levels}
    drawn = family.build is not None and importlib.util.find_spec("panda3d") is not None
    if drawn:
        _check_pictures(name)
    return {"family": name, "drawn": drawn, "levels": levels}


def _check_level(name: str, level: int, states: int) -> dict[str, Any]:
    tried, lengths, seconds = set(), [], []
    for seed in range(states):
        with _blaming(f"{name} level {level} seed {seed}"):
            state = sample(name, level, seed)
            began = time.perf_counter()
            solve.__wrapped__(state)
            seconds.append(time.perf_counter() - began)
            _check_state(state, level)
            tried.add(state)
            lengths.append(len(solve(state) or ()))
    return {
        "states": len(tried),
        "shortest": min(lengths),
        "longest": max(lengths),
        "solve_seconds": round(max(seconds), 4),
    }


def _check_state(state: State, level: int) -> None:
    if (state.size, solve(state)) == (level, ()):
        raise ValueError("the task is achieved before anything is done; do not draw such states")
    if state.size != level:
        raise ValueError(f"its size is {state.size}, but the size is the level")
    if state_from_dict(state_to_dict(state)) != state:
        raise ValueError(f"its JSON is another state: {state_to_dict(state)}")
    plan = solve(state) or ()
    if parse_plan(format_plan(plan), state.family) != plan:
        raise ValueError(f"its plan reads otherwise: {format_plan(plan)}")
    text = prompts.response_text(state, plan)
    parsed = prompts.parse_response(text, state.family)
    if (parsed.state, parsed.plan) != (state, plan):
        raise ValueError(f"its text reads otherwise ({parsed.problem or parsed.state}): {text}")
    # What a model writes may be cut anywhere, and is read all the same.
    for end in range(len(text)):
        prompts.parse_response(text[:end] + ".", state.family)
    questions = [question for question, _ in prompts.questions(state)]
    if len(set(questions)) != len(questions):
        raise ValueError(f"two of its questions are the same: {questions}")


def _check_pictures(name: str) -> None:
    from sim.readback import check_state
    from sim.renderers import open_renderer
    from sim.scene import build_scene

    with open_renderer("panda") as drawer:
        for level in find_family(name).levels:
            for seed in range(3):
                with _blaming(f"{name} level {level} seed {seed}, drawn"):
                    scene = build_scene(sample(name, level, seed), seed, _SIDE, _SIDE)
                    check_state(drawer.read_state(scene), scene.state)
                    drawer.render(scene)


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Turn whatever somebody else's code raises into one line that says on what."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise FamilyError(f"{what}: {kind}{error}") from error
