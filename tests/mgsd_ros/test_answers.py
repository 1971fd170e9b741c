"""What `~/actions` says is what the schema in the repository promises."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ros_processes import ROOT

from mgsd_core.runtime import Planner
from mgsd_ros.answers import FrameHeader, answer_to_dict, failure_to_dict, to_json

SCHEMA = json.loads((ROOT / "config" / "actions.schema.json").read_text())
# Others may meet fields of later versions; of this one we know all.
ALL = SCHEMA | {"additionalProperties": False}
HEADER = FrameHeader(5, 999_999_999, "camera")


def checked(answer: dict) -> dict:
    received = json.loads(to_json(answer))
    jsonschema.validate(received, ALL, cls=jsonschema.Draft202012Validator)
    return received


@pytest.fixture(scope="module")
def planner(bundle_dir) -> Planner:
    return Planner.load(bundle_dir, threads=1)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert set(SCHEMA["required"]) == set(SCHEMA["properties"])


def test_answers_are_what_the_schema_says(planner: Planner, lake_episodes) -> None:
    for episode in lake_episodes:
        answer = checked(answer_to_dict(planner.plan(episode.image), HEADER, planner))
        assert answer["actions"] == [action.value for action in episode.plan]
        assert 0.2 < answer["confidence"] <= 1
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    response = planner.plan(noise)
    unreadable = replace(
        response,
        state=None,
        plan=None,
        text="?",
        verdict=replace(response.verdict, legal=False, success=False, failure="no state", path=()),
    )
    for said in (response, unreadable):
        checked(answer_to_dict(said, HEADER, planner))


@given(text=st.text(), sec=st.integers(0, 2**31 - 1), nanosec=st.integers(0, 10**9 - 1))
def test_failures_are_what_the_schema_says(planner: Planner, text: str, sec: int, nanosec: int):
    header = FrameHeader(sec, nanosec, text)
    answer = checked(failure_to_dict(text, header, planner))
    assert answer["error"] == text and answer["confidence"] is None
    assert FrameHeader(**answer["stamp"], frame_id=answer["frame_id"]) == header


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"confidence": 1.5},
        {"confidence": "high"},
        {"path": [[0, 1, 2]]},
        {"actions": "R"},
        {"bundle": ""},
        {"stamp": {"sec": 1}},
        {"mood": "good"},
    ],
)
def test_the_schema_refuses_what_is_no_answer(planner: Planner, change: dict) -> None:
    answer = failure_to_dict("no", HEADER, planner)
    with pytest.raises(jsonschema.ValidationError):
        checked(answer | change)


def test_no_number_that_json_lacks_is_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"confidence": math.nan})
