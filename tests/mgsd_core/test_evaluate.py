from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgsd_core.evaluate import MEASURES, score, summarise, table
from mgsd_core.prompts import parse_response, response_text, state_text
from sim import FAMILIES, LEVELS, FrozenLake, sample, solve

LAKE = FrozenLake.from_rows(["SFF", "FHF", "FFG"])
tasks = st.sampled_from([(f, level) for f in FAMILIES for level in LEVELS[f]])


def _score(text, state=LAKE):
    return score(state, len(solve(state)), parse_response(text, state.family), text)


@given(tasks, st.integers(0, 10**6))
def test_perfect_responses_score_full(task, seed):
    state = sample(*task, seed)
    record = _score(response_text(state, solve(state)), state)
    assert (record.success, record.optimal, record.legal, record.state) == (True,) * 4
    assert all(record.fields.values())
    assert record.failure is None
    assert (record.family, record.level) == task


@pytest.mark.parametrize(
    ("answer", "success", "optimal", "legal", "failure"),
    [
        ("<answer>R R D D</answer>", True, True, True, None),
        ("<answer>R L R R D D</answer>", True, False, True, None),
        ("<answer>R R</answer>", False, False, True, "incomplete"),
        ("<answer>R D D</answer>", False, False, False, "hole"),
        ("<answer></answer>", False, False, True, "incomplete"),
        ("R R D D", False, False, False, "plan: no <answer>…</answer> block in the response"),
    ],
)
def test_plans_are_judged_in_the_true_state(answer, success, optimal, legal, failure):
    record = _score(f"{state_text(LAKE)} {answer}")
    assert (record.success, record.optimal, record.legal) == (success, optimal, legal)
    assert record.failure == failure
    assert record.state


def test_fields_are_judged_one_by_one():
    wrong = state_text(FrozenLake(3, (0, 1), (2, 2), frozenset({(1, 1)})))
    record = _score(f"{wrong} <answer>R R D D</answer>")
    assert record.success
    assert not record.state
    assert record.fields == {"size": True, "start": False, "goal": True, "holes": True}


def test_macro_averages_levels_then_families():
    records = [
        *[_lake_record(3, True)] * 3,
        *[_lake_record(3, False)] * 1,
        _lake_record(4, False),
        _maze_record(True),
    ]
    summary = summarise(records)
    assert summary["families"]["frozenlake"]["levels"]["3"]["success"] == 0.75
    assert summary["families"]["frozenlake"]["success"] == pytest.approx(0.375)
    assert summary["macro"]["success"] == pytest.approx((0.375 + 1.0) / 2)
    assert summary["count"] == 6
    # Success given a recovered state counts only responses that recovered it.
    assert summary["families"]["frozenlake"]["levels"]["4"]["success_given_state"] is None


def test_table_has_a_row_each_and_percentages():
    text = table(
        [("base", summarise([_maze_record(False)])), ("mgsd", summarise([_maze_record(True)]))]
    )
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[2].split() == ["base", *["0.0"] * len(MEASURES), "0.0"]
    assert lines[3].split() == ["mgsd", *["100.0"] * len(MEASURES), "100.0"]


def _lake_record(level, right):
    state = sample("frozenlake", level, 0)
    return _score(response_text(state, solve(state)) if right else "nonsense", state)


def _maze_record(right):
    state = sample("maze", 3, 0)
    return _score(response_text(state, solve(state)) if right else "nonsense", state)
