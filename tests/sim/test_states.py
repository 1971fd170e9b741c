from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import (
    FAMILIES,
    LEVELS,
    SPLITS,
    FrozenLake,
    LevelError,
    Maze,
    MiniBehaviour,
    SplitError,
    StateError,
    UnknownFamilyError,
    sample,
    sample_split,
    split_of,
    state_digest,
    state_from_dict,
    state_to_dict,
)

tasks = st.sampled_from([(f, level) for f in FAMILIES for level in LEVELS[f]])
seeds = st.integers(0, 2**62)


@given(tasks, seeds)
def test_sampled_states_round_trip_through_json_and_hash_alike(task, seed):
    state = sample(*task, seed)
    again = state_from_dict(json.loads(json.dumps(state_to_dict(state))))
    assert again == state
    assert hash(again) == hash(state)
    assert state_digest(again) == state_digest(state)
    assert (state.family, state.size) == task


@given(tasks, seeds)
def test_sampling_depends_on_its_arguments_alone(task, seed):
    assert sample(*task, seed) == sample(*task, seed)


def test_sampling_is_pinned():
    # Data sets name states by seed: a change of the sampler would silently change them all.
    digests = [state_digest(sample(f, LEVELS[f][0], 7))[:12] for f in FAMILIES]
    assert digests == ["ce5f4a5df5f7", "2bfeb1a46adf", "7ee6de972331"]


@given(tasks, seeds, st.sampled_from(SPLITS))
def test_a_sampled_state_belongs_to_the_split_it_was_asked_for(task, seed, split):
    assert split_of(sample_split(*task, split, seed)) == split


def test_splits_take_their_shares():
    found = [split_of(sample("frozenlake", 6, seed)) for seed in range(1000)]
    shares = {split: found.count(split) / 1000 for split in SPLITS}
    assert 0.76 < shares["train"] < 0.84
    assert 0.07 < shares["validation"] < 0.13
    assert 0.07 < shares["test"] < 0.13


@given(st.integers(3, 8), seeds)
def test_lake_rows_round_trip(size, seed):
    lake = sample("frozenlake", size, seed)
    assert FrozenLake.from_rows(lake.rows()) == lake


def test_from_rows_reads_the_letters():
    lake = FrozenLake.from_rows(["SFFH", "FFFF", "FHFF", "FFFG"])
    assert lake == FrozenLake(4, (0, 0), (3, 3), frozenset({(0, 3), (2, 1)}))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["SF", "FGG"], "row 1"),
        (["SX", "FG"], "'X'"),
        (["SS", "FG"], "exactly one S"),
        (["SF", "FF"], "exactly one G"),
        ([], "exactly one S"),
    ],
)
def test_from_rows_names_what_is_wrong(rows, says):
    with pytest.raises(StateError, match=says):
        FrozenLake.from_rows(rows)


def test_wall_bits_name_sides():
    maze = Maze.from_wall_bits([[13, 5, 9], [6, 8, 12], [5, 2, 10]], start=(0, 0), goal=(2, 2))
    assert maze.is_open((0, 0), 2)
    assert not maze.is_open((0, 0), 8)


def test_missing_border_walls_are_set():
    # 2×2 without inner walls and without a border.
    maze = Maze.from_wall_bits([[0, 0], [0, 0]], (0, 0), (1, 1))
    assert maze.walls == ((5, 9), (6, 10))


@pytest.mark.parametrize(
    ("bits", "says"),
    [
        ([[8, 0], [0, 0]], "disagree"),
        ([[2, 0], [0, 0]], "disagree"),
        ([[16, 0], [0, 0]], "0 to 15"),
        ([[-1, 0], [0, 0]], "0 to 15"),
        ([[True, 0], [0, 0]], "0 to 15"),
        ([[0], [0, 0]], "row 0"),
    ],
)
def test_wall_bits_are_checked(bits, says):
    with pytest.raises(StateError, match=says):
        Maze.from_wall_bits(bits, (0, 0), (1, 1))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FrozenLake(3, (0, 0), (0, 0), frozenset()), "same cell"),
        (lambda: FrozenLake(3, (0, 0), (3, 0), frozenset()), "outside"),
        (lambda: FrozenLake(3, (0, 0), (2, 2), frozenset({(0, 0)})), "is a hole"),
        (lambda: FrozenLake(3, (0, 0), (2, 2), frozenset({(2, 2)})), "is a hole"),
        (lambda: FrozenLake(1, (0, 0), (0, 0), frozenset()), "size"),
        (lambda: FrozenLake(3.0, (0, 0), (2, 2), frozenset()), "size"),
        (lambda: FrozenLake(3, (0, 0.5), (2, 2), frozenset()), "must be a cell"),
        (lambda: FrozenLake(3, "00", (2, 2), frozenset()), "must be a cell"),
        (lambda: Maze(2, (0, 0), (0, 0), ((5, 9), (6, 10))), "same cell"),
        (lambda: MiniBehaviour(5, (0, 0), (0, 0), _table(2, 1)), "same cell"),
        (lambda: MiniBehaviour(5, (2, 1), (0, 0), _table(2, 1)), "on the table"),
        (lambda: MiniBehaviour(5, (0, 0), (2, 1), _table(2, 1)), "on the table"),
        (lambda: MiniBehaviour(5, (0, 0), (0, 1), _table(2, 1) - {(2, 1)}), "2 × 3"),
        (lambda: MiniBehaviour(5, (0, 0), (0, 1), frozenset()), "2 × 3"),
    ],
)
def test_states_refuse_what_contradicts_itself(make, says):
    with pytest.raises(StateError, match=says):
        make()


def test_a_table_may_stand_either_way():
    upright = frozenset({(r, c) for r in range(3) for c in range(2)})
    assert MiniBehaviour(5, (4, 4), (0, 4), upright).table == upright


def test_lists_are_taken_as_cells():
    lake = FrozenLake(3, [0, 0], [2, 2], [[1, 1]])
    assert lake == FrozenLake(3, (0, 0), (2, 2), frozenset({(1, 1)}))
    assert isinstance(hash(lake), int)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_arbitrary_json_is_refused_with_an_error_of_ours(value):
    fields = {"family": "frozenlake", "size": 3, "start": [0, 0], "goal": value, "holes": []}
    if value in ([0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]):
        return
    with pytest.raises(StateError):
        state_from_dict(fields)


@pytest.mark.parametrize(
    "data", [None, [], {}, {"family": 3}, {"family": "maze"}, {"family": "maze", "size": 2, "x": 1}]
)
def test_incomplete_states_are_refused(data):
    with pytest.raises(StateError):
        state_from_dict(data)


def test_unknown_names_are_refused_with_what_exists():
    with pytest.raises(UnknownFamilyError, match="frozenlake, maze, minibehaviour"):
        sample("chess", 3, 0)
    with pytest.raises(LevelError, match="levels 3 to 6"):
        sample("maze", 7, 0)
    with pytest.raises(SplitError, match="train, validation, test"):
        sample_split("maze", 3, "holdout", 0)


def _table(row, column):
    return frozenset({(row + r, column + c) for r in range(2) for c in range(3)})
