"""Rectification against cameras with formulas of their own, and against rendered scenes."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mgsd_core.runtime.preprocess import ImageError
from mgsd_ros.camera_model import CameraModel, model_of
from mgsd_ros.grid_frame import GridFrame
from mgsd_ros.work_area import (
    AreaCorners,
    AreaPose,
    CameraCalibration,
    CameraPose,
    Rectifier,
    WorkAreaError,
    view_of,
)
from sim.dataset import style_seed
from sim.drawing import canonical_cell_to_pixel
from sim.renderers import open_renderer
from sim.sampling import sample_split
from sim.scene import (
    CELL_SIZE,
    MARGIN,
    SEMANTIC_IDS,
    build_scene,
    cell_centre,
    grid_of,
    make_camera,
)
from sim.style import make_style

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (extra ros)")

# --- A camera over a grid, by formulas of its own -------------------------------------------------

#: Distortion model and coefficients: none, mild, a strong barrel, a pincushion, a rational one as
#: depth cameras have it, two fisheyes.
LENSES = {
    "none": ("plumb_bob", (0.0, 0.0, 0.0, 0.0, 0.0)),
    "mild": ("plumb_bob", (-0.12, 0.05, 0.0, 0.0, -0.01)),
    "barrel": ("plumb_bob", (-0.40, 0.16, 0.0, 0.0, -0.02)),
    "pincushion": ("plumb_bob", (0.25, 0.10, 0.0, 0.0, 0.0)),
    "rational": ("rational_polynomial", (1.2, 0.3, 0.0, 0.0, 0.02, 1.5, 0.6, 0.05)),
    "fisheye": ("equidistant", (-0.02, 0.01, -0.005, 0.001)),
    "ideal fisheye": ("equidistant", (0.0, 0.0, 0.0, 0.0)),
}


def distorted_radius(model: str, d: tuple[float, ...], r: np.ndarray) -> np.ndarray:
    """Where a point `r` focal lengths from the axis lands, lenses without tangential distortion."""
    if model == "equidistant":
        a = np.arctan(r)
        return a * (1 + d[0] * a**2 + d[1] * a**4 + d[2] * a**6 + d[3] * a**8)
    top = 1 + d[0] * r**2 + d[1] * r**4 + d[4] * r**6
    if model == "rational_polynomial":
        top = top / (1 + d[5] * r**2 + d[6] * r**4 + d[7] * r**6)
    return r * top


def turn(axis: int, angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


@dataclass(frozen=True)
class Rig:
    """A camera that looks at the middle of a grid."""

    cells: int
    grid: GridFrame
    rpy: tuple[float, float, float]
    eye: tuple[float, float, float]
    width: int
    height: int
    focal: float
    centre: tuple[float, float]
    lens: str

    @property
    def rotation(self) -> np.ndarray:
        roll, pitch, yaw = self.rpy
        return turn(2, yaw) @ turn(1, pitch) @ turn(0, roll)

    def floor(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        g = self.grid
        right = np.array([math.cos(g.yaw), math.sin(g.yaw)])
        down = np.array([math.sin(g.yaw), -math.cos(g.yaw)])
        xy = g.cell_size * (column[..., None] * right + row[..., None] * down)
        return xy + np.array([g.origin_x, g.origin_y])

    def project(self, row: object, column: object) -> np.ndarray:
        row, column = np.broadcast_arrays(np.asarray(row, float), np.asarray(column, float))
        xy = self.floor(row, column)
        world = np.concatenate([xy, np.zeros((*xy.shape[:-1], 1))], axis=-1)
        x, y, z = np.moveaxis((world - self.eye) @ self.rotation, -1, 0)
        assert (z > 0).all()
        r = np.hypot(x / z, y / z)
        scale = distorted_radius(*LENSES[self.lens], r) / np.where(r > 0, r, 1)
        uv = np.stack([x / z * scale, y / z * scale], axis=-1)
        return uv * self.focal + self.centre

    def corners(self) -> tuple[tuple[float, float], ...]:
        low, high = -0.5, self.cells - 0.5
        uv = self.project([low, low, high, high], [low, high, high, low])
        return tuple((float(u), float(v)) for u, v in uv)

    def calibration(self, **other: object) -> CameraCalibration:
        model, d = LENSES[self.lens]
        k = (self.focal, 0, self.centre[0], 0, self.focal, self.centre[1], 0, 0, 1)
        return CameraCalibration(self.width, self.height, k, d, model, **other)  # type: ignore[arg-type]

    def pose(self) -> AreaPose:
        return AreaPose(self.cells, self.grid, CameraPose.from_rpy(*self.eye, *self.rpy))

    def photograph(self, colours: np.ndarray) -> np.ndarray:
        """The grid with a colour for each cell [n, n, 3], one sample a pixel, grey around it."""
        v, u = np.mgrid[: self.height, : self.width].astype(float)
        x, y = (u - self.centre[0]) / self.focal, (v - self.centre[1]) / self.focal
        bent = np.hypot(x, y)
        # The inverse by looking it up, as far as the radius grows.
        radii = np.linspace(0, 2.5, 20_001)
        known = distorted_radius(*LENSES[self.lens], radii)
        growing = slice(0, int(known.argmax()) + 1)
        scale = np.interp(bent, known[growing], radii[growing]) / np.where(bent > 0, bent, 1)
        rays = np.stack([x * scale, y * scale, np.ones_like(x)], axis=-1) @ self.rotation.T
        with np.errstate(divide="ignore", invalid="ignore"):
            hit = np.array(self.eye)[:2] - rays[..., :2] / rays[..., 2:] * self.eye[2]
        offset = hit - (self.grid.origin_x, self.grid.origin_y)
        c, s = math.cos(self.grid.yaw), math.sin(self.grid.yaw)
        column = np.floor((offset[..., 0] * c + offset[..., 1] * s) / self.grid.cell_size + 0.5)
        row = np.floor((offset[..., 0] * s - offset[..., 1] * c) / self.grid.cell_size + 0.5)
        inside = (rays[..., 2] < 0) & (row >= 0) & (row < self.cells)
        inside &= (column >= 0) & (column < self.cells)
        picture = np.full((self.height, self.width, 3), 128, np.uint8)
        picture[inside] = colours[row[inside].astype(int), column[inside].astype(int)]
        return picture


def make_rig(
    lens: str = "none",
    cells: int = 5,
    tilt: float = 0.4,
    pitch: float = 0.0,
    heading: float = 0.3,
    distance: float = 1.6,
    width: int = 641,
    height: int = 487,
    shift: tuple[float, float] = (0.0, 0.0),
    grid: GridFrame | None = None,
) -> Rig:
    """A camera tilted by `tilt`, `distance` sides of the grid away, that just has it in view."""
    if grid is None:
        grid = GridFrame("map", 1.0, -2.0, 0.7, 0.25)
    rpy = (math.pi + tilt, pitch, heading)
    rotation = turn(2, rpy[2]) @ turn(1, rpy[1]) @ turn(0, rpy[0])
    middle = (cells - 1) / 2
    centre = ((width - 1) / 2 + shift[0], (height - 1) / 2 + shift[1])
    rig = Rig(cells, grid, rpy, (0.0, 0.0, 0.0), width, height, 1.0, (0.0, 0.0), lens)
    target = np.append(rig.floor(np.array(middle), np.array(middle)), 0.0)
    eye = target - rotation[:, 2] * distance * cells * grid.cell_size
    rig = dataclasses.replace(rig, eye=tuple(eye.tolist()))
    reach = np.abs(rig.corners()).max()
    room = min(width, height) / 2 - 1 - max(map(abs, shift))
    return dataclasses.replace(rig, focal=float(room / reach), centre=centre)


RIGS = st.builds(
    make_rig,
    lens=st.sampled_from(list(LENSES)),
    cells=st.integers(2, 8),
    tilt=st.floats(0, math.radians(45)),
    pitch=st.floats(-0.2, 0.2),
    heading=st.floats(-math.pi, math.pi),
    distance=st.floats(1.4, 4),
    width=st.integers(400, 700),
    height=st.integers(400, 700),
    shift=st.tuples(st.floats(-15, 15), st.floats(-15, 15)),
    grid=st.builds(
        GridFrame,
        st.just("map"),
        st.floats(-20, 20),
        st.floats(-20, 20),
        st.floats(-math.tau, math.tau),
        st.floats(0.05, 3),
    ),
)


def colours_of(cells: int) -> np.ndarray:
    """A chess board whose fields all have another colour, [n, n, 3]."""
    row, column = np.indices((cells, cells))
    dark = (row + column) % 2 * 100
    return np.stack([20 + 16 * row, 20 + 16 * column, 30 + dark], axis=-1).astype(np.uint8)


def all_places(cells: int, step: float = 0.25) -> np.ndarray:
    along = np.arange(-0.5, cells - 0.5 + 1e-9, step)
    return np.stack(np.meshgrid(along, along, indexing="ij"), axis=-1).reshape(-1, 2)


# --- Rectification ----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(rig=RIGS, side=st.sampled_from([321, 448]), by_corners=st.booleans())
def test_every_cell_lands_where_the_picture_from_above_has_it(
    rig: Rig, side: int, by_corners: bool
) -> None:
    colours = colours_of(rig.cells)
    area = AreaCorners(rig.cells, rig.corners()) if by_corners else rig.pose()
    square = Rectifier(area, side).rectify(rig.photograph(colours), rig.calibration())
    assert square.shape == (side, side, 3)
    assert square.dtype == np.uint8
    to_pixel = canonical_cell_to_pixel(rig.cells, *square.shape[:2])
    for row in range(rig.cells):
        for column in range(rig.cells):
            for down, across in ((0, 0), (-0.3, -0.3), (0.3, -0.3), (0.3, 0.3), (-0.3, 0.3)):
                u, v = to_pixel((row + down, column + across))  # type: ignore[arg-type]
                seen = square[round(v), round(u)]
                assert (seen == colours[row, column]).all(), (row, column, down, across)


@settings(max_examples=60, deadline=None)
@given(rig=RIGS)
def test_corners_and_pose_say_the_same(rig: Rig) -> None:
    size, calibration = (rig.width, rig.height), rig.calibration()
    by_pose = view_of(rig.pose(), *size, calibration)
    by_corners = view_of(AreaCorners(rig.cells, rig.corners()), *size, calibration)
    places = all_places(rig.cells)
    expected = rig.project(*places.T)
    assert np.abs(by_pose.pixels(places) - expected).max() < 1e-6
    assert np.abs(by_corners.pixels(places) - expected).max() < 1e-4


@settings(max_examples=60, deadline=None)
@given(rig=RIGS)
def test_pixels_lead_to_directions_and_back(rig: Rig) -> None:
    camera = model_of(rig.calibration(), rig.width, rig.height)
    pixels = rig.project(*all_places(rig.cells).T)
    assert np.abs(camera.pixels(camera.directions(pixels)) - pixels).max() < 1e-4


def test_a_barrel_lens_folds_nothing_into_the_picture() -> None:
    # r (1 - 0.3 r²) grows up to r = 1.054 and is back in the middle of the picture at 1.826.
    lens = CameraModel(100.0, 100.0, 0.0, 0.0, "plumb_bob", (-0.3, 0.0, 0.0, 0.0))
    pixels = lens.pixels([(0.5, 0, 1), (1.05, 0, 1), (1.06, 0, 1), (1.8, 0, 1), (0, 0, -1)])
    assert pixels[0, 0] == pytest.approx(100 * (0.5 - 0.3 * 0.125))
    assert np.isfinite(pixels[:2]).all()
    assert np.isnan(pixels[2:]).all()
    assert np.isnan(lens.directions([(71.0, 0)])).all(), "farther out than any light"
    assert lens.directions([(70.0, 0)])[0, 0] < 1.055


def test_what_is_not_seen_is_black() -> None:
    rig = make_rig(tilt=0.0, heading=-0.7, grid=GridFrame("map", 0, 0, -0.7, 0.5))
    white = np.full((rig.height, rig.width, 3), 255, np.uint8)
    square = Rectifier(rig.pose(), 200).rectify(white, rig.calibration())
    assert (square[100] == 255).all()
    assert (square[[5, -6]] == 0).all(), "the grid just fits into the picture's height"


def test_the_picture_of_a_camera_from_above_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (160, 160, 3), np.uint8)
    edge = 160 * MARGIN / (1 + 2 * MARGIN)
    low, high = edge - 0.5, 159.5 - edge
    area = AreaCorners(4, ((low, low), (high, low), (high, high), (low, high)))
    assert (Rectifier(area, 160).rectify(picture) == picture).all()


def test_rows_may_be_padded_or_run_backwards() -> None:
    rig = make_rig("barrel", width=333, height=401)
    picture = rig.photograph(colours_of(5))
    rectifier = Rectifier(rig.pose(), 200)
    expected = rectifier.rectify(picture, rig.calibration())
    padded = np.zeros((401, 350, 3), np.uint8)
    padded[:, :333] = picture
    assert (rectifier.rectify(padded[:, :333], rig.calibration()) == expected).all()
    swapped = np.ascontiguousarray(picture[..., ::-1])[..., ::-1]
    assert (rectifier.rectify(swapped, rig.calibration()) == expected).all()
    frozen = picture.copy()
    frozen.flags.writeable = False
    assert (rectifier.rectify(frozen, rig.calibration()) == expected).all()
    assert (picture == frozen).all(), "the frame is left as it was"


def test_what_is_no_picture_is_refused() -> None:
    rectifier = Rectifier(make_rig().pose(), 200)
    with pytest.raises(ImageError, match="shape"):
        rectifier.rectify(np.zeros((487, 641), np.uint8))


def test_the_table_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig()
    rectifier = Rectifier(rig.pose(), 64)
    made: list[int] = []
    convert = cv2.convertMaps
    monkeypatch.setattr(cv2, "convertMaps", lambda *a: made.append(1) or convert(*a))
    picture = np.zeros((rig.height, rig.width, 3), np.uint8)
    for _ in range(3):
        rectifier.rectify(picture, rig.calibration())
    assert len(made) == 1
    other = dataclasses.replace(rig, focal=rig.focal * 0.99).calibration()
    rectifier.rectify(picture, other)
    assert len(made) == 2
    rectifier.rectify(np.zeros((2 * rig.height, 2 * rig.width, 3), np.uint8), other)
    assert len(made) == 3


# --- The camera's own words: CameraInfo --------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    d=st.tuples(*[st.floats(-0.1, 0.1)] * 2, *[st.floats(-0.01, 0.01)] * 2, st.floats(-0.05, 0.05)),
    seed=st.integers(0, 2**32 - 1),
    is_rational=st.booleans(),
)
@example(d=(0.0, 0.0, 0.0, 0.0, 1.1125369292536007e-308), seed=0, is_rational=True)
def test_tangential_distortion_is_opencvs(
    d: tuple[float, ...], seed: int, is_rational: bool
) -> None:
    model = "rational_polynomial" if is_rational else "plumb_bob"
    d = (*d, 0.05, -0.02, 0.01) if is_rational else d
    lens = CameraModel(500.0, 510.0, 320.0, 240.0, model, d)
    rng = np.random.default_rng(seed)
    points = np.column_stack([rng.uniform(-0.8, 0.8, (50, 2)), np.ones(50)])
    k = np.array([[500, 0, 320], [0, 510, 240], [0, 0, 1.0]])
    expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), k, np.array(d))
    pixels = lens.pixels(points)
    known = np.isfinite(pixels).all(axis=1)
    assume(known.sum() > 10)
    assert np.abs(pixels - expected[:, 0])[known].max() < 1e-6
    back = lens.pixels(lens.directions(pixels[known]))
    assert np.abs(back - pixels[known]).max() < 1e-3


@pytest.mark.parametrize("lens", ["fisheye", "ideal fisheye"])
def test_the_fisheye_is_opencvs(lens: str) -> None:
    model, d = LENSES[lens]
    camera = CameraModel(300.0, 310.0, 320.0, 240.0, model, d)
    rng = np.random.default_rng(1)
    plane = rng.uniform(-4, 4, (200, 2))
    k = np.array([[300, 0, 320], [0, 310, 240], [0, 0, 1.0]])
    expected = cv2.fisheye.distortPoints(plane[None], k, np.array(d))[0]
    pixels = camera.pixels(np.column_stack([plane, np.ones(200)]))
    assert np.abs(pixels - expected).max() < 1e-6
    assert np.abs(camera.directions(pixels)[:, :2] - plane).max() < 1e-6


@pytest.mark.parametrize("lens", list(LENSES))
@pytest.mark.parametrize("factor", [2, 3])
def test_binned_resized_and_cut_pictures_are_understood(lens: str, factor: int) -> None:
    rig = make_rig(lens, width=600, height=480)
    places = all_places(rig.cells)
    # The middle of a block of pixels: 2 × 2 from (0, 0) on have it at (0.5, 0.5).
    expected = (rig.project(*places.T) - (factor - 1) / 2) / factor
    size = (rig.width // factor, rig.height // factor)
    binned = rig.calibration(binning_x=factor, binning_y=factor)
    resized = rig.calibration()
    for calibration in (binned, resized):
        view = view_of(rig.pose(), *size, calibration)
        assert np.abs(view.pixels(places) - expected).max() < 1e-6
    larger = view_of(rig.pose(), 600 * factor, 480 * factor, resized)
    assert np.abs(
        (larger.pixels(places) - (factor - 1) / 2) / factor - rig.project(*places.T)
    ).max() < (1e-6)


def test_a_region_of_interest_moves_the_pixels() -> None:
    rig = make_rig("barrel", width=600, height=480)
    cut = rig.calibration(roi=(40, 2, 520, 476), binning_x=2, binning_y=1)
    places = all_places(rig.cells)
    u, v = (rig.project(*places.T) - (40, 2)).T
    view = view_of(rig.pose(), 260, 476, cut)
    assert np.abs(view.pixels(places) - np.stack([(u - 0.5) / 2, v], 1)).max() < 1e-6
    with pytest.raises(WorkAreaError, match="is of 260 × 476 px, the picture has 600 × 480"):
        view_of(rig.pose(), 600, 480, cut)


def test_a_picture_of_another_shape_is_refused() -> None:
    rig = make_rig(width=640, height=480)
    for size in ((640, 400), (320, 480), (500, 375), (641, 480)):
        with pytest.raises(WorkAreaError, match=r"640 × 480.*not smaller or larger by a whole"):
            view_of(rig.pose(), *size, rig.calibration())


def test_undistorted_pictures_follow_r_and_p() -> None:
    rig = make_rig("barrel", tilt=0.3, distance=3.0)
    r = turn(1, 0.03) @ turn(0, -0.02)
    p = (300.0, 0, 330, -45.0, 0, 305, 250, 0, 0, 0, 1, 0)
    calibration = rig.calibration(r=tuple(r.ravel()), p=p)
    places = all_places(rig.cells)
    xy = rig.floor(*places.T)
    world = np.column_stack([xy, np.zeros(len(xy))])
    x, y, z = r @ ((world - rig.eye) @ rig.rotation).T
    expected = np.stack([300 * x / z + 330, 305 * y / z + 250], 1)
    view = view_of(rig.pose(), rig.width, rig.height, calibration, rectified=True)
    assert np.abs(view.pixels(places) - expected).max() < 1e-6


def test_camera_info_is_read_field_by_field() -> None:
    rig = make_rig("fisheye")
    expected = rig.calibration(binning_x=2, roi=(0, 0, 600, 400))
    message = SimpleNamespace(
        width=641,
        height=487,
        distortion_model="equidistant",
        d=np.array(expected.d),
        k=np.array(expected.k),
        r=np.eye(3).ravel(),
        p=np.zeros(12),
        binning_x=2,
        binning_y=1,
        roi=SimpleNamespace(x_offset=0, y_offset=0, width=600, height=400, do_rectify=False),
    )
    read = CameraCalibration.from_message(message)
    assert read == expected
    assert hash(read) == hash(expected)


def test_a_real_message_is_read() -> None:
    sensor_msgs = pytest.importorskip("sensor_msgs.msg", reason="no ROS messages (extra ros)")
    k = [500.0, 0.0, 320.0, 0.0, 500.0, 240.0, 0.0, 0.0, 1.0]
    message = sensor_msgs.CameraInfo(
        width=640, height=480, distortion_model="plumb_bob", d=[0.0] * 5, k=k
    )
    model = model_of(CameraCalibration.from_message(message), 640, 480)
    assert model.pixels([(0, 0, 1)]).tolist() == [[320, 240]]
    with pytest.raises(WorkAreaError, match="not calibrated"):
        CameraCalibration.from_message(sensor_msgs.CameraInfo(width=640, height=480))


GOOD = make_rig().calibration()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": (0.0,) * 9}, "not calibrated: K is all 0"),
        ({"k": (0.0,) * 8}, "K must have 9 numbers, not 8"),
        ({"k": (-5.0, 0, 1, 0, 5, 1, 0, 0, 1)}, "K must be fx 0 cx"),
        ({"k": (5.0, 0.1, 1, 0, 5, 1, 0, 0, 1)}, "K must be fx 0 cx"),
        ({"k": (math.nan,) * 9}, "K has a number that is not finite"),
        ({"p": (math.inf,) * 12}, "P has a number that is not finite"),
        ({"p": (1.0,) * 12}, "P must be fx 0 cx"),
        ({"r": (1.0,) * 9}, "R is no rotation"),
        ({"r": (-1.0, 0, 0, 0, 1, 0, 0, 0, 1)}, "R is no rotation"),
        ({"d": (math.nan,) * 5}, "D has a number that is not finite"),
        ({"d": (0.1,) * 3}, "must have 4 or 5 coefficients, not 3"),
        ({"d": (0.1,) * 12, "distortion_model": "rational_polynomial"}, "must have 8 coefficients"),
        ({"d": (0.1,), "distortion_model": "spherical"}, "'spherical'; known are plumb_bob"),
        ({"d": (), "distortion_model": "spherical"}, "'spherical'; known are plumb_bob"),
        ({"width": 0}, "each side must be 1 to"),
        ({"binning_x": -1}, "must not be negative"),
        ({"roi": (10, 0, 640, 480)}, "does not lie in its 641 × 487 px"),
    ],
)
def test_a_camera_info_that_cannot_be_is_named(changes: dict[str, object], says: str) -> None:
    with pytest.raises(WorkAreaError, match=re.escape(says)) as caught:
        dataclasses.replace(GOOD, **changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_no_distortion_may_be_said_in_several_ways() -> None:
    for model, d in (("", ()), ("plumb_bob", ()), ("plumb_bob", (0.0,) * 5), ("", (0.0,) * 5)):
        camera = model_of(dataclasses.replace(GOOD, distortion_model=model, d=d), 641, 487)
        assert camera.pixels([(0.5, 0, 1)])[0, 0] == pytest.approx(GOOD.k[2] + GOOD.k[0] / 2)


# --- Areas that cannot be -----------------------------------------------------------------------

SQUARE = ((100.0, 100.0), (300.0, 100.0), (300.0, 300.0), (100.0, 300.0))


@pytest.mark.parametrize(
    ("corners", "says"),
    [
        (SQUARE[:3], "needs 4 corners"),
        ((*SQUARE, (1.0, 1.0)), "needs 4 corners"),
        (((1.0,), *SQUARE[1:]), "needs 4 corners"),
        (((math.nan, 0.0), *SQUARE[1:]), "must be finite"),
        (SQUARE[::-1], "mirrored order; give top left, top right, bottom right, bottom left"),
        ((SQUARE[1], SQUARE[0], SQUARE[2], SQUARE[3]), "no convex quadrilateral"),
        ((SQUARE[0], SQUARE[1], (150.0, 120.0), SQUARE[3]), "no convex quadrilateral"),
        (((0.0, 0.0), (9.0, 9.0), (50.0, 50.0), (70.0, 70.0)), "no convex quadrilateral"),
        ((SQUARE[0],) * 4, "no convex quadrilateral"),
        (((100.0, 100.0), (103.0, 100.0), (103.0, 103.0), (100.0, 103.0)), "px across"),
        (((100.0, 100.0), (300.0, 100.0), (300.0, 103.0), (100.0, 103.0)), "px across"),
        (((-150.0, 100.0), (300.0, 100.0), (300.0, 300.0), (-150.0, 300.0)), "outside the picture"),
        (((100.0, 100.0), (300.0, 100.0), (300.0, 3000.0), (100.0, 3000.0)), "cell (1, 0)"),
    ],
)
def test_corners_that_cannot_be_are_named(corners: object, says: str) -> None:
    with pytest.raises(WorkAreaError, match=re.escape(says)) as caught:
        view_of(AreaCorners(4, corners), 640, 480)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_pictures_that_opencv_cannot_map_are_refused() -> None:
    with pytest.raises(WorkAreaError, match="the picture has 40000 × 480 px; each side must be"):
        view_of(AreaCorners(4, SQUARE), 40_000, 480)


def test_a_corner_may_lie_a_little_outside() -> None:
    area = AreaCorners(4, ((-20.0, 100.0), (300.0, 100.0), (300.0, 300.0), (-20.0, 300.0)))
    assert view_of(area, 640, 480).pixels([(2, 0)])[0] == pytest.approx((20, 225))


def test_turned_cameras_give_turned_corners() -> None:
    turned = AreaCorners(4, (*SQUARE[1:], SQUARE[0]))
    assert view_of(turned, 640, 480).pixels([(0, 0)])[0] == pytest.approx((275, 125))


@pytest.mark.parametrize("cells", [0, 1, 1000, 4.0, True])
def test_a_grid_needs_a_number_of_cells(cells: object) -> None:
    with pytest.raises(WorkAreaError, match="cells a side"):
        AreaCorners(cells, SQUARE)  # type: ignore[arg-type]


def test_an_area_out_of_sight_is_named() -> None:
    rig = make_rig()
    size, calibration = (rig.width, rig.height), rig.calibration()

    def say(match: str, eye: tuple[float, ...] = rig.eye, rpy: tuple[float, ...] = rig.rpy) -> None:
        area = AreaPose(rig.cells, rig.grid, CameraPose.from_rpy(*eye, *rpy))
        with pytest.raises(WorkAreaError, match=match) as caught:
            view_of(area, *size, calibration)
        assert "\n" not in str(caught.value)

    x, y, z = rig.eye
    roll, pitch, yaw = rig.rpy
    say("behind the camera", rpy=(roll + math.pi, pitch, yaw))
    say("above the work area", eye=(x, y, -z), rpy=(roll + math.pi, pitch, yaw))
    say("outside the picture", eye=(x + 2, y, z))
    say("px across", eye=(1.5, -2.0, 300.0), rpy=(math.pi, 0.0, 0.0))
    with pytest.raises(WorkAreaError, match="needs the camera's CameraInfo"):
        view_of(rig.pose(), *size)
    beyond = AreaCorners(5, ((-2000.0, -2000.0), (600.0, 0.0), (600.0, 400.0), (0.0, 400.0)))
    barrel = dataclasses.replace(rig, lens="barrel").calibration()
    with pytest.raises(WorkAreaError, match="no light reaches the work area's top left corner"):
        view_of(beyond, *size, barrel)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ((math.nan, 0, 0, 0, 0, 0, 1), "finite"),
        ((0, 0, 1, 0, 0, 0, 0), "length 1, not 0"),
        ((0, 0, 1, 1, 1, 0, 0), "length 1"),
    ],
)
def test_a_pose_that_is_none_is_named(numbers: tuple[float, ...], says: str) -> None:
    with pytest.raises(WorkAreaError, match=says):
        CameraPose(*numbers)


@given(st.tuples(*[st.floats(-math.pi, math.pi)] * 3))
def test_a_pose_is_the_same_by_angles_and_by_matrix(rpy: tuple[float, float, float]) -> None:
    matrix = np.eye(4)
    matrix[:3, :3] = turn(2, rpy[2]) @ turn(1, rpy[1]) @ turn(0, rpy[0])
    matrix[:3, 3] = 1, 2, 3
    pose = CameraPose.from_matrix(matrix)
    assert (pose.x, pose.y, pose.z) == (1, 2, 3)
    assert np.abs(pose.rotation() - matrix[:3, :3]).max() < 1e-9
    by_angles = CameraPose.from_rpy(1, 2, 3, *rpy)
    assert np.abs(by_angles.rotation() - matrix[:3, :3]).max() < 1e-9


def test_the_side_is_checked() -> None:
    rig = make_rig()
    with pytest.raises(WorkAreaError, match="32 to 2048 px"):
        Rectifier(rig.pose(), 8)


def test_without_opencv_only_rectifying_is_refused() -> None:
    code = (
        "import sys; sys.modules['cv2'] = None\n"
        "from mgsd_ros.work_area import *\n"
        "area = AreaCorners(4, ((9, 9), (90, 9), (90, 90), (9, 90)))\n"
        "view_of(area, 100, 100)\n"
        "try: Rectifier(area, 64)\n"
        "except WorkAreaError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("rectifying pictures needs OpenCV (ROS: python3-opencv; pip: ")
    assert done.stdout.count("\n") == 1


# --- Real pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "level"), [("frozenlake", 4), ("maze", 5), ("minibehaviour", 6)]
)
def test_a_rendered_scene_is_seen_from_above(family: str, level: int) -> None:
    pytest.importorskip("panda3d", reason="panda3d is not installed (extra sim)")
    size, tilts = 320, []
    from_above = make_camera(level, make_style(None), size, size)
    floor_id = SEMANTIC_IDS["floor"]
    with open_renderer("panda") as renderer:
        for seed in range(300, 306):
            state = sample_split(family, level, "test", seed)
            scene = build_scene(state, style_seed(family, level, "test", seed), size, size)
            camera = scene.camera
            tilts.append(scene.style.view.tilt)
            k = (camera.fx, 0, camera.cx, 0, camera.fy, camera.cy, 0, 0, 1)
            calibration = CameraCalibration(size, size, k)
            grid = GridFrame("world", *cell_centre((0, 0), level), 0.0, CELL_SIZE)
            area = AreaPose(level, grid, CameraPose.from_matrix(camera.matrix()))
            view = view_of(area, size, size, calibration)
            cells = np.moveaxis(np.indices((level, level)), 0, -1).reshape(-1, 2)
            pixels = grid_of(scene).pixels(cells)  # type: ignore[arg-type]
            assert np.abs(view.pixels(cells) - pixels).max() < 1e-6

            raw = renderer.render(scene, semantic=True)
            top = renderer.render(scene, from_above, semantic=True)
            assert raw.semantic is not None
            assert top.semantic is not None
            square = Rectifier(area, size).rectify(raw.rgb, calibration)
            # Where both see the floor, both see the same, and no neighbouring place fits better.
            u, v = view.source_pixels(size)
            inside = (u > 0) & (u < size - 1) & (v > 0) & (v < size - 1)
            u, v = (np.where(inside, i, 0).round().astype(int) for i in (u, v))
            floor = inside & (raw.semantic[v, u] == floor_id) & (top.semantic == floor_id)
            floor[:3] = floor[-3:] = floor[:, :3] = floor[:, -3:] = False
            assert floor.mean() > 0.2
            errors = {}
            for down in range(-3, 4):
                for right in range(-3, 4):
                    shifted = np.roll(square, (-down, -right), (0, 1)).astype(int)
                    errors[down, right] = np.abs(shifted - top.rgb)[floor].mean()
            assert max(map(abs, min(errors, key=errors.__getitem__))) <= 1
            assert errors[0, 0] < 8
    assert max(tilts) > 0.3, "some of the cameras are oblique"
