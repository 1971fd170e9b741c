from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import (
    FAMILIES,
    Action,
    PlanSyntaxError,
    UnknownFamilyError,
    find_family,
    format_plan,
    parse_plan,
)

plans = st.sampled_from(FAMILIES).flatmap(
    lambda f: st.tuples(st.just(f), st.lists(st.sampled_from(find_family(f).actions)).map(tuple))
)


@given(plans)
def test_plans_round_trip(task):
    family, plan = task
    assert parse_plan(format_plan(plan), family) == plan


@given(plans, st.text(), st.text())
def test_text_around_the_answer_is_ignored(task, before, after):
    family, plan = task
    if "<answer>" in before.lower():
        return
    assert parse_plan(before + format_plan(plan) + after, family) == plan


@given(st.text() | st.text(alphabet="<answer>/ LDRUPICK,"), st.sampled_from(FAMILIES))
def test_any_text_gives_a_plan_or_a_syntax_error(text, family):
    for candidate in (text, f"<answer>{text}</answer>"):
        try:
            plan = parse_plan(candidate, family)
        except PlanSyntaxError:
            continue
        assert all(a in find_family(family).actions for a in plan)


@pytest.mark.parametrize(
    "text",
    ["L, D, R", "LDR", "l d r", "left down right", "L → D → R", "[L;D;R]", "L->D->R", "L DR"],
)
def test_ways_to_write_a_plan(text):
    assert parse_plan(f"So: <answer> {text} </answer>", "maze") == (Action.L, Action.D, Action.R)


def test_the_first_complete_block_counts():
    assert parse_plan("<answer>L</answer> no, <answer>R</answer>", "maze") == (Action.L,)
    assert parse_plan("<answer>L <answer>R</answer>", "maze") == (Action.R,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("L D R", "no <answer>"),
        ("<answer>L D", "no <answer>"),
        ("<answer>L X</answer>", "'X'"),
        ("<answer>L PICK</answer>", "PICK in the answer is no action of frozenlake"),
    ],
)
def test_syntax_errors_say_what_is_wrong(text, says):
    with pytest.raises(PlanSyntaxError, match=says):
        parse_plan(text, "frozenlake")


def test_unknown_family():
    with pytest.raises(UnknownFamilyError, match="families are"):
        parse_plan("<answer>L</answer>", "chess")
