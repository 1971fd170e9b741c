"""Scores, averages, intervals, and results that are written, read back and compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsd_core.evaluation.answers import evaluate, judge, read_states
from mgsd_core.evaluation.compare import CompareError, compare, comparison_table
from mgsd_core.evaluation.intervals import (
    Level,
    add_intervals,
    mcnemar,
    paired,
    wilson,
    wilson_average,
)
from mgsd_core.evaluation.results import (
    MOST_PICTURES,
    ResultsError,
    read_results,
    write_results,
)
from mgsd_core.evaluation.score import score
from mgsd_core.evaluation.summary import MEASURES, summarise, table
from mgsd_core.prompts import parse_response, response_text, state_text
from mgsd_core.scenes import Scenes
from sim import FAMILIES, LEVELS, FrozenLake, MiniBehaviour, format_plan, sample, simulate, solve
from sim.planning import optimal_steps

LAKE = FrozenLake.from_rows(["SFF", "FHF", "FFG"])
OFFICE = MiniBehaviour(5, (0, 0), (0, 1), frozenset((r, c) for r in (3, 4) for c in (2, 3, 4)))
tasks = st.sampled_from([(f, level) for f in FAMILIES for level in LEVELS[f]])


def _score(text, state=LAKE, scene="scene"):
    return score(scene, state, solve(state), parse_response(text, state.family), text)


# --- one response -------------------------------------------------------------------------------


@given(tasks, st.integers(0, 10**6))
def test_perfect_responses_score_full(task, seed):
    state = sample(*task, seed)
    record = _score(response_text(state, solve(state)), state)
    assert all(getattr(record, measure) == 1 for measure in MEASURES)
    assert all(record.fields.values())
    assert record.consistent
    assert (record.failure, record.cause, record.problem) == (None, None, None)
    assert (record.family, record.level) == task


@pytest.mark.parametrize(
    ("answer", "success", "optimal", "legal", "progress", "spl", "failure"),
    [
        ("<answer>R R D D</answer>", True, True, True, 1, 1, None),
        ("<answer>R L R R D D</answer>", True, False, True, 0.25, 4 / 6, None),
        ("<answer>R R</answer>", False, False, True, 0.5, 0, "incomplete"),
        ("<answer>R D D</answer>", False, False, False, 0.25, 0, "hole"),
        ("<answer>U</answer>", False, False, False, 0, 0, "off_grid"),
        ("<answer></answer>", False, False, True, 0, 0, "incomplete"),
        ("R R D D", False, False, False, 0, 0, "unparsable"),
    ],
)
def test_plans_are_judged_in_the_true_state(
    answer, success, optimal, legal, progress, spl, failure
):
    record = _score(f"{state_text(LAKE)} {answer}")
    assert (record.success, record.optimal, record.legal) == (success, optimal, legal)
    assert (record.progress, record.spl) == (progress, pytest.approx(spl))
    assert record.failure == failure
    assert record.parsed == (failure != "unparsable") == (record.problem is None)
    assert record.state


def test_spl_is_of_the_way_and_not_of_actions():
    plan = solve(OFFICE)
    assert [a.value for a in plan].count("PICK") == 1
    there_and_back = format_plan((*plan[:1], *plan[1:]))
    record = _score(f"{state_text(OFFICE)} {there_and_back}", OFFICE)
    moves = sum(a.value not in ("PICK", "DROP") for a in plan)
    assert (record.spl, record.steps) == (1.0, moves + 2)


def test_who_has_nothing_to_go_has_gone_the_shortest_way():
    state = MiniBehaviour(5, (2, 2), (1, 2), frozenset((r, c) for r in (3, 4) for c in (1, 2, 3)))
    assert [a.value for a in solve(state)] == ["PICK", "DROP"]
    assert _score(response_text(state, solve(state)), state).spl == 1.0


@given(tasks, st.integers(0, 10**4), st.data())
def test_progress_is_the_part_that_a_shortest_plan_could_begin_with(task, seed, data):
    state = sample(*task, seed)
    best = solve(state)
    kept = data.draw(st.integers(0, len(best)))
    other = data.draw(st.lists(st.sampled_from(sorted(set(best))), max_size=4))
    steps = optimal_steps(state, (*best[:kept], *other))
    assert kept <= steps <= len(best)
    assert (steps == len(best)) == simulate(state, (*best[:kept], *other)).optimal


WRONG = FrozenLake(3, (0, 0), (2, 2), frozenset({(0, 1)}))


@pytest.mark.parametrize(
    ("state", "answer", "cause", "consistent"),
    [
        (LAKE, "<answer>R R</answer>", "reasoning", False),
        (WRONG, "<answer>D R R D</answer>", "perception", True),
        (WRONG, "<answer>D R</answer>", "both", False),
        (WRONG, "<answer>D D R R</answer>", None, True),  # lucky
        (None, "<answer>R D</answer>", "no_state", None),
        (LAKE, "go right", "no_plan", None),
        (None, "go right", "no_plan", None),
    ],
)
def test_failures_have_a_cause(state, answer, cause, consistent):
    record = _score(f"{'' if state is None else state_text(state)} {answer}")
    assert (record.cause, record.consistent) == (cause, consistent)
    assert (record.cause is None) == record.success == (record.failure is None)


def test_fields_are_judged_one_by_one():
    wrong = state_text(FrozenLake(3, (0, 1), (2, 2), frozenset({(1, 1)})))
    record = _score(f"{wrong} <answer>R R D D</answer>")
    assert record.success
    assert not record.state
    assert record.fields == {"size": True, "start": False, "goal": True, "holes": True}


# --- how long an answer may be ------------------------------------------------------------------


@pytest.mark.parametrize(
    "answers",
    [
        lambda backbone, scenes, n: evaluate(backbone, scenes, "image", n),
        lambda backbone, scenes, n: evaluate(backbone, scenes, "text", n),
        lambda backbone, scenes, n: evaluate(backbone, scenes, "text", n, room=len),
        lambda backbone, scenes, n: judge(scenes, partial(read_states, backbone), n),
    ],
    ids=["image", "text", "a room of each family", "state"],
)
def test_how_long_an_answer_may_be_does_not_depend_on_its_neighbours(
    answers, restless_backbone, make_picture
):
    states = [sample(*task, 0) for task in (("frozenlake", 3), ("frozenlake", 6), ("maze", 3))]
    names = [f"scene {i}" for i in range(len(states))]
    images = np.stack([make_picture(i) for i in range(len(states))])
    scenes = Scenes(images, states, [solve(state) for state in states], names, "")
    alone = answers(restless_backbone, scenes, 1)
    # It babbles: every answer is as long as it may be, and that is not the same for all.
    assert len({len(restless_backbone.tokenizer.encode(record.text)) for record in alone}) > 1
    assert answers(restless_backbone, scenes, len(states)) == alone


# --- averages -----------------------------------------------------------------------------------


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
    assert summary["macro"]["progress"] == pytest.approx((0.375 + 1.0) / 2)
    assert summary["count"] == 6
    # Success given a recovered state counts only responses that recovered it.
    assert summary["families"]["frozenlake"]["levels"]["4"]["success_given_state"] is None
    assert summary["families"]["frozenlake"]["levels"]["3"]["failures"] == {
        "unparsable": {"no_plan": 1}
    }


def test_a_plan_that_fits_what_was_seen_is_consistent():
    texts = [
        f"{state_text(WRONG)} <answer>D R R D</answer>",
        f"{state_text(WRONG)} <answer>R</answer>",
        "<answer>R</answer>",
    ]
    summary = summarise([_score(text) for text in texts])
    assert summary["macro"]["consistent"] == 0.5


def test_table_has_a_row_each_and_percentages():
    good = [_maze_record(True)]
    told = add_intervals(summarise(good), good)
    text = table([("base", summarise([_maze_record(False)])), ("mgsd", told)])
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[2].split() == ["base", *["0.0"] * 6]
    assert lines[3].split() == ["mgsd", "100.0", "[20.7,", "100.0]", *["100.0"] * 5]


# --- intervals ----------------------------------------------------------------------------------


def test_wilsons_interval():
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe 1998, by hand
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(1.0, 10)[1] == 1.0


@given(st.integers(1, 500), st.data())
def test_wilsons_interval_holds_the_share(count, data):
    successes = data.draw(st.integers(0, count))
    low, high = wilson(successes / count, count)
    assert 0 <= low <= successes / count <= high <= 1
    assert high - low < 1


def test_intervals_stand_beside_all_averages_and_are_the_same_again():
    records = [
        *(_lake_record(3, i % 4 > 0) for i in range(40)),
        *(_lake_record(4, i % 2 > 0) for i in range(30)),
        *(_maze_record(i % 3 > 0) for i in range(20)),
    ]
    summary = summarise(records)
    told = add_intervals(summary, records)
    assert told == add_intervals(summary, records)
    lake = told["families"]["frozenlake"]
    for place in (told["macro"], lake, lake["levels"]["3"]):
        for measure in MEASURES:
            low, high = place["intervals"][measure]
            assert low <= place[measure] <= high
    # They agree with the normal approximation: variances of levels, then of families.
    variance = (0.75 * 0.25 / 40 + 0.5 * 0.5 / 30) / 4
    low, high = lake["intervals"]["success"]
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.1)
    variance = variance / 4 + (2 / 9) * 1 / 20 / 4
    low, high = told["macro"]["intervals"]["success"]
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.1)
    assert lake["levels"]["3"]["intervals"]["success"] == pytest.approx(wilson(0.75, 40), abs=1e-6)
    assert set(lake["levels"]["3"]["intervals"]["fields"]) == {"size", "start", "goal", "holes"}


def test_few_scenes_are_not_certainty():
    # Every scene went one way in each level: a bootstrap would see no spread at all.
    records = [_lake_record(level, level == 3) for level in (3, 4)] + [_maze_record(True)]
    macro = add_intervals(summarise(records), records)["macro"]
    assert macro["success"] == 0.75
    low, high = macro["intervals"]["success"]
    assert low < 0.35 and high > 0.93
    low, high = macro["intervals"]["progress"]
    assert low < 0.4 and high > 0.6
    told = paired([(_maze_record(False), _maze_record(True))])["macro"]["success"]
    assert told["interval"][0] < 0 < told["interval"][1]


@pytest.mark.parametrize(("share", "count"), [(0.97, 5), (0.97, 20), (0.5, 5), (0.99, 20)])
def test_intervals_of_averages_hold_the_truth_as_often_as_they_say(share, count):
    rng = np.random.default_rng(0)
    held = 0
    for successes in rng.binomial(count, share, size=(2000, 9)):
        levels = [Level(found / count, count, 1 / 9) for found in successes]
        low, high = wilson_average(levels)
        held += low <= share <= high
    assert 0.93 < held / 2000 <= 0.99


def test_mcnemars_exact_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 6) == mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    assert mcnemar(2000, 2100) == pytest.approx(0.122, abs=0.003)  # normal approximation
    assert mcnemar(0, 5000) == 0.0
    assert mcnemar(48_000, 52_000) < 1e-30
    assert mcnemar(3, 4) == 1.0


@settings(max_examples=20)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_two_models_are_compared_by_pairs(outcomes):
    pairs = [(_lake_record(3, a), _lake_record(3, b)) for a, b in outcomes]
    told = paired(pairs)["macro"]["success"]
    only = [outcomes.count((True, False)), outcomes.count((False, True))]
    assert [told["only_first"], told["only_second"]] == only
    assert told["difference"] == pytest.approx((only[1] - only[0]) / len(outcomes))
    assert told["interval"][0] <= told["difference"] + 1e-9
    assert told["interval"][1] >= told["difference"] - 1e-9
    assert told["p"] == mcnemar(*only)


def test_pairs_are_surer_than_two_intervals():
    # The second fails where the first does, and on two scenes more.
    hard = [i % 2 == 0 for i in range(60)]
    pairs = [(_lake_record(3, not h), _lake_record(3, not h and i > 4)) for i, h in enumerate(hard)]
    told = paired(pairs)["macro"]["success"]
    assert told["difference"] == pytest.approx(-2 / 60)
    assert told["interval"][1] - told["interval"][0] < 0.11
    low, high = wilson(28 / 60, 60)
    assert high - low > 0.2


# --- results on disk ----------------------------------------------------------------------------


def _scenes(count=6, families=("frozenlake", "maze"), shown="flat"):
    states = [sample(f, 3, seed) for f in families for seed in range(count)]
    names = [f"{s.family}-{i}" for i, s in enumerate(states)]
    images = np.zeros((len(states), 32, 32, 3), np.uint8)
    images[:, :, :, 0] = np.arange(len(states))[:, None, None]
    grids = [None, *[((0.2, 0.0, 0.1), (0.0, 0.2, 0.1), (0.0, 0.0, 1.0))] * (len(states) - 1)]
    pictures = [f"picture {shown} {i}" for i in range(len(states))]
    return Scenes(images, states, [solve(s) for s in states], names, "0" * 64, grids, pictures)


def _judged(scenes, right):
    return [
        _score(response_text(s, p) if right(i) else f"{state_text(s)} <answer></answer>", s, n)
        for i, (s, p, n) in enumerate(zip(scenes.states, scenes.plans, scenes.names, strict=True))
    ]


def _write(out, right, scenes=None, sources=("image",)):
    scenes = scenes or _scenes()
    records = {source: _judged(scenes, right) for source in sources}
    report = summarise(records[sources[0]]) | {"model": out.name, "model_digest": "d"}
    write_results(out, report, records, scenes)
    return read_results(out)


def test_results_are_read_back_as_they_were_written(tmp_path):
    scenes = _scenes()
    results = _write(tmp_path / "a", lambda i: i % 2, scenes, ("image", "text"))
    assert results.records == {s: _judged(scenes, lambda i: i % 2) for s in ("image", "text")}
    assert results.states == dict(zip(scenes.names, scenes.states, strict=True))
    assert results.report["macro"]["success"] == 0.5
    assert results.report["schema_version"] == 2
    assert [shown.scene for shown in results.gallery] == scenes.names
    assert [shown.grid for shown in results.gallery] == list(scenes.grids)
    assert all(shown.url.startswith("data:image/jpeg;base64,") for shown in results.gallery)
    # What was asked for before and is not now, is gone, and so is the page about it.
    (tmp_path / "a" / "report.html").write_text("old")
    _write(tmp_path / "a", lambda i: True, scenes, ("image",))
    assert set(read_results(tmp_path / "a").records) == {"image"}
    assert not (tmp_path / "a" / "report.html").exists()


def test_a_gallery_shows_failures_and_successes_of_all(tmp_path):
    scenes = _scenes(150)
    results = _write(tmp_path, lambda i: i % 10, scenes)
    records = {record.scene: record for record in results.records["image"]}
    shown = [records[shown.scene] for shown in results.gallery]
    assert len(shown) == MOST_PICTURES
    for family in ("frozenlake", "maze"):
        of_family = [record.success for record in shown if record.family == family]
        assert (of_family.count(False), of_family.count(True)) == (15, 45)
    few = _write(tmp_path / "b", lambda i: i < 5, scenes)
    assert len(few.gallery) == MOST_PICTURES


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("results.json", "{", "results.json: not a JSON object"),
        ("results.json", '{"schema_version": 1}', "has the schema 1, not 2"),
        ("responses_image.jsonl", "[1]", "line 1: not a JSON object"),
        ("responses_image.jsonl", '{"scene": "a"}', "line 1: 'family' is missing"),
        ("gallery.jsonl", '{"scene": "a", "url": "http://x"}', "line 1: the picture is no data"),
        ("gallery.jsonl", '{"scene": "a", "url": "data:image/png;,", "grid": [[1]]}', "3 rows of"),
    ],
)
def test_damaged_results_are_named_by_line(file, line, said, tmp_path):
    _write(tmp_path, lambda i: True)
    (tmp_path / file).write_text(f"{line}\n")
    with pytest.raises(ResultsError, match=said):
        read_results(tmp_path)


def test_a_scene_is_answered_once_and_halves_of_characters_are_nothing(tmp_path):
    _write(tmp_path, lambda i: True)
    file = tmp_path / "responses_image.jsonl"
    lines = file.read_text().splitlines()
    torn = json.dumps({**json.loads(lines[0]), "text": "a\ud800b"})
    file.write_text("\n".join([torn, *lines[1:]]) + "\n")
    assert read_results(tmp_path).records["image"][0].text == "a?b"
    file.write_text("\n".join([*lines, lines[0]]) + "\n")
    with pytest.raises(ResultsError, match="line 13: frozenlake-0 stands there twice"):
        read_results(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    _write(out, lambda i: i % 2, _scenes(1))
    return out, json.loads((out / "responses_image.jsonl").read_text().splitlines()[0])


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_response_with_another_value_is_refused_or_read(written, data):
    out, line = written
    file = out / "responses_image.jsonl"
    line = dict(line)
    line[data.draw(st.sampled_from(["fields", "progress", *sorted(line)]))] = data.draw(
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.none()),
            st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.booleans())),
        )
    )  # fmt: skip
    file.write_text(json.dumps(line) + "\n")
    try:
        record = read_results(out).records["image"][0]
    except ResultsError as error:
        assert "line 1" in str(error)
    else:
        summarise([record])


# --- comparing ----------------------------------------------------------------------------------


def test_two_results_are_compared_scene_by_scene(tmp_path):
    first = _write(tmp_path / "a", lambda i: i % 2 == 0)
    second = _write(tmp_path / "b", lambda i: i != 0)
    told = compare(first, second)
    assert told["count"] == 12
    assert told["macro"]["success"]["difference"] == pytest.approx(5 / 12)
    assert told["changed"]["only_first"] == [first.records["image"][0].scene]
    assert len(told["changed"]["only_second"]) == 6
    assert told["families"]["maze"]["levels"]["3"]["success"]["first"] == 0.5
    assert told["first"]["model"] == "a"
    assert json.loads(json.dumps(told)) == told
    text = comparison_table(told)
    assert "+41.7" in text and "maze 3" in text and "McNemar" in text
    back = compare(second, first)
    assert back["macro"]["success"]["difference"] == -told["macro"]["success"]["difference"]


def test_scenes_of_one_alone_are_left_out_and_said(tmp_path):
    first = _write(tmp_path / "a", lambda i: True, _scenes(6, ("maze",)))
    second = _write(tmp_path / "b", lambda i: True, _scenes(4, ("maze",)))
    told = compare(first, second)
    assert (told["count"], told["left_out"]) == (4, {"first": 2, "second": 0})


def test_other_pictures_of_the_same_scenes_are_noticed(tmp_path):
    first = _write(tmp_path / "a", lambda i: True, _scenes(3), ("image", "text"))
    second = _write(tmp_path / "b", lambda i: True, _scenes(3, shown="panda"), ("image", "text"))
    told = compare(first, second)
    assert told["other_pictures"] == 6
    assert "Not the same pictures in 6 scenes" in comparison_table(told)
    assert compare(first, second, "text")["other_pictures"] == 0
    assert "Not the same" not in comparison_table(compare(first, first))


def test_what_cannot_be_compared_is_refused(tmp_path):
    first = _write(tmp_path / "a", lambda i: True, _scenes(2, ("maze",)))
    other = _write(tmp_path / "b", lambda i: True, _scenes(2, ("frozenlake",)))
    with pytest.raises(CompareError, match="no scene in common"):
        compare(first, other)
    with pytest.raises(CompareError, match="no responses to text; it has: image"):
        compare(first, first, "text")
    moved = replace(
        first, states=dict(zip(first.states, reversed(list(first.states.values())), strict=True))
    )
    with pytest.raises(CompareError, match="maze-0 is another scene"):
        compare(first, moved)


def _lake_record(level, right):
    state = sample("frozenlake", level, 0)
    return _score(response_text(state, solve(state)) if right else "nonsense", state)


def _maze_record(right):
    state = sample("maze", 3, 0)
    return _score(response_text(state, solve(state)) if right else "nonsense", state)
