"""Two models in a row: one reads the state off the picture, the other plans from what was read.

The baseline of stage 2: the same training up to there, nothing distilled, two models to run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mgsd_core import prompts
from mgsd_core.evaluation.answers import evaluate, judge, read_states, respond
from mgsd_core.evaluation.score import Record

if TYPE_CHECKING:
    from mgsd_core.model import Backbone
    from mgsd_core.scenes import Scenes

# A plan that the reader makes unasked, and what follows it.
_PLAN = re.compile("<answer>.*", re.IGNORECASE | re.DOTALL)


def evaluate_pipeline(
    reader: Backbone,
    planner: Backbone,
    scenes: Scenes,
    source: str,
    batch: int = 64,
    progress: Callable[[int], Any] | None = None,
) -> list[Record]:
    """Let one model read the states and another plan from them, greedily, and judge the plans.

    The text of a record is what the reader said and, in a new line, what the planner said to it. A
    state that cannot be read is planned by nobody: such a response holds no plan.

    Args:
        reader: is asked for the state of every picture.
        planner: is told the state that was read.
        scenes: held-out pictures and their true states.
        source: `image`, or `text`: the planner is told the true state (the upper bound).
        batch: responses generated at a time.
        progress: called with the number of scenes done since the last call.
    """
    if source == "text":
        return evaluate(planner, scenes, source, batch, progress)

    def answer(part: Scenes) -> list[str]:
        # Without a plan of the reader's, a record's text holds one state and one plan.
        said = [_PLAN.sub("", text) for text in read_states(reader, part)]
        states = {
            i: read
            for i, (text, true) in enumerate(zip(said, part.states, strict=True))
            if (read := prompts.parse_response(text, true.family).state) is not None
        }
        asked = [prompts.symbolic_prompt(state, planner.style) for state in states.values()]
        right = [prompts.response_text(part.states[i], part.plans[i]) for i in states]
        planned = dict(zip(states, respond(planner, asked, None, right), strict=True))
        return [f"{text}\n{planned[i]}" if i in planned else text for i, text in enumerate(said)]

    return judge(scenes, answer, batch, progress)
