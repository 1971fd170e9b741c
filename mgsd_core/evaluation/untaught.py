"""How a model is asked that was not trained here: it is told all of the task, and given room."""

from __future__ import annotations

from functools import cache

from mgsd_core import prompts
from mgsd_core.prompts import Prompt
from sim import State, sample, solve
from sim.family import find_family

#: The style of its prompts.
STYLE = "full"

_LEAST_TOKENS = 1024


def prompt_of(state: State, source: str) -> Prompt:
    """Return what it is asked about a scene.

    Args:
        state: of the scene.
        source: `image`, or `text` (the symbolic state: the upper bound).
    """
    if source == "image":
        return prompts.student_prompt(state.family, STYLE)
    return prompts.symbolic_prompt(state, STYLE)


@cache
def response_limit(family: str) -> int:
    """Return how long an answer about a family may be [tokens].

    No tokenizer is known here: a token is taken for a character, which is too many, and the answer
    may be twice as long as the longest of some right ones.
    """
    levels = find_family(family).levels
    states = [sample(family, level, seed) for level in levels for seed in (0, 1)]
    lengths = [len(prompts.response_text(state, solve(state) or ())) for state in states]
    return max(_LEAST_TOKENS, 2 * max(lengths, default=0))
