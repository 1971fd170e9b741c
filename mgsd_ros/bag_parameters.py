"""The node's parameters out of a ROS 2 parameter file, without ROS."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mgsd_ros import parameters
from mgsd_ros.parameters import ParameterError, PlannerParameters

_NODE = "planner"
_VALUES = "ros__parameters"

# The last parts of names that are the node's: its own, and those that stand for any.
_OURS = (_NODE, "*", "**")


def read_parameter_file(path: Path, **given: str) -> PlannerParameters:
    """Return the parameters of the node `planner`, whatever its namespace, that a file sets.

    Args:
        path: a YAML file such as config/planner.yaml; parameters that it leaves out have their
            defaults, those of other nodes are passed over.
        given: values that win over the file's, by name.

    Raises:
        ParameterError: no such file, not a parameter file, nothing for this node, or a parameter
            that is unknown or wrong; in one line that names the file.
    """
    try:
        sections = dict(_sections(_load(path.read_bytes()), ""))
        own = [values for name, values in sections.items() if name.rpartition("/")[2] in _OURS]
        if not own:
            raise ParameterError(
                f"no parameters of a node {_NODE}; it has: {', '.join(sections) or 'none at all'}"
            )
        values: dict[str, Any] = {}
        for section in own:
            values |= _named(section)
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


def _named(section: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a section's values by their full names, such as grid.cell_size.

    Raises:
        ParameterError: a name is unknown.
    """
    values: dict[str, Any] = {}
    for name, value in section.items():
        # No name has more than two parts; what lies deeper is unknown by its first two.
        below = value.items() if isinstance(value, dict) else [(None, value)]
        values |= {str(name) if part is None else f"{name}.{part}": v for part, v in below}
    if unknown := parameters.unknown_names(values):
        raise ParameterError(
            f"parameter {unknown[0]} is not one of the node's; it has: "
            f"{', '.join(sorted(parameters.parameter_names()))}"
        )
    return values


def parameters_to_dict(settings: PlannerParameters) -> dict[str, Any]:
    """Return all parameters by their full names, JSON-ready."""
    values = {
        field.metadata["name"]: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
    }
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
