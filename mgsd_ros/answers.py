"""What the model answered for one frame, as the JSON of `~/actions` and of a bag's evaluation.

Imports no ROS. Version 1 of the object, field by field; `config/actions.schema.json` says the same
as a JSON Schema:

    schema_version  1
    stamp           {"sec", "nanosec"} of the image, or of when the plan was withdrawn
    frame_id        of the image, or of the grid when the plan was withdrawn
    family          of tasks that was asked for
    actions         ["R", "D", …], or null when there is no plan in the answer
    path            the robot's cells [[row, column], …] before the first and after each action
    state           the state that the model recovered (`sim.state_to_dict`), or null
    verdict         {"legal", "success", "failure"} of the plan in that state, or null
    confidence      probability [0 to 1] that the model gives to just this text, or null
    repaired        whether `actions` are a repair of the model's plan, which fails in that state
    text            the answer as the model wrote it
    tokens, passes  of the text, and of the decoder that wrote it [count]
    timings         {stage: seconds}
    bundle          digest (hex) of the bundle that answered
    backend         engine that ran it
    error           null, or in one line why this answer is not to be followed
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mgsd_core.runtime import Planner, Response, response_to_dict

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """When and from where a frame was seen: the header of its message."""

    sec: int
    nanosec: int
    frame_id: str

    @classmethod
    def of(cls, message: Any) -> FrameHeader:
        """Return the header of any ROS message that has one."""
        stamp = message.header.stamp
        return cls(int(stamp.sec), int(stamp.nanosec), str(message.header.frame_id))

    @property
    def nanoseconds(self) -> int:
        """Time since the epoch of whatever clock stamped the frame [ns]."""
        return self.sec * 10**9 + self.nanosec

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as answers and evaluations write them."""
        return {"stamp": {"sec": self.sec, "nanosec": self.nanosec}, "frame_id": self.frame_id}


def answer_to_dict(response: Response, header: FrameHeader, planner: Planner) -> dict[str, Any]:
    """Return the JSON-ready answer to one frame."""
    return {
        **_about(header, planner),
        **response_to_dict(response),
        "error": _problem(response),
    }


def failure_to_dict(error: str, header: FrameHeader, planner: Planner) -> dict[str, Any]:
    """Return the JSON-ready answer to a frame that could not be planned on, saying why."""
    return {
        **_about(header, planner),
        "actions": None,
        "path": [],
        "state": None,
        "verdict": None,
        "repaired": False,
        "confidence": None,
        "text": "",
        "tokens": 0,
        "passes": 0,
        "timings": {},
        "error": error,
    }


def to_json(data: Mapping[str, Any]) -> str:
    """Return one line of JSON with sorted keys: equal answers give equal bytes."""
    return json.dumps(data, sort_keys=True, allow_nan=False, ensure_ascii=False)


def _about(header: FrameHeader, planner: Planner) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        **header.to_dict(),
        "family": planner.family,
        "bundle": planner.bundle_digest,
        "backend": planner.backend,
    }


def _problem(response: Response) -> str | None:
    if response.verdict.legal:
        return None
    if response.state is None or response.plan is None:
        return f"the answer cannot be read: {response.verdict.failure}"
    return f"the plan is illegal in the state that the model sees: {response.verdict.failure}"
