"""The node's parameters out of a ROS 2 parameter file, without ROS."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mgsd_ros import parameters
from mgsd_ros.parameters import ParameterError, PlannerParameters

_NODE = "planner"
_VALUES = "ros__parameters"

# The parts of names that stand for any name, and for any number of them.
_ANY, _ANY_PARTS = "*", "**"

# Names of nothing but these are for the node in any namespace.
_WILD = {_NODE, _ANY, _ANY_PARTS}

_Section = tuple[str, Mapping[Any, Any]]


def read_parameter_file(
    path: Path,
    *,
    node: str | None = None,
    warn: Callable[[str], object] = lambda text: None,
    **given: str,
) -> PlannerParameters:
    """Return the parameters of a node that a file sets.

    Args:
        path: a YAML file such as config/planner.yaml; parameters that it leaves out have their
            defaults, those of other nodes are passed over.
        node: its full name; None: the one that is called `planner`, whatever its namespace.
        warn: is told of every name in the node's own sections that the node does not have. What
            stands in sections for many nodes may be another's.
        given: values that win over the file's, by name.

    Raises:
        ParameterError: no such file, not a parameter file, nothing for this node or for several, or
            a parameter that is wrong; in one line that names the file.
    """
    try:
        sections = list(_sections(_load(path.read_bytes()), ""))
        values: dict[str, Any] = {}
        for name, section in _own(sections, node):
            named = _named(section)
            values |= named
            if name.rpartition("/")[2] not in (_ANY, _ANY_PARTS):
                for unknown in parameters.unknown_names(named):
                    warn(
                        f"{path}: parameter {' '.join(unknown.split())} is not one of this node's "
                        f"and has no effect; it has: "
                        f"{', '.join(sorted(parameters.parameter_names()))}"
                    )
        return parameters.changed(PlannerParameters(), values | given, is_configured=False)
    except OSError as error:
        raise ParameterError(f"{path}: {error.strerror or error}") from error
    except ParameterError as error:
        raise ParameterError(f"{path}: {error}") from None
    except RecursionError:
        raise ParameterError(f"{path} is nested too deeply") from None


def _load(data: bytes) -> Any:
    """Return what YAML, encoded as it says itself, holds.

    Raises:
        ParameterError: it is none, or has aliases: ROS does not take them, and a few could stand
            for more than any memory holds.
    """
    import yaml

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(data, yaml.SafeLoader)):
            raise ParameterError("YAML aliases (*name) are not taken by ROS")
        return yaml.safe_load(data)
    except ParameterError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise ParameterError(f"no YAML: {' '.join(str(error).split())}") from error


def _sections(content: object, name: str) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield full names of nodes, such as /**/planner, and what stands under `ros__parameters`."""
    if not isinstance(content, dict):
        raise ParameterError(f"{name or 'it'} is no table of nodes with {_VALUES}")
    for key, below in content.items():
        if key != _VALUES:
            yield from _sections(below, f"{name}/{str(key).strip('/')}")
        elif isinstance(below, dict):
            yield name, below
        else:
            raise ParameterError(f"{_VALUES} of {name} is no table of parameters")


def _own(sections: Sequence[_Section], node: str | None) -> list[_Section]:
    """Return the sections of a node, of the only one that is called `planner` without a name.

    Raises:
        ParameterError: there are none, or there are several such nodes.
    """
    own = [s for s in sections if s[0].rpartition("/")[2] in _WILD]
    if node is None:
        nodes = list(dict.fromkeys(name for name, _ in own if _ANY not in name))
        if not nodes:
            # What is for all nodes of one namespace is not for those of another.
            nodes = list(dict.fromkeys(name for name, _ in own if {*name.split("/")[1:]} - _WILD))
        if len(nodes) > 1:
            raise ParameterError(
                f"parameters of several nodes: {', '.join(nodes)}; choose one by --node"
            )
        node = next((name for name in nodes if _ANY not in name), None)
    if node is not None:
        node = f"/{node.strip('/')}"
        own = [s for s in sections if _matches(s[0].split("/")[1:], node.split("/")[1:])]
    if not own:
        has = ", ".join(name for name, _ in sections) or "none at all"
        raise ParameterError(f"no parameters of a node {node or _NODE}; it has: {has}")
    return own


def _matches(pattern: Sequence[str], name: Sequence[str]) -> bool:
    """Return whether a section's name is that of a node, or stands for it; both by their parts."""
    reached = {0}
    for part in pattern:
        if part == _ANY_PARTS:
            reached = set(range(min(reached), len(name) + 1))
        else:
            reached = {i + 1 for i in reached if i < len(name) and part in (name[i], _ANY)}
        if not reached:
            return False
    return len(name) in reached


def _named(section: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a section's values by their full names, such as grid.cell_size."""
    values: dict[str, Any] = {}
    for name, value in section.items():
        # No name has more than two parts; what lies deeper is unknown by its first two.
        below = value.items() if isinstance(value, dict) else [(None, value)]
        values |= {str(name) if part is None else f"{name}.{part}": v for part, v in below}
    return values


def parameters_to_dict(settings: PlannerParameters) -> dict[str, Any]:
    """Return all parameters by their full names, JSON-ready."""
    values = {
        field.metadata["name"]: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
    }
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
