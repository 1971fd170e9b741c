"""Cameras: exact projection, its inverses, JSON, and refusal of what no camera is."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.camera import PROJECTIONS, Camera, CameraError

DOWN = Camera.looking_at((0, 0, 2), (0, 0, 0), (0, 1, 0), 101, 51, 100.0)

angles = st.floats(-math.pi, math.pi)


@st.composite
def cameras(draw: st.DrawFn) -> Camera:
    azimuth, height = draw(angles), draw(st.floats(0.5, 5))
    away = draw(st.floats(0.1, 3))
    eye = (away * math.cos(azimuth), away * math.sin(azimuth), height)
    roll = draw(angles)
    looking = Camera.looking_at(
        eye,
        (0, 0, 0),
        (math.cos(roll), math.sin(roll), 0.3),
        draw(st.integers(1, 2000)),
        draw(st.integers(1, 2000)),
        draw(st.floats(10, 2000)),
    )
    projection = draw(st.sampled_from(PROJECTIONS))
    fy, cx, cy = draw(st.floats(10, 2000)), draw(st.floats(-50, 2000)), draw(st.floats(-50, 2000))
    return Camera(looking.width, looking.height, looking.fx, fy, cx, cy, looking.pose, projection)


def test_straight_down_x_is_right_y_is_up_and_pixel_centres_are_whole() -> None:
    pixels = DOWN.project([(0, 0, 0), (0.2, 0, 0), (0, 0.2, 0), (0.2, 0.2, 1)])
    # By hand: 100 px focal length; 0.2 m at 2 m is 10 px, at 1 m 20 px.
    assert np.allclose(pixels, [(50, 25), (60, 25), (50, 15), (70, 5)])
    assert np.allclose(DOWN.depth_of([(5, 7, 0), (0, 0, 1)]), [2, 1])


def test_points_behind_the_camera_have_no_pixel() -> None:
    assert np.isnan(DOWN.project([(0, 0, 2), (0, 0, 3)])).all()


def test_rays_that_do_not_go_down_meet_no_ground() -> None:
    level = Camera.looking_at((0, 0, 1), (1, 0, 1), (0, 0, 1), 11, 11, 10.0)
    ground = level.to_ground([(5, 0), (5, 5), (5, 10)])
    assert np.isnan(ground[:2]).all()
    # 45 degrees down from a height of 1 m would be at 10 px; here 5 px down from the middle.
    assert np.allclose(ground[2], (2, 0, 0))


@given(cameras(), st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(-0.2, 0.2))
def test_to_ground_inverts_project(camera: Camera, x: float, y: float, z: float) -> None:
    point = [(x, y, z)]
    assert np.allclose(camera.to_ground(camera.project(point), z), point, atol=1e-6)


@given(cameras(), st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(-0.2, 0.2))
def test_the_projection_matrix_projects(camera: Camera, x: float, y: float, z: float) -> None:
    u, v, w = camera.projection_matrix() @ (x, y, z, 1)
    assert np.allclose((u / w, v / w), camera.project([(x, y, z)])[0], rtol=1e-9, atol=1e-6)


def test_an_orthographic_camera_keeps_lengths_at_any_distance() -> None:
    camera = Camera.looking_at((0, 0, 9), (0, 0, 0), (0, 1, 0), 101, 51, 10.0, "orthographic")
    # By hand: 10 px a metre.
    assert np.allclose(camera.project([(1, 0, 0), (1, 2, 5)]), [(60, 25), (60, 5)])
    assert np.allclose(camera.depth_of([(1, 2, 5)]), [4])


@given(cameras())
def test_a_camera_survives_json(camera: Camera) -> None:
    assert Camera.from_dict(json.loads(json.dumps(camera.to_dict()))) == camera


BROKEN = {
    "projection": "fisheye",
    "width": 0,
    "height": 1.5,
    "fx": -1.0,
    "fy": math.nan,
    "cx": "middle",
    "cy": None,
    "pose": [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
}


@pytest.mark.parametrize("field", ["width", "fx", "cy"])
def test_a_number_beyond_floats_is_refused(field: str) -> None:
    with pytest.raises(CameraError, match=field):
        Camera.from_dict(DOWN.to_dict() | {field: 10**400})


@pytest.mark.parametrize("field", BROKEN)
def test_a_wrong_field_is_named(field: str) -> None:
    with pytest.raises(CameraError, match=field):
        Camera.from_dict(DOWN.to_dict() | {field: BROKEN[field]})


@pytest.mark.parametrize(
    "pose",
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],  # a mirror
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2]],
        [[1, 0, 0, math.inf], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        [[1, 0, 0, 10**400], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        [["a"] * 4] * 4,
        None,
    ],
)
def test_a_pose_that_is_no_rigid_transform_is_refused(pose: object) -> None:
    with pytest.raises(CameraError, match="pose"):
        Camera.from_dict(DOWN.to_dict() | {"pose": pose})


@pytest.mark.parametrize("data", [None, [], {}, DOWN.to_dict() | {"zoom": 1}])
def test_missing_and_unknown_fields_are_refused(data: object) -> None:
    with pytest.raises(CameraError, match="fields"):
        Camera.from_dict(data)  # type: ignore[arg-type]


def test_looking_along_up_is_refused() -> None:
    with pytest.raises(CameraError, match="one line"):
        Camera.looking_at((0, 0, 2), (0, 0, 0), (0, 0, 1), 10, 10, 10.0)
