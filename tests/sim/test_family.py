"""Families: this package's and one's own, by one interface."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import random
import subprocess
import sys
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import version
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_family import found_in, install, parcels_installed

from sim import (
    FAMILIES,
    LEVELS,
    Action,
    Failure,
    Family,
    FamilyError,
    FrozenLake,
    LevelError,
    PlanSyntaxError,
    StateError,
    UnknownFamilyError,
    find_family,
    format_plan,
    legal_actions,
    parse_plan,
    sample,
    sample_split,
    simulate,
    solve,
    split_of,
    state_digest,
    state_from_dict,
    state_to_dict,
)
from sim.dataset import DatasetError, load_episodes, write_dataset
from sim.family import GROUP
from sim.panda import PandaRenderer
from sim.planning import Pose, moved
from sim.readback import Placed, ReadbackError, read_state
from sim.request import DatasetRequest, parse_families, parse_levels
from sim.scene import OWN_ID, build_scene
from sim.states import normalise

seeds = st.integers(0, 2**62)


@pytest.fixture(scope="module", autouse=True)
def parcels(tmp_path_factory):
    with parcels_installed(tmp_path_factory.mktemp("site")):
        yield importlib.import_module("parcels")


# --- What was before there were families of one's own ---


def test_states_and_plans_are_what_they_always_were():
    digest = hashlib.sha256()
    for family in FAMILIES:
        for level in LEVELS[family]:
            for seed in range(12):
                state = sample(family, level, seed)
                texts = (
                    json.dumps(state_to_dict(state)),
                    state_digest(state),
                    format_plan(solve(state)),
                    " ".join(legal_actions(state)),
                    state_digest(sample_split(family, level, "test", seed)),
                )
                digest.update("\0".join(texts).encode())
    assert digest.hexdigest() == "f77dd930b0ecfa317bf276f91e1ba2a11d101ca9c5584551cb0aafcff020378d"


#: What draws and packs: other versions may give other bytes.
_VERSIONS = {"panda3d": "1.10.16", "pyarrow": "26.0.1", "numpy": "2.3.5", "pillow": "10.4.0"}


def test_data_sets_are_what_they_always_were(tmp_path):
    found = {name: version(name) for name in _VERSIONS}
    if found != _VERSIONS:
        pytest.skip(f"the bytes were taken with {_VERSIONS}, here are {found}")
    pairs = [(family, level) for family in FAMILIES for level in LEVELS[family]]
    write_dataset(tmp_path, DatasetRequest(pairs, "train", seed=0, count=10, size=64))
    files = sorted(tmp_path.glob("*.parquet"))
    assert len(files) == len(pairs)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert digest == "e84e99d7e284366f58796ca4b1a204fced31e00e4750f7218f43c2214035ebae"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names BLAS kernels of x86-64")
def test_data_sets_are_the_same_on_every_processor(tmp_path):
    """NumPy's BLAS has a kernel for each kind, and each adds up in an order of its own."""
    found = set()
    for kernel in ("Prescott", "Sandybridge", "Haswell"):
        out = tmp_path / kernel
        command = ["generate", "--family", "all", "--level", "5", "--count", "6", "--size", "48"]
        subprocess.run(
            [sys.executable, "-m", "mgsd_core.cli", *command, "--split", "train", "--out", out],
            env={**os.environ, "OPENBLAS_CORETYPE": kernel},
            check=True,
            capture_output=True,
        )
        files = sorted(out.glob("*.parquet"))
        assert len(files) == 3
        found.add(b"".join(file.read_bytes() for file in files))
    assert len(found) == 1


# --- A family of one's own ---


@given(st.integers(3, 5), seeds)
def test_own_states_are_sampled_solved_and_written(level, seed):
    state = sample("parcels", level, seed)
    again = state_from_dict(json.loads(json.dumps(state_to_dict(state))))
    assert (again, hash(again)) == (state, hash(state))
    plan = solve(state)
    assert simulate(state, plan).optimal
    assert parse_plan(format_plan(plan), "parcels") == plan
    # To the parcel, along the shortest way, and from there to the right chute.
    to_parcel = _distance(state.robot, state.parcel)
    to_chute = _distance(state.parcel, getattr(state, state.colour))
    assert len(plan) == to_parcel + 1 + to_chute + 1


