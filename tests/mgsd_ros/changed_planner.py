"""The real node with a planner that is slower, fails, or answers from a given state.

Run as a process by the node's tests; PLAN says how: `sleep SECONDS`, `fail`, or `know STATE`.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from mgsd_core.runtime import Planner, Response, Verdict
from mgsd_ros.planner_node import main
from sim import simulate, solve, state_from_dict

how, _, argument = os.environ["PLAN"].partition(" ")
plan_really = Planner.plan
warmed_up = False


def plan(self: Planner, rgb: Any) -> Response:
    global warmed_up
    if not warmed_up:  # nobody has asked for that one
        warmed_up = True
        return plan_really(self, rgb)
    print("a plan is at work", flush=True)
    if how == "sleep":
        time.sleep(float(argument))
    elif how == "fail":
        raise RuntimeError("the engine\nis on fire")
    elif how == "know":
        state = state_from_dict(json.loads(argument))
        known = solve(state)
        assert known is not None
        verdict = Verdict(True, True, None, simulate(state, known).path)
        return Response(state, known, "", {"total": 0.25}, verdict)
    return plan_really(self, rgb)


Planner.plan = plan  # type: ignore[method-assign]

if __name__ == "__main__":
    raise SystemExit(main())
