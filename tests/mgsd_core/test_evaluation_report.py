"""The page about an evaluation, opened in a real browser where there is one."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_family import parcels_installed

from mgsd_core.cli import main
from mgsd_core.evaluation.answers import plan_records
from mgsd_core.evaluation.boards import MOST_STEPS, Board, draw_board, field_letters, is_usable
from mgsd_core.evaluation.compare import CompareError
from mgsd_core.evaluation.intervals import add_intervals, paired
from mgsd_core.evaluation.report import evaluation_report, write_report
from mgsd_core.evaluation.results import Results, ResultsError, read_results, write_results
from mgsd_core.evaluation.score import NO_ANSWER, Record, score
from mgsd_core.evaluation.summary import summarise
from mgsd_core.prompts import parse_response, response_text, state_text
from mgsd_core.scenes import Scenes
from sim import Action, FrozenLake, Maze, format_plan, sample, solve

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "<script>document.title='taken'</script>"
TASKS = (("frozenlake", 3), ("frozenlake", 4), ("maze", 3), ("minibehaviour", 5))
KINDS = ("perfect", "unseen", "unplanned", "nonsense", "roundabout")
EACH = 5

# Cells of a board that fills the picture, of a side of 5 cells or less.
GRID = ((0.18, 0.0, 0.14), (0.0, 0.18, 0.14), (0.0, 0.0, 1.0))


def say(kind: str, index: int, state) -> str:
    """Return a response of some kind to a state."""
    plan = solve(state)
    other = sample(state.family, state.size, 1000 + index)
    back = {"L": "R", "R": "L", "U": "D", "D": "U"}
    if kind == "unseen":
        return response_text(other, solve(other))
    if kind == "unplanned":
        return f"{state_text(state)} {format_plan(plan[:-1])}"
    if kind == "nonsense":
        return HOSTILE
    if kind == "roundabout" and plan[0].value in back:
        detour = [plan[0], Action(back[plan[0].value]), *plan]
        return f"{state_text(state)} {format_plan(detour)}"
    return response_text(state, plan)


def make_scenes(tasks=TASKS, grids: bool = True) -> Scenes:
    states = [sample(family, level, seed) for family, level in tasks for seed in range(EACH)]
    pictures = [np.full((48, 48, 3), 40 + 9 * i % 200, np.uint8) for i in range(len(states))]
    return Scenes(
        np.stack(pictures),
        states,
        [solve(state) for state in states],
        [f"{state.family}-{state.size}-{i}" for i, state in enumerate(states)],
        "d" * 64,
        [GRID if grids else None] * len(states),
    )


def answered(scenes: Scenes, kinds=KINDS) -> list[Record]:
    records = []
    for i, (name, state, plan) in enumerate(
        zip(scenes.names, scenes.states, scenes.plans, strict=True)
    ):
        text = say(kinds[i % len(kinds)], i, state)
        records.append(score(name, state, plan, parse_response(text, state.family), text))
    return records


def told(records: list[Record]) -> dict[str, Any]:
    return add_intervals(summarise(records), records)


def write(
    out: Path,
    scenes: Scenes,
    kinds=KINDS,
    symbolic: bool = True,
    swapped: bool = True,
    **more: Any,
) -> Path:
    records = {"image": answered(scenes, kinds)}
    report: dict[str, Any] = {"model": "runs/a & b", "model_digest": "0123456789abcdef" * 4}
    report |= {"data": "data/held out", "data_digest": scenes.digest, "split": "test"}
    report |= {"input": "image", **told(records["image"])}
    if symbolic:
        records["text"] = answered(scenes, ["perfect", "perfect", "unplanned"])
        gap = paired(list(zip(records["image"], records["text"], strict=True)))["macro"]["success"]
        report |= {"symbolic": told(records["text"]), "modality_gap": gap["difference"]}
        report["modality_gap_interval"] = gap["interval"]
    if swapped:
        others, shown = scenes.swapped()
        records["swapped"] = answered(others, ["unseen"])
        chance = summarise(plan_records(others, [scenes.plans[i] for i in shown]))
        report["image_swapped"] = told(records["swapped"]) | {"chance": chance}
    write_results(out, report | more, records, scenes)
    return out


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return make_scenes()


@pytest.fixture(scope="module")
def written(scenes: Scenes, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("results"), scenes)


@pytest.fixture(scope="module")
def results(written: Path) -> Results:
    return read_results(written)


@pytest.fixture(scope="module")
def other(scenes: Scenes, tmp_path_factory) -> Results:
    kinds = ["nonsense", "perfect", "perfect", "unseen", "perfect", "unplanned"]
    return read_results(
        write(tmp_path_factory.mktemp("other"), scenes, kinds, model=f"other {HOSTILE}")
    )


def asks_for_nothing(page: str) -> bool:
    return not re.findall(r"(?:src|href)=\"(?!data:)|https?:|url\(|@import", page)


# --- the page -----------------------------------------------------------------------------------


def test_a_page_holds_everything_and_asks_for_nothing(written: Path, results: Results) -> None:
    path = write_report(written)
    page = path.read_text()
    assert path == written / "report.html"
    assert page == evaluation_report(results) == evaluation_report(read_results(written))
    assert asks_for_nothing(page)
    assert page.count("<figure") == page.count('src="data:image/jpeg;base64,') == len(TASKS) * EACH
    assert page.count('<svg class="over" viewBox="0 0 1000 1000"') == len(TASKS) * EACH
    for words in ("<h1>runs/a &amp; b</h1>", "data/held out", "0123456789ab</code>", "split test"):
        assert words in page
    success = results.report["macro"]["success"]
    low, high = results.report["macro"]["intervals"]["success"]
    assert f"<b>{100 * success:.1f} %</b>" in page
    assert f"95 % interval {100 * low:.1f}–{100 * high:.1f} %" in page
    for title in ("modality gap", "pictures swapped", "What seeing costs", "Why plans fail"):
        assert title in page
    for failure in ("no plan to be read", "ends too early"):
        assert f'data-failure="{failure}"' in page


def test_what_others_write_is_shown_and_not_believed(
    scenes: Scenes, tmp_path: Path, other: Results
) -> None:
    names = [f'{i}"{HOSTILE}' for i in range(len(scenes.names))]
    hostile = replace(scenes, names=names)
    more = dict.fromkeys(("model", "model_digest", "data", "split"), HOSTILE)
    more |= {"problems": [HOSTILE], "failed": [{"scene": HOSTILE, "reason": HOSTILE}]}
    out = write(tmp_path, hostile, **more, endpoint={HOSTILE: HOSTILE})
    lines = (out / "responses_image.jsonl").read_text().splitlines()
    record = json.loads(lines[3])
    assert not record["success"]
    lines[3] = json.dumps(record | {"failure": HOSTILE, "cause": HOSTILE, "problem": HOSTILE})
    (out / "responses_image.jsonl").write_text("\n".join(lines))
    page = evaluation_report(read_results(out))
    assert HOSTILE not in page and "<script>document" not in page
    assert page.count("&lt;script&gt;document") > 20
    assert asks_for_nothing(page)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_what_was_not_asked_for_is_not_there(
    scenes: Scenes, tmp_path: Path, symbolic: bool, swapped: bool
) -> None:
    page = evaluation_report(read_results(write(tmp_path, scenes, KINDS, symbolic, swapped)))
    assert ("What seeing costs" in page) == ("modality gap</span>" in page) == symbolic
    assert ("pictures swapped" in page) == ("chance gives" in page) == swapped
    assert "Compared with" not in page and "solved by</span>" not in page
    assert re.findall(r'data-against="[^"]', page) == []


def test_without_grids_a_board_stands_below_the_picture(tmp_path: Path) -> None:
    page = evaluation_report(read_results(write(tmp_path, make_scenes(grids=False))))
    assert page.count('<svg class="board"') == page.count("<img") == len(TASKS) * EACH
    assert '<svg class="over" viewBox="0 0 1000' not in page


def test_a_model_that_never_fails_has_no_failures_to_show(scenes: Scenes, tmp_path: Path) -> None:
    page = evaluation_report(read_results(write(tmp_path, scenes, ["perfect"])))
    assert "No plan fails." in page
    assert 'data-cause="perception"' not in page
    assert "fails:" not in page


def test_results_that_read_text_alone_make_a_page(scenes: Scenes, tmp_path: Path) -> None:
    out = write(tmp_path, scenes, symbolic=False, swapped=False, input="text")
    (out / "responses_image.jsonl").rename(out / "responses_text.jsonl")
    page = evaluation_report(read_results(out))
    assert "reads symbolic text" in page and "reads pictures" not in page
    assert "What seeing costs" not in page


def test_requests_without_an_answer_are_said(scenes: Scenes, tmp_path: Path) -> None:
    failed = [{"scene": scenes.names[0], "reason": "timed out"}]
    out = write(tmp_path, scenes, failed=failed, problems=["a.json: no plan", "b.json: twice"])
    lines = (out / "responses_image.jsonl").read_text().splitlines()
    record = json.loads(lines[3]) | {"failure": NO_ANSWER, "text": ""}
    (out / "responses_image.jsonl").write_text("\n".join([json.dumps(record), *lines[4:]]))
    (out / "gallery.jsonl").unlink()
    page = evaluation_report(read_results(out))
    assert "Requests without an answer: 1." in page and "timed out" in page
    assert "Cases left out: 2." in page and "b.json: twice" in page
    assert '<th scope="row">no answer</th>' in page
    assert "<figure" not in page and "<h2>Scenes" not in page


def test_averages_that_are_missing_are_dashes(results: Results) -> None:
    macro = dict.fromkeys(results.report["macro"])
    page = evaluation_report(replace(results, report=results.report | {"macro": macro}))
    assert "success (macro)</span><b>–</b>" in page
    bare = {"macro": {}, "families": {"maze": {"levels": {"3": {}}}}}
    page = evaluation_report(replace(results, report=bare))
    assert "None" not in page and page.count("–") > 20


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"macro": 3}, "'macro' is no object"),
        ({"families": {"maze": []}}, "maze"),
        ({"macro": {"success": "1"}}, "'success' is no number"),
        ({"macro": {"success": float("nan")}}, "'success' is no number"),
        ({"macro": {"success": 10**400}}, "'success' is no number"),
        ({"macro": {"intervals": {"success": [1]}}}, "no pair of numbers"),
        ({"model": {"name": "a"}}, "'model' is no text"),
        ({"symbolic": "good"}, "symbolic"),
        ({"image_swapped": [1]}, "image_swapped"),
        ({"failed": "all"}, "'failed' is no list"),
    ],
)
def test_what_is_no_report_is_refused(results: Results, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ResultsError, match=said):
        evaluation_report(replace(results, report=results.report | wrong))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_results_give_a_page_or_say_why_not(results: Results, data: st.DataObject) -> None:
    report = json.loads(json.dumps(dict(results.report)))
    place = report
    while True:
        name = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[name], dict) or not place[name] or data.draw(st.booleans()):
            break
        place = place[name]
    place[name] = data.draw(anything)
    damaged = replace(results, report=report, gallery=results.gallery[:2])
    try:
        page = evaluation_report(damaged)
    except ResultsError:
        return
    assert asks_for_nothing(page)


def test_a_picture_of_no_response_is_refused(results: Results) -> None:
    shown = [replace(results.gallery[0], scene="elsewhere")]
    with pytest.raises(ResultsError, match="'elsewhere'"):
        evaluation_report(replace(results, gallery=shown))
    with pytest.raises(ResultsError, match="no responses"):
        evaluation_report(replace(results, records={"image": []}))


# --- compared with another model ----------------------------------------------------------------


def test_two_models_are_compared_and_their_scenes_found(results: Results, other: Results) -> None:
    page = evaluation_report(results, other)
    assert page == evaluation_report(results, other)
    assert asks_for_nothing(page) and HOSTILE not in page
    ours, theirs = ({r.scene for r in x.records["image"] if r.success} for x in (results, other))
    assert f"{len(ours - theirs)} scenes that only this model solves" in page
    assert f"{len(theirs - ours)} scenes that only the other one solves" in page
    assert page.count("<figure") == len(re.findall(r'<figure [^>]*data-against="[a-z]', page))
    only = re.findall(r'<figure [^>]*data-against="the other only"', page)
    assert len(only) == len(theirs - ours) > 0
    # Seen from the other side, every difference has the other sign.
    mine, its = (
        re.search(r"<b>([+−]?[\d.]+) points of macro", page)
        for page in (page, evaluation_report(other, results))
    )
    assert mine is not None and its is not None
    assert {mine[1][0], its[1][0]} == {"+", "−"} and mine[1][1:] == its[1][1:]


def test_models_that_saw_other_pictures_are_told_apart(results: Results) -> None:
    names = [record.scene for record in results.records["image"]]
    ours, theirs = (
        dataclasses.replace(results, pictures=dict.fromkeys(names, digest)) for digest in "ab"
    )
    warning = f"Not the same pictures in {len(names)} scenes"
    assert warning in evaluation_report(ours, theirs)
    assert warning not in evaluation_report(ours, ours)


def test_what_cannot_be_compared_is_refused(results: Results, tmp_path: Path) -> None:
    far = write(tmp_path, replace(make_scenes(), names=[str(i) for i in range(len(TASKS) * EACH)]))
    with pytest.raises(CompareError, match="no scene in common"):
        evaluation_report(results, read_results(far))


# --- the command --------------------------------------------------------------------------------


def test_the_command_writes_the_page_again(written: Path, other: Results, tmp_path, capsys) -> None:
    before = {p.name: p.read_bytes() for p in written.iterdir() if p.name != "report.html"}
    (written / "report.html").unlink(missing_ok=True)
    assert main(["report", str(written)]) == 0
    page = (written / "report.html").read_bytes()
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"report": str(written / "report.html"), "bytes": len(page)}
    out = tmp_path / "pages" / "both.html"
    assert main(["report", str(written), "--compare", str(other.path), "--out", str(out)]) == 0
    assert "Compared with" in out.read_text()
    assert (written / "report.html").read_bytes() == page
    assert {p.name: p.read_bytes() for p in written.iterdir() if p.name != "report.html"} == before


def test_bad_input_to_the_command_is_one_line(written: Path, tmp_path: Path, capsys) -> None:
    far = write(tmp_path / "far", make_scenes([("maze", 4)]))
    torn = shutil.copytree(written, tmp_path / "torn")
    (torn / "report.html").write_text("as it was")
    (torn / "results.json").write_text('{"schema_version": 2, "macro": "good"}')
    for arguments, said in (
        ([str(tmp_path)], "results.json"),
        ([str(torn)], "'macro' is no object"),
        ([str(written), "--compare", str(far)], "no scene in common"),
        ([str(written), "--out", str(written / "results.json")], "ends in .html"),
    ):
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert (torn / "report.html").read_text() == "as it was"


# --- what is drawn ------------------------------------------------------------------------------

LAKE = FrozenLake.from_rows(["SFF", "FHF", "FFG"])
MAZE = Maze.from_wall_bits([[13, 5, 9], [4, 2, 8], [6, 3, 10]], (0, 0), (2, 2))


def drawn(board: Board) -> dict[str, int]:
    """Return how many outlines there are of each kind of what was seen."""
    counts: dict[str, int] = {}
    for shape in board.state:
        counts[shape.kind] = counts.get(shape.kind, 0) + shape.outline.count("M")
    return counts


def test_what_was_seen_is_right_wrong_or_missed() -> None:
    assert drawn(draw_board(LAKE, LAKE, None, GRID)) == {"right": 3}
    seen = FrozenLake(3, (0, 0), (2, 1), frozenset({(1, 1), (0, 1), (0, 2)}))
    assert drawn(draw_board(LAKE, seen, None, GRID)) == {"right": 2, "missed": 1, "wrong": 3}
    assert drawn(draw_board(LAKE, None, None, GRID)) == {"missed": 3}
    larger = FrozenLake(4, (0, 0), (2, 2), frozenset({(1, 1)}))
    assert drawn(draw_board(LAKE, larger, None, GRID)) == {"missed": 3, "wrong": 3}


def test_walls_between_cells_are_compared_one_by_one() -> None:
    opened = [list(row) for row in MAZE.walls]
    opened[0][0] &= ~8
    opened[0][1] &= ~4
    seen = Maze.from_wall_bits(opened, (0, 0), (2, 2))
    cells, walls = 2, 2
    assert drawn(draw_board(MAZE, MAZE, None, GRID)) == {"right": cells + walls}
    assert drawn(draw_board(MAZE, seen, None, GRID)) == {"right": cells + 1, "missed": 1}
    assert drawn(draw_board(seen, MAZE, None, GRID)) == {"right": cells + 1, "wrong": 1}


@pytest.mark.parametrize(
    ("plan", "kinds"),
    [
        ("R R D D", ["route", "heads", "arrived"]),
        ("R R", ["route", "heads", "stopped"]),
        ("", ["stopped"]),
        ("R D", ["route", "heads", "astray", "fails"]),
        ("U", ["astray", "fails"]),
        ("PICK", ["fails"]),
    ],
)
def test_a_route_ends_where_the_plan_does(plan: str, kinds: list[str]) -> None:
    actions = tuple(Action(word) for word in plan.split())
    assert [shape.kind for shape in draw_board(LAKE, LAKE, actions, GRID).plan] == kinds


def test_a_way_back_is_drawn_beside_the_way_there() -> None:
    straight, back = (
        draw_board(LAKE, None, tuple(map(Action, plan.split())), GRID).plan[0].outline
        for plan in ("R R", "R L")
    )
    assert straight == "M140 140L500 140"  # corners alone
    points = re.findall(r"(\d+) (\d+)", back)
    assert len(points) == 4 and len({y for _, y in points}) == 2  # there, round, and back


def test_what_is_done_is_written_beside_the_way() -> None:
    state = sample("minibehaviour", 5, 0)
    board = draw_board(state, state, solve(state), GRID)
    words = " ".join(word.text for word in board.words)
    assert sorted(words.split()) == ["DROP", "PICK"]
    assert "act" in [shape.kind for shape in board.plan]


def test_an_endless_plan_is_drawn_in_part() -> None:
    plan = (Action.R, Action.L) * 10_000
    board = draw_board(LAKE, None, plan, GRID)
    assert sum(len(shape.outline) for shape in board.plan) < 60 * MOST_STEPS


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, 0.2, -0.1])


@given(
    st.tuples(*[st.tuples(numbers, numbers, numbers)] * 3),
    st.sampled_from(TASKS),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_any_grid_is_drawn_in_whole_numbers_or_not_used(grid, task, seed) -> None:
    state, seen = sample(*task, seed), sample(*task, seed + 1)
    if not is_usable(grid, state.size):
        return
    board = draw_board(state, seen, solve(seen), grid)
    for shape in [*board.state, *board.plan]:
        assert re.fullmatch(r"(?:[ML]-?\d{1,4} -?\d{1,4}|Z)+", shape.outline)


def test_a_board_that_is_not_in_the_picture_is_drawn_below() -> None:
    assert is_usable(GRID, 3)
    assert not is_usable(((0.2, 0, 9.0), (0, 0.2, 0.2), (0, 0, 1)), 3)
    assert not is_usable(((0.2, 0, 0.2), (0, 0.2, 0.2), (0, 0, -1)), 3)
    assert not is_usable(((0.2, 0, 0.2), (0, 0.2, 0.2), (-0.5, 0, 1)), 3)  # behind the camera


# --- a family of one's own ----------------------------------------------------------------------


@pytest.fixture
def parcels(tmp_path_factory):
    with parcels_installed(tmp_path_factory.mktemp("site")):
        yield importlib.import_module("parcels")


def test_a_family_of_ones_own_is_shown_too(parcels, tmp_path: Path) -> None:
    own = make_scenes([("parcels", 3), ("parcels", 4)])
    state = own.states[0]
    colour = {"blue": "yellow", "yellow": "blue"}[state.colour]
    out = write(tmp_path, own, ["perfect", "unseen", "nonsense"], symbolic=False)
    misread = f"{state_text(replace(state, colour=colour))} <answer>TIP</answer>"
    record = score(own.names[0], state, own.plans[0], parse_response(misread, "parcels"), misread)
    lines = (out / "responses_image.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | vars_of(record))
    (out / "responses_image.jsonl").write_text("\n".join(lines))
    page = evaluation_report(read_results(out))
    assert asks_for_nothing(page)
    assert field_letters(state) == {"robot": "R", "parcel": "P", "blue": "B", "yellow": "Y"}
    assert "R robot, P parcel, B blue, Y yellow" in page
    assert f"colour: {colour} was read, {state.colour} is true" in page
    assert 'data-failure="wrong place"' in page  # a failure of its own
    assert [s.kind for s in draw_board(state, state, (parcels.Own.TIP,), None).plan] == ["fails"]


def vars_of(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in Record.__dataclass_fields__}


# --- in a browser -------------------------------------------------------------------------------

# What a visitor does, who reports to the page around this one.
_VISIT = """<script>
const asked = [];
addEventListener("securitypolicyviolation", event => asked.push(event.blockedURI));
addEventListener("load", () => {
  const button = (name, value) => document.querySelector(
    `.filters button[data-${name}="${value}"]`);
  const seen = () => [...document.querySelectorAll(".gallery figure")]
    .filter(figure => figure.offsetParent !== null)
    .map(figure => [figure.dataset.verdict, figure.dataset.family, figure.dataset.level,
                    figure.dataset.failure, figure.dataset.cause, figure.dataset.against]);
  const press = (name, value) => { button(name, value).click(); return seen(); };
  const pressed = name => [...document.querySelectorAll(`.filters button[data-${name}]`)]
    .filter(b => b.getAttribute("aria-pressed") === "true").map(b => b.dataset[name]);
  const wide = () => document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const drawn = part => [...document.querySelectorAll(`.gallery .${part}`)]
    .filter(group => getComputedStyle(group).display !== "none").length;
  const said = {width: innerWidth, wide: wide(), all: seen()};
  said.failed = press("verdict", "failed");
  said.failedMazes = press("family", "maze");
  said.level = press("level", "3");
  said.output = document.querySelector(".filters output").textContent;
  said.count = button("verdict", "success").querySelector("small").textContent;
  said.none = press("level", "5");
  press("level", "all");
  said.pressed = ["verdict", "family", "level"].map(pressed);
  press("family", "all");
  said.only = press("against", "the other only").length;
  press("against", "all");
  said.again = press("verdict", "all").length;
  const parts = () => [drawn("state"), drawn("way")];
  said.parts = [parts()];
  for (const toggle of document.querySelectorAll(".toggles button")) {
    toggle.click();
    said.parts.push([...parts(), toggle.getAttribute("aria-pressed")]);
  }
  document.querySelector('.toggles button').click();
  said.parts.push(parts());
  const cell = [...document.querySelectorAll(".matrix button")].at(-1);
  cell.click();
  said.cell = [cell.dataset.family, cell.dataset.failure, cell.dataset.cause];
  said.found = seen();
  const view = [...document.querySelectorAll(".view")].find(v => v.offsetParent !== null);
  const across = () => Math.round(view.getBoundingClientRect().width);
  said.across = [across()];
  for (const _ of [1, 2]) {
    view.click();
    said.across.push(across(), view.getAttribute("aria-pressed"));
  }
  for (const details of document.querySelectorAll("details")) details.open = true;
  said.wideOpen = wide();
  said.loaded = [...document.images].every(image => image.complete && image.naturalWidth);
  said.requests = performance.getEntriesByType("resource").map(entry => entry.name.slice(0, 5));
  said.asked = asked;
  said.focusable = [...document.querySelectorAll("button")].every(b => b.tabIndex === 0);
  setTimeout(() => parent.postMessage(JSON.stringify(said), "*"), 200);
});</script>"""

# A window cannot be as narrow as a phone; a frame in it can.
_AROUND = """<!doctype html><title></title><body><iframe src="page.html" width="390" height="844">
</iframe><script>addEventListener("message", event => { document.title = event.data; });</script>"""


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_filters_and_toggles_work_in_a_browser(
    results: Results, other: Results, tmp_path: Path
) -> None:
    page = evaluation_report(results, other)
    visited = page.replace("</body>", _VISIT + "</body>").replace(' loading="lazy"', "")
    (tmp_path / "page.html").write_text(visited)
    (tmp_path / "around.html").write_text(_AROUND)
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--disable-background-networking"]
    command += ["--enable-logging=stderr", "--window-size=800,900", "--virtual-time-budget=6000"]
    done = subprocess.run(
        [*command, (tmp_path / "around.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    said = json.loads(title[1].replace("&amp;", "&"))
    assert "CONSOLE" not in done.stderr
    assert said["width"] == 390
    assert said["wide"] == said["wideOpen"] == 0  # nothing to be scrolled sideways
    assert said["loaded"] and said["focusable"]
    assert said["asked"] == [] and set(said["requests"]) <= {"data:"}
    everything = said["all"]
    assert len(everything) == len(TASKS) * EACH
    failed = [figure for figure in everything if figure[0] == "failed"]
    mazes = [figure for figure in failed if figure[1] == "maze"]
    assert 0 < len(mazes) < len(failed) < len(everything)
    assert said["failed"] == failed
    assert said["failedMazes"] == said["level"] == mazes  # all mazes have level 3
    assert said["output"] == f"{len(mazes)} of {len(everything)} shown"
    assert int(said["count"]) == sum(f[1] == "maze" and f[0] == "success" for f in everything)
    assert said["none"] == []
    assert said["pressed"] == [["failed"], ["maze"], ["all"]]
    assert said["only"] == sum(f[0] == "failed" and f[5] == "the other only" for f in everything)
    assert said["again"] == len(everything)
    states, ways = said["parts"][0]
    assert states and ways
    assert said["parts"][1:] == [[0, ways, "false"], [0, 0, "false"], [states, 0]]
    small, large, *pressed = said["across"]
    assert large > 1.8 * small and pressed == ["true", small, "false"]
    family, failure, cause = said["cell"]
    assert said["found"] and said["found"] == [
        f for f in everything if family in ("all", f[1]) and f[3:5] == [failure, cause]
    ]
