"""The one place that knows which renderers there are, and opens them.

A renderer draws scenes and says what state stands in the world that it draws. Its library is
loaded when it is opened, so that a machine needs only the one that it uses.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Self

from sim.camera import Camera, Frame
from sim.scene import Scene, build_scene
from sim.states import State

#: Names that `open_renderer` takes.
RENDERERS = ("habitat", "panda", "flat")

_MODULES = {"habitat": "habitat_sim", "panda": "panda3d", "flat": "PIL"}
_INSTALL = {
    "habitat": "habitat-sim is not installed: conda install habitat-sim withbullet headless -c "
    "conda-forge -c aihabitat-nightly, or pip install "
    "git+https://github.com/facebookresearch/habitat-sim; --renderer panda needs neither",
    "panda": "panda3d is not installed: pip install 'mgsd_ros[sim]'",
    "flat": "pillow is not installed: pip install mgsd_ros",
}


class UnknownRendererError(ValueError):
    """A renderer that is none of `RENDERERS`."""


class MissingRendererError(OSError):
    """A renderer whose library is not installed here; the message says how to install it."""


class Renderer(AbstractContextManager["Renderer"], ABC):
    """Draws one scene after another; use it as a context manager or call `close`.

    It belongs to the thread that made it.

    Attributes:
        name: one of `RENDERERS`.
    """

    name: str

    def build(self, state: State, style_seed: int | None, size: int, styles: str) -> Scene:
        """Return a scene of a state with the camera of this renderer's pictures, `size` px square.

        See `sim.scene.build_scene` for the other arguments and the errors.
        """
        return build_scene(state, style_seed, size, size, styles=styles)

    @abstractmethod
    def render(
        self,
        scene: Scene,
        camera: Camera | None = None,
        depth: bool = False,
        semantic: bool = False,
    ) -> Frame:
        """Return what `camera` (default: the scene's own) sees of a scene.

        Equal arguments give equal bytes.
        """

    @abstractmethod
    def read_state(self, scene: Scene) -> State:
        """Return the state that stands in the renderer's world once `scene` is loaded into it.

        Read from that world alone: `scene` says what to load, not what is there.

        Raises:
            sim.readback.ReadbackError: what stands there makes no state.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back the renderer's memory; drawing afterwards raises OSError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def check_renderer(name: str) -> str:
    """Return `name`, or raise where there is no such renderer or it is not installed.

    Raises:
        UnknownRendererError, MissingRendererError: see there.
    """
    if name not in RENDERERS:
        raise UnknownRendererError(
            f"unknown renderer {name!r}; renderers are: {', '.join(RENDERERS)}"
        )
    if importlib.util.find_spec(_MODULES[name]) is None:
        raise MissingRendererError(_INSTALL[name])
    return name


def open_renderer(name: str) -> Renderer:
    """Open a renderer; see `check_renderer` for the errors."""
    check_renderer(name)
    if name == "habitat":
        from sim.habitat import HabitatRenderer

        return HabitatRenderer()
    if name == "flat":
        from sim.flat import FlatRenderer

        return FlatRenderer()
    from sim.panda import PandaRenderer

    return PandaRenderer()
