"""Scenes in closed loop, one after another: opens the renderer, starts a node for each family."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import rclpy
from rclpy.signals import SignalHandlerOptions

from mgsd_core.installed import shipped_bundle
from mgsd_core.runtime.bundle import BundleError, read_bundle
from mgsd_ros.closed_loop import Ask, Moment, Run, ask_node, carry_out
from mgsd_ros.grid_frame import GridFrame
from mgsd_ros.node_process import own_environment, planner_node
from mgsd_ros.planner_client import NodeError, PlannerClient
from sim import sample_split
from sim.episodes import style_seed
from sim.execution import Execution
from sim.grid import CELL_SIZE
from sim.renderers import open_renderer

#: Where a node of our own stands, and where its pictures come from.
NODE, IMAGE_TOPIC = "/planner", "/image_raw"


@dataclass(frozen=True, slots=True)
class Scene:
    """What is to be carried out: family, grid side [cells] and seed of a scene."""

    family: str
    level: int
    seed: int


@dataclass(frozen=True, slots=True)
class Settings:
    """How scenes are drawn and who plans.

    Attributes:
        split: train, validation or test.
        styles: set of the scenes' styles, one of `sim.style.STYLES`.
        size: side of the pictures [px].
        renderer: one of `sim.renderers.RENDERERS`.
        keep_plan: see `mgsd_ros.closed_loop.carry_out`.
        slip: share of the actions that come to nothing, 0 to 1; the same ones in every run.
        node: full name of a running node; None: start one of our own, which nobody else meets.
        image_topic: where it listens.
        bundle: that a node of our own plans with; None: the one that comes with the package.
        repair: the parameter of a node of our own.
    """

    split: str = "test"
    styles: str = "overhead"
    size: int = 256
    renderer: str = "panda"
    keep_plan: bool = False
    slip: float = 0.0
    node: str | None = None
    image_topic: str = IMAGE_TOPIC
    bundle: Path | None = None
    repair: bool = False


#: Begins to watch an execution, and returns what is shown its moments; None: nobody watches.
Watch = Callable[[Scene, Execution], Callable[[Moment], None] | None]


def check_planner(settings: Settings, families: Sequence[str]) -> None:
    """Check that there can be a node for these families, before any is started.

    Raises:
        ValueError: the bundle cannot plan for one of them, a setting is out of range, or it is
            not for a running node.
        OSError: there is no bundle.
    """
    if not 0 <= settings.slip < 1:
        raise ValueError(f"slip must be at least 0 and below 1, not {settings.slip}")
    if settings.node is not None:
        if len(families) > 1:
            raise ValueError(f"a running node plans for one family, not for {', '.join(families)}")
        if settings.bundle is not None or settings.repair:
            raise ValueError("bundle and repair are settings of the running node itself")
        return
    path = shipped_bundle() if settings.bundle is None else settings.bundle
    known = read_bundle(path).manifest.families
    for family in families:
        if family not in known:
            raise BundleError(
                f"the bundle {path} cannot plan for {family!r}; it has: {', '.join(known)}"
            )


def carry_out_scenes(
    scenes: Sequence[Scene], settings: Settings, watch: Watch = lambda scene, execution: None
) -> Iterator[Run]:
    """Carry out scenes in closed loop and yield what came of each.

    A node of our own is a process for each family in turn. It and this process meet on the loopback
    interface only; the environment of this process is set to that.

    Raises:
        NodeError: a node is not there, does not answer, contradicts itself, or plans for another
            family.
        OSError: a node of our own did not end well.
    """
    if settings.node is None:
        os.environ.update(own_environment())
    # Ctrl-C ends the loop here, not what it waits for.
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        with open_renderer(settings.renderer) as drawer:
            for family, own in groupby(scenes, lambda scene: scene.family):
                with _asked(settings, family) as ask:
                    for scene in own:
                        what = (scene.family, scene.level, settings.split, scene.seed)
                        execution = Execution(
                            drawer,
                            sample_split(*what),
                            style_seed(*what),
                            settings.size,
                            settings.styles,
                        )
                        lost = partial(_is_lost, scene, settings.slip)
                        watcher = watch(scene, execution)
                        yield carry_out(execution, ask, settings.keep_plan, lost, watcher)
    finally:
        rclpy.try_shutdown()


def _is_lost(scene: Scene, slip: float, step: int) -> bool:
    # Seeding by text gives every step a stream of its own, as in `sim.sample`.
    text = f"slip/{scene.family}/{scene.level}/{scene.seed}/{step}"
    return random.Random(text).random() < slip


@contextmanager
def _asked(settings: Settings, family: str) -> Iterator[Ask]:
    if settings.node is not None:
        with PlannerClient("simulator", settings.image_topic, settings.node) as client:
            yield ask_node(client, family, _grid(client))
        return
    parameters = {
        "family": family,
        "repair": settings.repair,
        "grid.cell_size": CELL_SIZE,
        **({} if settings.bundle is None else {"bundle": settings.bundle}),
    }
    with (
        planner_node(os.environ, parameters),
        PlannerClient("simulator", IMAGE_TOPIC, NODE) as client,
    ):
        yield ask_node(client, family, _grid(client))


def _grid(client: PlannerClient) -> GridFrame | None:
    """Return where the node's grid lies; None where it is not calibrated."""
    names = ("frame_id", "origin_x", "origin_y", "yaw", "cell_size")
    frame_id, x, y, yaw, cell_size = client.parameters([f"grid.{name}" for name in names])
    if not all(isinstance(number, float) for number in (x, y, yaw, cell_size)):
        raise NodeError("the node has no parameters grid.*: it is no planner")
    return GridFrame(str(frame_id), x, y, yaw, cell_size) if cell_size else None
