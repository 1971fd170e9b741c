"""What is true in the world, and what a camera sees of it.

Imports nothing but the standard library: renderers, data sets and their libraries are loaded from
their own modules when they are used.
"""

from sim.actions import Action, Plan, PlanSyntaxError, format_plan, parse_plan
from sim.family import FAMILIES, Family, FamilyError, UnknownFamilyError, find_family
from sim.planning import Failure, Outcome, legal_actions, simulate, solve
from sim.sampling import LEVELS, SPLITS, LevelError, SplitError, sample, sample_split, split_of
from sim.states import (
    Cell,
    FrozenLake,
    Maze,
    MiniBehaviour,
    State,
    StateError,
    state_digest,
    state_from_dict,
    state_to_dict,
)

__all__ = [
    "FAMILIES",
    "LEVELS",
    "SPLITS",
    "Action",
    "Cell",
    "Failure",
    "Family",
    "FamilyError",
    "FrozenLake",
    "LevelError",
    "Maze",
    "MiniBehaviour",
    "Outcome",
    "Plan",
    "PlanSyntaxError",
    "SplitError",
    "State",
    "StateError",
    "UnknownFamilyError",
    "find_family",
    "format_plan",
    "legal_actions",
    "parse_plan",
    "sample",
    "sample_split",
    "simulate",
    "solve",
    "split_of",
    "state_digest",
    "state_from_dict",
    "state_to_dict",
]
