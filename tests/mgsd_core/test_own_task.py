"""A fourth family, that of docs/own_task.md, through everything; the trainer knows none of it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_family import found_in, install, parcels_installed
from PIL import Image

from mgsd_core import prompts
from mgsd_core.cli import main
from mgsd_core.evaluation.score import score
from mgsd_core.language import Field, Language, cell, cells, number
from mgsd_core.own_task import check_task
from mgsd_core.prompts import find_language, parse_response, prompts_digest
from mgsd_core.runtime.bundle import BundleError, read_bundle
from mgsd_core.runtime.preprocess import ImageSpec
from mgsd_core.scenes import load_scenes
from sim import (
    FAMILIES,
    FamilyError,
    StateError,
    find_family,
    sample,
    solve,
    state_from_dict,
    state_to_dict,
)
from sim.dataset import load_episodes
from sim.family import GROUP

levels = st.sampled_from([3, 4, 5])
seeds = st.integers(0, 2**62)


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory):
    with parcels_installed(tmp_path_factory.mktemp("site")) as path:
        yield path


@pytest.fixture
def parcels(site):
    return importlib.import_module("parcels")


# --- Words ---


@given(levels, seeds)
def test_own_states_round_trip_through_words(level, seed):
    state = sample("parcels", level, seed)
    plan = solve(state)
    parsed = parse_response(prompts.response_text(state, plan), "parcels")
    assert (parsed.state, parsed.plan, parsed.problem) == (state, plan, None)
    whole, *parts, legal = prompts.questions(state)
    assert whole[1] == " ".join(answer for _, answer in parts) == prompts.state_text(state)
    assert legal[1].startswith("Legal ")


@pytest.mark.parametrize("value", [["blue"], {"blue": 1}, None, 3])
def test_fields_of_another_type_are_refused(value):
    data = state_to_dict(sample("parcels", 3, 0)) | {"colour": value}
    with pytest.raises(StateError):
        state_from_dict(data)


@given(st.text() | st.text(alphabet="Size 3.Robot(0,1)ParcelColour blueYellow"))
def test_any_text_is_parsed_without_an_error(text):
    parsed = parse_response(text, "parcels")
    assert parsed.problem is not None or parsed.plan is not None


def test_words_are_as_the_language_says(parcels):
    state = parcels.Parcels(3, (0, 0), (0, 1), "blue", (0, 2), (1, 2))
    assert prompts.response_text(state, solve(state)) == (
        "Size 3. Robot (0,0). Parcel (0,1). Colour blue. Blue (0,2). Yellow (1,2). "
        "Route (0,0) R (0,1) PICK R (0,2) TIP. <answer>R PICK R TIP</answer>"
    )
    assert prompts.instruction("parcels", "brief") == "Sort the parcel."
    full = prompts.instruction("parcels", "full")
    assert "'Size N. Robot (row,column). Parcel (row,column). Colour blue|yellow." in full
    asked = prompts.symbolic_prompt(state, "brief", solve(state))
    assert asked.user.endswith("Reference R PICK R TIP.")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Size 3. Robot (0,0). Parcel (0,1). Colour pink.", "none of: blue, yellow"),
        ("Size 3. Robot (0,0). Parcel none.", "Parcel must be one cell"),
        (
            "Size 3. Robot (0,0). Parcel (0,0). Colour blue. Blue (0,2). Yellow (1,2).",
            "four cells",
        ),
    ],
)
def test_texts_that_describe_no_state_say_why(text, says):
    with pytest.raises(prompts.StateTextError, match=says):
        prompts.parse_state_text(text, "parcels")


def test_the_digest_of_prompts_covers_own_words_and_leaves_the_others_alone():
    alone = prompts_digest("brief", ["parcels"])
    assert alone != prompts_digest("brief", ["maze"])
    assert prompts_digest("brief") == prompts_digest("brief", FAMILIES)
    assert prompts_digest("brief", [*FAMILIES, "parcels"]) != prompts_digest("brief")


def test_responses_to_own_tasks_are_judged(parcels):
    state = parcels.Parcels(3, (0, 0), (0, 1), "blue", (0, 2), (1, 2))
    text = prompts.state_text(state).replace("blue", "yellow") + " <answer>R PICK R TIP</answer>"
    record = _judged(state, text)
    assert (record.success, record.optimal, record.legal, record.state) == (True, True, True, False)
    assert [name for name, right in record.fields.items() if not right] == ["colour"]
    text = "<answer>R PICK TIP</answer>"
    record = _judged(state, text)
    assert (record.legal, record.failure, record.steps) == (False, "wrong_place", 2)
    assert (record.cause, record.progress) == ("no_state", 0.5)


def _judged(state, text):
    return score("parcel", state, solve(state), parse_response(text, "parcels"), text)


# --- Trying a family out ---


@pytest.mark.parametrize("family", [*FAMILIES, "parcels"])
def test_a_family_whose_parts_agree_passes(family):
    found = check_task(family, states=4)
    assert found["drawn"]
    assert list(found["levels"]) == list(find_family(family).levels)
    assert all(0 < level["shortest"] <= level["longest"] for level in found["levels"].values())


BROKEN = """
import dataclasses, random, parcels
from mgsd_core.language import *
from mgsd_core.language import Field
from sim.planning import Pose
from sim.states import all_cells

