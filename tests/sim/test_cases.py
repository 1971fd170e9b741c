"""The sample of public benchmark cases that stands beside the project, where it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim import FrozenLake, MiniBehaviour, parse_plan, simulate, solve

CASES = Path(__file__).parents[3] / "shared" / "cases"
pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason=f"the sample cases are not beside the project ({CASES})"
)

_LETTERS = {"@": "S", "*": "G", "#": "H", "_": "F"}


def _vsp_lakes():
    for file in sorted((CASES / "vsp-frozenlake").glob("level*/*.txt")):
        rows = [
            [_LETTERS[cell.strip()] for cell in line.strip().strip("|").split("|")[1:]]
            for line in file.read_text().strip().splitlines()[1:]
        ]
        yield f"{file.parent.name}/{file.stem}", FrozenLake.from_rows(rows)


def test_listed_plans_are_optimal():
    plans = json.loads((CASES / "vsp-frozenlake" / "plans.json").read_text())
    lakes = dict(_vsp_lakes())
    assert set(lakes) == set(plans)
    for name, lake in lakes.items():
        plan = parse_plan(f"<answer>{plans[name]}</answer>", "frozenlake")
        assert simulate(lake, plan).optimal, name
        assert len(solve(lake)) == len(plan), name


def test_listed_trajectories_and_distances_agree():
    lines = (CASES / "visualplanning-rows.jsonl").read_text().splitlines()
    assert lines
    for line in lines:
        row = json.loads(line)
        meta, listed = row["meta"], row["input_state"]
        if row["family"] == "frozenlake":
            state = FrozenLake.from_rows(meta["layout"])
            size = state.size
            assert state.start == divmod(meta["start_pos"], size)
            for index, distance in meta["distance_map"].items():
                cell = divmod(int(index), size)
                moved = FrozenLake(size, cell, state.goal, state.holes)
                assert len(solve(moved)) == distance
        else:
            state = MiniBehaviour(
                meta["level"], meta["start_pos"], meta["printer_pos"], meta["table_pos"]
            )
            assert state.beside([state.printer]) == set(map(tuple, meta["printer_neighbors"]))
            assert state.beside(state.table) == set(map(tuple, meta["table_neighbors"]))
        assert len(solve(state)) == len(listed) - 1
        assert simulate(state, solve(state)).optimal
