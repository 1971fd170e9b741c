"""What an execution does and shows: by the rules of `simulate`, as a renderer draws it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_family import parcels_installed

from sim import LEVELS, Action, FrozenLake, MiniBehaviour, find_family, sample, simulate, solve
from sim.execution import Execution, state_at
from sim.panda import PandaRenderer
from sim.planning import Pose, legal_actions, step
from sim.scene import build_scene

PAIRS = [(family, level) for family in LEVELS for level in LEVELS[family]]
shared = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25
)

OFFICE = MiniBehaviour(5, (4, 0), (2, 0), frozenset((r, c) for r in (0, 1) for c in (2, 3, 4)))


@pytest.fixture(scope="module")
def renderer() -> Iterator[PandaRenderer]:
    with PandaRenderer() as opened:
        yield opened


@shared
@given(pair=st.sampled_from(PAIRS), seed=st.integers(0, 10**6), style=st.integers(0, 2**63 - 1))
def test_on_the_way_the_camera_sees_the_state_with_the_robot_elsewhere(
    renderer: PandaRenderer, pair: tuple[str, int], seed: int, style: int
) -> None:
    state = sample(*pair, seed)
    execution = Execution(renderer, state, style, 64, "overhead")
    plan = solve(state)
    assert plan is not None
    for i, action in enumerate(plan):
        now = execution.present_state()
        if now is None:
            break
        assert solve(now) == plan[i:]
        # Drawn from the beginning, as a training's pictures are.
        scene = build_scene(now, style, 64, 64, styles="overhead")
        assert np.array_equal(execution.picture(), renderer.render(scene).rgb)
        execution.act(action)
    for action in plan[len(execution.actions) :]:
        execution.act(action)
    assert execution.done
    assert tuple(execution.actions) == plan
    assert tuple(execution.path) == simulate(state, plan).path
    assert execution.present_state() is None


def test_an_illegal_action_ends_it_and_changes_nothing(renderer: PandaRenderer) -> None:
    lake = FrozenLake.from_rows(["SFF", "FHF", "FFG"])
    execution = Execution(renderer, lake, None, 64, "plain")
    execution.act(Action.D)
    before = execution.picture()
    execution.act(Action.R)
    assert (execution.failure, execution.done, execution.ended) == ("hole", False, True)
    assert (execution.path, execution.actions) == ([(0, 0), (1, 0)], [Action.D])
    assert np.array_equal(execution.picture(), before)
    with pytest.raises(ValueError, match="ended"):
        execution.act(Action.D)


def test_the_robot_at_the_goal_is_seen_there(renderer: PandaRenderer) -> None:
    lake = FrozenLake.from_rows(["SG", "FF"])
    execution = Execution(renderer, lake, None, 64, "plain")
    before = execution.picture().astype(int)
    execution.act(Action.R)
    changed = np.abs(execution.picture() - before).sum(axis=2) > 60
    (u, v), (goal_u, goal_v) = execution.grid.pixels([(0, 0), (0, 1)]).round().astype(int)
    assert changed[v - 3 : v + 4, u - 3 : u + 4].mean() > 0.5
    assert changed[goal_v - 3 : goal_v + 4, goal_u - 3 : goal_u + 4].mean() > 0.5


def test_what_is_picked_goes_with_the_robot_to_the_table(renderer: PandaRenderer) -> None:
    execution = Execution(renderer, OFFICE, None, 96, "plain")
    places = {"printer": (2, 0), "table": (1, 2), "on the way": (3, 1)}

    def colours() -> dict[str, np.ndarray]:
        picture = execution.picture().astype(int)
        pixels = execution.grid.pixels(list(places.values())).round().astype(int)
        return {
            name: picture[v - 2 : v + 3, u - 2 : u + 3].mean(axis=(0, 1))
            for name, (u, v) in zip(places, pixels, strict=True)
        }

    begin = colours()
    for action in (Action.U, Action.PICK, Action.R):
        execution.act(action)
    carried = colours()
    assert np.abs(carried["printer"] - begin["on the way"]).max() < 30  # floor
    assert np.abs(carried["on the way"] - begin["printer"]).max() < 60
    for action in (Action.R, Action.U, Action.DROP):
        execution.act(action)
    assert execution.done
    end = colours()
    assert np.abs(end["table"] - begin["printer"]).max() < 60
    assert np.abs(end["table"] - begin["table"]).max() > 30
    assert np.abs(end["on the way"] - begin["on the way"]).max() < 30


@given(data=st.data(), pair=st.sampled_from(PAIRS), seed=st.integers(0, 10**6))
def test_the_state_of_a_pose_has_its_future(
    data: st.DataObject, pair: tuple[str, int], seed: int
) -> None:
    state = sample(*pair, seed)
    pose = find_family(state.family).begin(state)
    for _ in range(data.draw(st.integers(0, 12))):
        legal = legal_actions(state, pose)
        if pose.done or not legal:
            break
        pose = step(state, pose, data.draw(st.sampled_from(legal)))
    now = state_at(state, pose)
    if pose.done or getattr(pose, "carrying", False):
        assert now is None
    else:
        assert now is not None
        assert find_family(state.family).begin(now) == pose
        assert solve(now) == solve(state, pose)


def test_a_place_where_a_family_has_no_start_has_no_state(tmp_path: Path) -> None:
    with parcels_installed(tmp_path):
        kind = find_family("parcels").state
        parcel = {"parcel": (0, 1), "colour": "blue", "blue": (2, 2), "yellow": (2, 0)}
        state = kind(3, robot=(0, 0), **parcel)
        assert state_at(state, Pose((1, 0))) == kind(3, robot=(1, 0), **parcel)
        assert state_at(state, Pose((0, 1))) is None