class State(parcels.Parcels):
    family = "broken"

def draw(level, rng):
    robot, parcel, blue, yellow = rng.sample(all_cells(level), 4)
    return State(level, robot, parcel, rng.choice(["blue", "yellow"]), blue, yellow)

def read(world):
    found = parcels.read(world)
    return State(*(getattr(found, f.name) for f in dataclasses.fields(found)))

size, robot, parcel, colour, blue, yellow = parcels.LANGUAGE.fields
FAMILY = dataclasses.replace(
    parcels.FAMILY, name="broken", state=State, levels=(3,), draw=draw, read=read
)
LANGUAGE = parcels.LANGUAGE
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("", None),
        ("del LANGUAGE", "AttributeError"),
        ("LANGUAGE = 'Sort.'", "is no Language but 'Sort.'"),
        (
            "LANGUAGE = dataclasses.replace(LANGUAGE, fields=[size, robot, parcel, blue, yellow])",
            "has the fields",
        ),
        (
            "LANGUAGE = dataclasses.replace(LANGUAGE, fields=[*LANGUAGE.fields[:-1], "
            "Field('yellow', 'Where?', '', lambda s: 'somewhere', lambda text, _: (0, 0))])",
            "seed 0: its text reads otherwise",
        ),
        (
            "LANGUAGE = dataclasses.replace(LANGUAGE, fields=[*LANGUAGE.fields[:-1], "
            "cell('yellow', 'Where is the blue chute?')])",
            "two of its questions are the same",
        ),
        (
            "FAMILY = dataclasses.replace(FAMILY, draw=lambda level, rng: draw(4, rng))",
            "its size is 4, but the size is the level",
        ),
        (
            "FAMILY = dataclasses.replace(FAMILY, begin=lambda s: Pose(s.robot, done=True))",
            "achieved before anything is done",
        ),
        (
            "FAMILY = dataclasses.replace(FAMILY, step=lambda s, p, a: p.cell[7])",
            "broken level 3 seed 0: IndexError",
        ),
        (
            "FAMILY = dataclasses.replace(FAMILY, read=lambda w: "
            "dataclasses.replace(read(w), robot=(0, 0)))",
            "drawn: ",
        ),
    ],
)
def test_a_family_whose_parts_disagree_is_told_in_one_line(tmp_path, change, says):
    name = f"broken_{abs(hash(change))}"
    groups = {
        GROUP: {"broken": f"{name}:FAMILY"},
        prompts.LANGUAGES: {"broken": f"{name}:LANGUAGE"},
    }
    install(tmp_path, "broken", groups, **{name: BROKEN + change})
    for kept in (find_family, find_language, solve):
        kept.cache_clear()
    with found_in(tmp_path):
        if says is None:
            check_task("broken", states=3)
            return
        with pytest.raises(FamilyError) as caught:
            check_task("broken", states=3)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sentences_that_begin_alike_are_refused():
    with pytest.raises(FamilyError, match="begin alike"):
        Language("", "", [number("size"), cells("table"), cells("table legs")])
    with pytest.raises(FamilyError, match="begin alike"):
        Language("", "", [cell("start"), Field("first", "", "", str, None, title="Start")])


def test_check_family_prints_what_it_found(capsys):
    from mgsd_core.commands_family import register_family

    parser = argparse.ArgumentParser()
    register_family(parser.add_subparsers())
    args = parser.parse_args(["check-family", "parcels", "--states", "2"])
    assert args.run(args) == 0
    assert json.loads(capsys.readouterr().out)["levels"]["3"]["states"] == 2


# --- Everything, through the command line ---

TINY = [
    "backbone.image_size=64",
    *(f"backbone.nano.{size}" for size in ("hidden=48", "layers=1", "heads=2", "kv_heads=1")),
    *(f"backbone.nano.{size}" for size in ("intermediate=64", "vision_hidden=32")),
    "backbone.nano.vision_layers=1",
    *(
        f"{stage}.{what}=2"
        for stage in ("text", "coldstart", "distill")
        for what in ("batch", "steps")
    ),
    "distill.validate_every=2",
]


