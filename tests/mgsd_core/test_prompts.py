from __future__ import annotations

import hashlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgsd_core.prompts import (
    PROMPT_STYLES,
    PromptError,
    StateTextError,
    find_language,
    instruction,
    parse_response,
    parse_state_text,
    prompts_digest,
    questions,
    response_text,
    state_text,
    symbolic_prompt,
)
from sim import FAMILIES, LEVELS, UnknownFamilyError, sample, solve

tasks = st.sampled_from([(f, level) for f in FAMILIES for level in LEVELS[f]])
seeds = st.integers(0, 2**62)


@given(tasks, seeds)
def test_responses_round_trip(task, seed):
    state = sample(*task, seed)
    plan = solve(state)
    parsed = parse_response(response_text(state, plan), state.family)
    assert (parsed.state, parsed.plan, parsed.problem) == (state, plan, None)


@given(tasks, seeds, st.integers(0, 200))
def test_cut_responses_are_reported_not_raised(task, seed, length):
    state = sample(*task, seed)
    text = response_text(state, solve(state))
    parsed = parse_response(text[: min(length, len(text) - 1)], state.family)
    assert parsed.plan is None
    assert parsed.problem is not None
    assert parsed.state in (None, state)


@given(
    st.text() | st.text(alphabet="Size 3.Start(0,1)GoalHoles noneOpen LDRU"),
    st.sampled_from(FAMILIES),
)
def test_any_text_is_parsed_without_an_error(text, family):
    parsed = parse_response(text, family)
    assert parsed.problem is not None or parsed.plan is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_long_text_without_a_full_stop_is_parsed_in_no_time(family):
    """A model that repeats itself must not keep a robot waiting: the time grows with the length."""
    size, *others = (field.title for field in find_language(family).fields)
    began = time.process_time()
    for text in (f" {size}" * 20_000, *(f"{size} 3. " + f" {t} (0,0)" * 20_000 for t in others)):
        assert parse_response(text, family).problem is not None
    assert time.process_time() - began < 2.0


@given(tasks, seeds)
def test_sets_may_be_written_in_any_order(task, seed):
    state = sample(*task, seed)
    text = state_text(state)
    for name in ("Holes", "Table"):
        if f"{name} " in text:
            before, _, rest = text.partition(f"{name} ")
            cells, _, after = rest.partition(".")
            text = f"{before}{name} {' '.join(reversed(cells.split()))}.{after}"
    assert parse_state_text(text, state.family) == state


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no sentence 'Size"),
        ("Size x.", "whole number"),
        ("Size 3. Start (0,0). Holes none.", "no sentence 'Goal"),
        ("Size 3. Start (0,0) (0,1). Goal (1,1). Holes none.", "Start must be one cell"),
        ("Size 3. Start (0,0). Goal (0,0). Holes none.", "same cell"),
        ("Size 3. Start (0,0). Goal (9,0). Holes none.", "outside"),
        ("Size 3. Start (0,0). Goal (1,1). Holes (0,1) and more.", "no list of cells"),
    ],
)
def test_bad_states_name_the_field(text, says):
    with pytest.raises(StateTextError, match=says):
        parse_state_text(text, "frozenlake")


@given(tasks, seeds)
def test_answers_to_questions_stand_in_the_state_text(task, seed):
    state = sample(*task, seed)
    asked = questions(state)
    assert len({q for q, _ in asked}) == len(asked)
    whole, *parts = [a for _, a in asked if not a.startswith("Legal")]
    assert whole == " ".join(parts) == state_text(state)


@given(tasks, seeds)
def test_only_the_teacher_reads_the_reference(task, seed):
    state = sample(*task, seed)
    plan = solve(state)
    assert "Reference" in symbolic_prompt(state, "brief", plan).user
    assert "Reference" not in symbolic_prompt(state, "brief").user


@pytest.mark.parametrize("style", PROMPT_STYLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_full_instructions_name_every_sentence_of_the_format(family, style):
    text = instruction(family, style)
    if style == "full":
        state = sample(family, LEVELS[family][0], 0)
        for name in state_text(state).split(". "):
            assert name.split(" (")[0].split(" none")[0].split()[0] in text
    assert "\n" not in text


def test_unknown_names():
    with pytest.raises(PromptError, match="styles are"):
        instruction("maze", "chatty")
    with pytest.raises(UnknownFamilyError):
        parse_response("", "chess")


def test_digest_follows_the_style():
    assert prompts_digest("brief") != prompts_digest("full")


def test_texts_are_what_they_always_were():
    # Weights were trained on these texts: a change of one would silently be a worse model.
    assert prompts_digest("brief").startswith("1cbffd4a0c906e19")
    assert prompts_digest("full").startswith("dff7ad8dfd2e92d5")
    assert prompts_digest("full", ["maze"]).startswith("27196c76519a3130")
    digest = hashlib.sha256()
    for family in FAMILIES:
        for level in LEVELS[family]:
            for seed in range(12):
                state = sample(family, level, seed)
                plan = solve(state)
                texts = [response_text(state, plan), instruction(family, "full")]
                texts += [word for pair in questions(state) for word in pair]
                for style in PROMPT_STYLES:
                    texts += [symbolic_prompt(state, style, p).user for p in (plan, None)]
                digest.update("\0".join(texts).encode())
    assert digest.hexdigest() == "5f5008db0a1f75f7a9201a5eae10f0bd3e65955db84137a53cd050790ea8f780"