def _distance(a, b):
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def test_own_actions_and_failures(parcels):
    state = parcels.Parcels(3, (0, 0), (0, 1), "blue", (0, 2), (1, 2))
    assert legal_actions(state) == (Action.D, Action.R)
    assert solve(state) == (Action.R, Action.PICK, Action.R, parcels.Own.TIP)
    for text, failure, steps in (
        ("R PICK R TIP", None, 4),
        ("R PICK R D TIP", parcels.Fault.WRONG_PLACE, 4),
        ("PICK", parcels.Fault.NO_PARCEL, 0),
        ("U", Failure.OFF_GRID, 0),
        ("R PICK", Failure.INCOMPLETE, 2),
    ):
        outcome = simulate(state, parse_plan(f"<answer>{text}</answer>", "parcels"))
        assert (outcome.failure, outcome.steps) == (failure, steps)
    assert simulate(state, [Action.DROP]).failure is Failure.NOT_IN_FAMILY
    with pytest.raises(PlanSyntaxError, match="DROP in the answer is no action of parcels"):
        parse_plan("<answer>DROP</answer>", "parcels")
    with pytest.raises(PlanSyntaxError, match="'TIP' in the answer is no action"):
        parse_plan("<answer>TIP</answer>", "maze")
    assert parse_plan("<answer>left, tip</answer>", "parcels") == (Action.L, parcels.Own.TIP)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": "pink"}, "colour must be one of"),
        ({"robot": [9, 0]}, "outside"),
        ({"blue": [1, 2]}, "four cells"),
        ({"size": 1}, "whole number from 2"),
        ({"holes": []}, "has the fields"),
    ],
)
def test_own_states_from_json_are_checked(parcels, change, says):
    state = parcels.Parcels(3, (0, 0), (0, 1), "blue", (0, 2), (1, 2))
    with pytest.raises(StateError, match=says):
        state_from_dict(state_to_dict(state) | change)


def test_own_states_are_drawn_and_read_back():
    with PandaRenderer() as drawer:
        for seed in range(6):
            state = sample("parcels", 3 + seed % 3, seed)
            scene = build_scene(state, seed, 96, 96)
            assert drawer.read_state(scene) == state
            names = [thing.name for thing in scene.objects]
            assert len(set(names)) == len(names)
            shown = drawer.render(scene, semantic=True).semantic
            assert (shown == OWN_ID).sum() > 20
            # The truth is what is there: take the parcel away, and there is no state.
            rest = tuple(t for t in scene.objects if not t.role.endswith("_parcel"))
            with pytest.raises(ReadbackError, match="one yellow_parcel, not 0"):
                drawer.read_state(replace(scene, objects=rest))


def test_pictures_show_the_colour():
    state = sample("parcels", 3, 0)
    other = replace(state, colour="blue" if state.colour == "yellow" else "yellow")
    with PandaRenderer() as drawer:
        one, two = (drawer.render(build_scene(s, 1)).rgb for s in (state, other))
    assert 0 < (one != two).any(-1).mean() < 0.2


def test_what_a_family_does_not_have_is_refused():
    tiles = [(x, y) for x in (-0.25, 0.25) for y in (-0.25, 0.25)]

    def thing(role, x, y):
        low, high = (x - 0.25, y - 0.25, -0.1), (x + 0.25, y + 0.25, 0.0)
        return Placed(role, (x, y, 0.0), low, high)

    found = [thing("floor", x, y) for x, y in tiles]
    found += [thing("robot", *tiles[0]), thing("goal", *tiles[3])]
    assert read_state(found, family="frozenlake") == FrozenLake(2, (1, 0), (0, 1), frozenset())
    with pytest.raises(ReadbackError, match="frozenlake has no blue_chute"):
        read_state([*found, thing("blue_chute", *tiles[1])], family="frozenlake")


def test_data_sets_of_both_kinds_lie_in_one_directory(tmp_path):
    for family in ("parcels", "maze", "frozenlake"):
        pairs = parse_levels("3", parse_families(family))
        write_dataset(tmp_path, DatasetRequest(pairs, "train", seed=0, count=3, size=32), workers=1)
    episodes = load_episodes(tmp_path, "train")
    assert [e.family for e in episodes] == [f for f in (*FAMILIES[:2], "parcels") for _ in range(3)]
    own = load_episodes(tmp_path, "train", family="parcels")
    assert [e.seed for e in own] == [0, 1, 2]
    assert all(split_of(e.state) == "train" and simulate(e.state, e.plan).optimal for e in own)
    assert parse_families("all") == FAMILIES


def test_workers_know_own_families(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        pairs = [("parcels", 3), ("parcels", 4)]
        write_dataset(
            tmp_path / name,
            DatasetRequest(pairs, "test", seed=0, count=2, size=32),
            workers=workers,
        )
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.parquet")}
        for name in ("one", "two")
    )
    assert one == two and len(one) == 2


def test_the_other_renderer_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="only the renderer panda draws parcels"):
        write_dataset(
            tmp_path / "x", DatasetRequest([("parcels", 3)], "train", 0, 1, renderer="habitat")
        )
    assert not (tmp_path / "x").exists()


# --- Plug-ins that are broken ---

GOOD = """
import parcels, dataclasses
class State(parcels.Parcels):
    family = "own"
FAMILY = dataclasses.replace(parcels.FAMILY, name="own", state=State)
"""


