from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsd_core import prompts
from mgsd_core.drafts import Drafter
from sim import FAMILIES, Action, find_family, sample, solve


def response(family: str, level: int, seed: int) -> str:
    state = sample(family, level, seed)
    return prompts.response_text(state, solve(state) or ())


responses = st.sampled_from(FAMILIES).flatmap(
    lambda family: st.tuples(
        st.just(family), st.sampled_from(find_family(family).levels), st.integers(0, 10**6)
    )
)


@given(responses)
@settings(deadline=None, max_examples=60)
def test_route_and_answer_of_a_state_that_was_said_are_drafted_whole(case):
    text = response(*case)
    said = text[: text.index(" Route")]
    assert said + Drafter(case[0]).draft(said) == text


@given(responses, st.data())
@settings(deadline=None, max_examples=60)
def test_a_response_that_grows_is_drafted_as_one_that_is_given_at_once(case, data):
    text = response(*case)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    growing = Drafter(case[0])
    for cut in cuts:
        assert growing.draft(text[:cut]) == Drafter(case[0]).draft(text[:cut])


@given(st.sampled_from(FAMILIES), st.text(max_size=60), responses, st.integers(0, 200))
@settings(deadline=None, max_examples=150)
def test_whatever_was_said_nothing_is_raised(family, noise, case, cut):
    assert isinstance(Drafter(family).draft(noise), str)
    assert isinstance(Drafter(family).draft(response(*case)[:cut] + noise), str)


def share_drafted(family: str, level: int) -> float:
    """Words of responses that need not be written by a model, token by token."""
    words = drafted = 0
    for seed in range(40):
        pieces = re.findall(r" ?[^ .]+|\.", response(family, level, seed))
        said, drafter = 0, Drafter(family)
        while said < len(pieces):
            text = "".join(pieces[:said])
            draft = re.findall(r" ?[^ .]+|\.", drafter.draft(text))
            right = 0
            while right < len(draft) and pieces[said + right : said + right + 1] == [draft[right]]:
                right += 1
            words, drafted, said = words + right + 1, drafted + right, said + right + 1
    return drafted / words


@pytest.mark.parametrize(
    ("family", "level", "least"),
    [("frozenlake", 3, 0.6), ("maze", 5, 0.75), ("minibehaviour", 6, 0.85)],
)
def test_most_of_a_response_is_drafted(family, level, least):
    assert share_drafted(family, level) > least


STATE = "Size 3. Start (0,0). Goal (0,2). Holes (0,1)."


@pytest.mark.parametrize(
    ("said", "draft"),
    [
        ("", "Size"),
        ("Si", "ze"),
        ("Size", ""),
        ("Size 3", ". Start"),
        ("Size 3. Start (", ""),
        ("Size 3. Start (0", ","),
        ("Size 3. Start (0,0", ")"),
        ("Size 3. Start (0,0)", ". Goal"),
        ("Size 3. Start (0,0). Goal (0,2). Holes (0,1)", ""),
        (f"{STATE} Route (0,0) D", " (1,0) R (1,1) R (1,2) U (0,2). <answer>D R R U</answer>"),
        # A detour is gone on from.
        (f"{STATE} Route (0,0) D (1,0) U (0,0)", " D (1,0) R (1,1) R (1,2) U (0,2). <answer>"),
        # The answer repeats the route, whatever it is.
        (f"{STATE} Route (0,0) D (1,0).", " <answer>D</answer>"),
        (f"{STATE} Route (0,0) R", ""),  # into the hole
        (f"{STATE} Route (0,0) D (2,2)", ""),  # not where D leads
        ("Start (0,0).", ""),
        ("Size 3. Goal (0,2)", ""),
        ("Size three", ""),
        ("Size 3. Start here. Goal", ""),
        ("Size 3. Start (0,9). Goal (0,2). Holes none.", ""),
        ("Size 2. Start (0,0). Goal (1,1). Holes (0,1) (1,0).", ""),  # no way
    ],
)
def test_drafts_of_a_lake(said, draft):
    found = Drafter("frozenlake").draft(said)
    assert found == draft or (draft.endswith("<answer>") and found.startswith(draft))


@pytest.mark.parametrize(
    ("said", "draft"),
    [
        ("Open", " (0,0) DR"),
        ("Open (0,0) D", " (0,1) DR"),  # not to the left: (0,0) said so
        ("Open (0,0) R (", "0,1) LR"),
        ("Open (0,0) DR (0,1) LD (0,2) D (1,0", ") DU"),
        (
            "Open (0,0) R (0,1) LR (0,2) LD (1,0) R (1,1) LR (1,2) LDU (2,0) R (2,1) LR (2,2)",
            " LU.",
        ),
    ],
)
def test_drafts_of_a_maze(said, draft):
    found = Drafter("maze").draft(f"Size 3. Start (0,0). Goal (2,2). {said}")
    assert found.startswith(draft)


def test_actions_of_an_office_are_told_apart():
    state = sample("minibehaviour", 5, 0)
    text = response("minibehaviour", 5, 0)
    start = text[: text.index(" Route")]
    drafter = Drafter("minibehaviour")
    for action in solve(state):
        start += drafter.draft(start)[: 1 + text[len(start) :].index(action.value)]
        assert Action(action) in find_family("minibehaviour").actions
        assert drafter.draft(start) + start != ""
    assert Drafter("minibehaviour").draft(f"{text[: text.index(' Route')]} Route ") != ""