def mgsd(site, *arguments, status=0):
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "mgsd_core.cli", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def drawn(site, tmp_path_factory):
    """Pictures drawn here."""
    path = tmp_path_factory.mktemp("drawn")
    for split, count in (("train", 6), ("validation", 2), ("test", 3)):
        what = ("--family", "parcels", "--level", "3", "--split", split, "--count", count)
        mgsd(site, "generate", *what, "--size", 64, "--out", path)
    return path


@pytest.fixture(scope="module")
def photos(drawn, tmp_path_factory):
    """The same pictures, as if somebody had taken them."""
    path = tmp_path_factory.mktemp("photos")
    for split in ("train", "validation", "test"):
        lines = []
        for i, episode in enumerate(load_episodes(drawn, split)):
            Image.fromarray(episode.image).save(path / f"{split}{i}.png")
            lines.append({"image": f"{split}{i}.png", "state": state_to_dict(episode.state)})
        (path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module", params=["photos", "drawn"])
def run(request, site, tmp_path_factory):
    """Both stages trained for two steps on drawn pictures or on a folder of photographs."""
    data = request.getfixturevalue(request.param)
    out = tmp_path_factory.mktemp("run")
    settings = [word for setting in TINY for word in ("--set", setting)]
    mgsd(site, "coldstart", "--data", data, "--out", out, *settings)
    weights = ("--student", out / "stage1/model", "--teacher", out / "base/model")
    mgsd(site, "distill", *weights, "--data", data, "--out", out, *settings)
    return data, out / "stage2/model"


def test_both_kinds_of_pictures_are_the_same_scenes(drawn, photos):
    one, other = (load_scenes(path, "test", ImageSpec(64, patch=8)) for path in (drawn, photos))
    assert (one.images == other.images).all()
    assert (one.states, one.plans, one.digest) == (other.states, other.plans, other.digest)
    assert list(one.names) == [f"parcels-3-test-{seed}" for seed in range(3)]
    assert list(other.names) == [f"test{i}.png" for i in range(3)]


def test_both_stages_run_on_both_kinds_of_pictures(run, tmp_path):
    data, model = run
    where = ("--model", str(model), "--data", str(data), "--out", str(tmp_path))
    assert main(["evaluate", *where]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    level = results["families"]["parcels"]["levels"]["3"]
    assert level["count"] == 3
    assert set(level["fields"]) == {"size", "robot", "parcel", "colour", "blue", "yellow"}


def test_a_trained_model_becomes_a_bundle_that_plans(run, photos, tmp_path, capsys):
    data, model = run
    bundle = tmp_path / "bundle"
    where = ("--model", str(model), "--data", str(data), "--out", str(bundle))
    assert main(["export", *where, "--goldens", "1"]) == 0
    assert read_bundle(bundle).manifest.families == ("parcels",)
    capsys.readouterr()
    # Two steps teach nothing: there is no legal plan, and the exit status says so.
    what = (str(photos / "test0.png"), "--bundle", str(bundle), "--family", "parcels")
    assert main(["plan", *what]) == 1
    assert set(json.loads(capsys.readouterr().out)) >= {"actions", "state", "verdict", "text"}
    # A robot without the package is told what it lacks.
    found = mgsd(tmp_path, "plan", *what, status=2)
    assert "not installed here" in found.stderr and found.stderr.count("\n") == 1


def test_the_planner_plans_for_an_own_family(parcels, make_scripted, make_picture, tmp_path):
    """A student that answers right: state, plan and verdict are those of the own family."""
    from mgsd_core.export import export_bundle
    from mgsd_core.runtime import Planner, response_to_dict

    state = parcels.Parcels(3, (0, 0), (0, 1), "blue", (0, 2), (1, 2))
    text = prompts.response_text(state, solve(state))
    backbone = make_scripted([len(make_scripted([]).tokenizer)], (text,))
    bundle = export_bundle(backbone, tmp_path / "bundle", families=["parcels"])
    response = Planner.load(bundle, family="parcels").plan(make_picture(0))
    assert (response.state, response.plan) == (state, solve(state))
    assert response.verdict.legal and response.verdict.success
    answer = response_to_dict(response)
    assert answer["actions"] == ["R", "PICK", "R", "TIP"]
    assert answer["path"] == [[0, 0], [0, 1], [0, 1], [0, 2], [0, 2]]
    assert answer["state"] == state_to_dict(state)


def test_bundles_for_families_that_are_broken_are_refused(restless_bundle, monkeypatch):
    def broken(style, families):
        raise FamilyError("'frozenlake' cannot be loaded")

    monkeypatch.setattr(prompts, "prompts_digest", broken)
    with pytest.raises(BundleError, match="cannot be loaded"):
        read_bundle(restless_bundle)