def test_a_good_plug_in_is_found(tmp_path):
    install(tmp_path, "good", {GROUP: {"own": "good_family:FAMILY"}}, good_family=GOOD)
    with found_in(tmp_path):
        assert find_family("own").name == "own"


@pytest.mark.parametrize(
    ("value", "text", "says"),
    [
        ("bad1:FAMILY", None, "'bad' cannot be loaded from bad1:FAMILY: ModuleNotFoundError"),
        ("bad2:FAMILY", "1 / 0", "ZeroDivisionError: division by zero"),
        ("bad3:FAMILY", "", "AttributeError"),
        ("bad4:FAMILY", "FAMILY = 7", "is no Family but 7"),
        ("bad5:FAMILY", "from sim.maze import FAMILY", "is called 'maze', but its entry point"),
        ("bad6:FAMILY", "import sim; FAMILY = sim.Family('bad')", "TypeError"),
    ],
)
def test_broken_plug_ins_give_one_line(tmp_path, value, text, says):
    modules = {} if text is None else {value.partition(":")[0]: text}
    install(tmp_path, "broken", {GROUP: {"bad": value}}, **modules)
    with found_in(tmp_path), pytest.raises(FamilyError, match=says) as caught:
        find_family("bad")
    assert "\n" not in str(caught.value)


def test_two_packages_with_one_name_are_told_apart(tmp_path):
    install(tmp_path, "first", {GROUP: {"twice": "a:FAMILY"}})
    install(tmp_path, "second", {GROUP: {"twice": "b:FAMILY"}})
    with found_in(tmp_path), pytest.raises(FamilyError, match=r"several packages.*a:FAMILY"):
        find_family("twice")


def test_unknown_families_are_named_with_those_there_are():
    with pytest.raises(UnknownFamilyError, match=r"'chess'.*minibehaviour, parcels"):
        find_family("chess")


@dataclass(frozen=True)
class Still:
    """A task without end: nothing ever succeeds."""

    family: ClassVar[str] = "still"

    size: int

    def __post_init__(self) -> None:
        normalise(self)


class Wave(StrEnum):
    WAVE = "WAVE"


def still(**changes) -> Family:
    def draw(level: int, rng: random.Random) -> Still:
        return Still(level)

    usual = {
        "name": "still",
        "levels": (3,),
        "state": Still,
        "actions": (Wave.WAVE,),
        "begin": lambda state: Pose((0, 0)),
        "step": lambda state, pose, action: Pose((0, 0)),
        "draw": draw,
    }
    return Family(**usual | changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "Still life"}, "small letters"),
        ({"name": "stiller"}, "Still.family must be 'stiller'"),
        ({"levels": ()}, "levels of still must ascend"),
        ({"levels": (4, 3)}, "levels of still must ascend"),
        ({"actions": ()}, "must have actions"),
        ({"actions": (Wave.WAVE, Wave.WAVE)}, "no two alike"),
        ({"actions": ("WAVE",)}, "member of a StrEnum"),
        ({"actions": (StrEnum("A", {"UP": "go up"}).UP,)}, "word in capitals"),
        ({"build": lambda scene, state: None}, "both `build` and `read`"),
    ],
)
def test_families_that_contradict_themselves_are_refused(changes, says):
    with pytest.raises(FamilyError, match=says):
        still(**changes)


def test_a_level_without_solvable_states_ends(tmp_path):
    text = "from test_family import still; FAMILY = still()"
    install(tmp_path, "still", {GROUP: {"still": "still_family:FAMILY"}}, still_family=text)
    with found_in(tmp_path):
        with pytest.raises(LevelError, match="none has a plan"):
            sample("still", 3, 0)
        with pytest.raises(FamilyError, match="still is not drawn"):
            build_scene(Still(3), 0)
        with pytest.raises(DatasetError, match="still is not drawn"):
            write_dataset(tmp_path / "out", DatasetRequest([("still", 3)], "train", 0, 1))


def test_a_level_without_states_of_a_split_ends(tmp_path):
    text = (
        "from test_family import still; from sim.planning import Pose\n"
        "FAMILY = still(levels=(4,), step=lambda *_: Pose((0, 0), done=True))"
    )
    install(tmp_path, "easy", {GROUP: {"still": "easy_family:FAMILY"}}, easy_family=text)
    find_family.cache_clear()
    with found_in(tmp_path):
        own = split_of(Still(4))
        assert sample_split("still", 4, own, 0) == Still(4)
        other = "test" if own != "test" else "train"
        with pytest.raises(LevelError, match="too few states"):
            sample_split("still", 4, other, 0)
    find_family.cache_clear()


def test_own_moves_may_have_own_names():
    again = StrEnum("Again", {"WEST": "L", "NORTH": "U"})
    assert moved((1, 1), again.WEST, 3) == moved((1, 1), Action.L, 3) == (1, 0)
    assert moved((0, 1), again.NORTH, 3) is Failure.OFF_GRID
