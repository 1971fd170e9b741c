from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import (
    FAMILIES,
    LEVELS,
    Action,
    Failure,
    FrozenLake,
    Maze,
    MiniBehaviour,
    find_family,
    legal_actions,
    parse_plan,
    sample,
    simulate,
    solve,
)

tasks = st.sampled_from([(f, level) for f in FAMILIES for level in LEVELS[f]])
seeds = st.integers(0, 2**62)
TABLE = frozenset({(3, 1), (3, 2), (3, 3), (4, 1), (4, 2), (4, 3)})
OFFICE = MiniBehaviour(5, (2, 4), (1, 1), TABLE)


@given(tasks, seeds)
@settings(max_examples=300)
def test_every_sampled_state_has_an_optimal_plan(task, seed):
    state = sample(*task, seed)
    outcome = simulate(state, solve(state))
    assert outcome.optimal
    assert outcome.success
    assert outcome.failure is None


@given(tasks, seeds, st.lists(st.integers(0, 5), max_size=8))
@settings(max_examples=200, deadline=None)
def test_from_any_pose_the_shortest_way_on_is_found(task, seed, choices):
    """An action on the shortest way shortens what remains by one, any other does not by more."""
    state = sample(*task, seed)
    family = find_family(state.family)
    pose = family.begin(state)
    gone = []
    for choice in choices:
        legal = legal_actions(state, pose)
        action = legal[choice % len(legal)]
        after = family.step(state, pose, action)
        if after.done:
            break
        before, rest = solve(state, pose), solve(state, after)
        assert len(rest) >= len(before) - 1
        assert len(rest) == len(before) - 1 or action != before[0]
        gone.append(action)
        pose = after
        assert simulate(state, (*gone, *rest)).success


@given(st.sampled_from(FAMILIES), seeds)
@settings(max_examples=60, deadline=None)
def test_the_plan_is_the_first_of_the_shortest_by_brute_force(family, seed):
    """Try all plans in order of length, then of the family's actions, up to 5 actions."""
    state = sample(family, LEVELS[family][0], seed)
    for length in range(6):
        for plan in itertools.product(find_family(family).actions, repeat=length):
            if simulate(state, plan).success:
                assert plan == solve(state)
                return
    assert len(solve(state)) > 5


@given(st.integers(2, 3), st.data())
@settings(max_examples=200, deadline=None)
def test_solver_agrees_with_distances_by_relaxation(size, data):
    """An independent solver: relax distances over the grid until nothing changes."""
    cells = [(r, c) for r in range(size) for c in range(size)]
    start, goal = data.draw(st.permutations(cells))[:2]
    holes = data.draw(st.frozensets(st.sampled_from(cells))) - {start, goal}
    lake = FrozenLake(size, start, goal, holes)
    distance = {goal: 0}
    for _ in cells:
        for r, c in cells:
            near = [
                distance[n] + 1
                for n in ((r, c - 1), (r, c + 1), (r - 1, c), (r + 1, c))
                if n in distance
            ]
            if (r, c) not in holes and near:
                distance[r, c] = min([*near, distance.get((r, c), size**2)])
    plan = solve(lake)
    if start not in distance:
        assert plan is None
    else:
        assert len(plan) == distance[start]


@given(tasks, seeds, st.lists(st.sampled_from(list(Action)), max_size=30))
def test_simulate_stops_at_the_first_end(task, seed, plan):
    state = sample(*task, seed)
    outcome = simulate(state, plan)
    assert len(outcome.path) == outcome.steps + 1 <= len(plan) + 1
    assert outcome.success == (outcome.failure is None)
    assert outcome.success or not outcome.optimal
    # What follows the end is ignored.
    if outcome.failure is not Failure.INCOMPLETE:
        assert simulate(state, [*plan, Action.L, Action.PICK]) == outcome
    # The part that was carried out is legal by itself.
    carried_out = simulate(state, plan[: outcome.steps])
    assert carried_out.failure in (None, Failure.INCOMPLETE)
    assert carried_out.path == outcome.path


@given(tasks, seeds)
def test_legal_actions_are_those_that_simulate_carries_out(task, seed):
    state = sample(*task, seed)
    for action in Action:
        assert (action in legal_actions(state)) == (simulate(state, [action]).steps == 1)


@pytest.mark.parametrize(
    ("plan", "failure", "steps"),
    [
        ("L L L PICK DROP", None, 5),
        ("L L L PICK DROP U U U", None, 5),
        ("L L L PICK", Failure.INCOMPLETE, 4),
        ("PICK", Failure.NOT_BESIDE_PRINTER, 0),
        ("DROP", Failure.NOT_CARRYING, 0),
        ("L L L PICK PICK", Failure.ALREADY_CARRYING, 4),
        ("L L L U", Failure.PRINTER, 3),
        ("L L L PICK U D DROP", None, 7),
        ("L L L PICK U DROP", Failure.NOT_BESIDE_TABLE, 5),
        ("L D", Failure.TABLE, 1),
        ("R", Failure.OFF_GRID, 0),
        ("", Failure.INCOMPLETE, 0),
    ],
)
def test_mini_behaviour_rules(plan, failure, steps):
    outcome = simulate(OFFICE, parse_plan(f"<answer>{plan}</answer>", "minibehaviour"))
    assert outcome.failure is failure
    assert outcome.steps == steps
    assert outcome.success == (failure is None)
    assert outcome.optimal == (failure is None and steps == 5)


def test_lake_and_maze_rules():
    lake = FrozenLake.from_rows(["SH", "FG"])
    assert simulate(lake, [Action.R]).failure is Failure.HOLE
    assert simulate(lake, [Action.U]).failure is Failure.OFF_GRID
    assert simulate(lake, [Action.PICK]).failure is Failure.NOT_IN_FAMILY
    outcome = simulate(lake, [Action.D, Action.R, Action.R])
    assert (outcome.success, outcome.steps, outcome.path) == (True, 2, ((0, 0), (1, 0), (1, 1)))
    detour = simulate(lake, [Action.D, Action.U, Action.D, Action.R])
    assert detour.success
    assert not detour.optimal
    maze = Maze.from_wall_bits([[13, 13], [6, 10]], (0, 0), (1, 1))
    assert simulate(maze, [Action.R]).failure is Failure.WALL
    assert solve(maze) == (Action.D, Action.R)


def test_no_plan_gives_none():
    assert solve(FrozenLake.from_rows(["SHF", "HFF", "FFG"])) is None
    assert solve(Maze.from_wall_bits([[15, 13], [15, 14]], (0, 0), (1, 1))) is None
