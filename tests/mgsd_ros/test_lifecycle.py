"""The node as lifecycle managers, operators and monitors see it: real rclpy, real DDS."""

from __future__ import annotations

import array
import io
import json
import math
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PictureFile
from ros_processes import Client, StartNode

pytest.importorskip("rclpy", reason="rclpy is not installed (extra ros)")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Path as PathMessage
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import Marker, MarkerArray

from mgsd_ros.answers import FrameHeader
from mgsd_ros.messages import image_message
from mgsd_ros.planner_client import PlannerClient
from sim import state_to_dict
from sim.scene import MARGIN

MANAGED = ("-p", "autostart:=false")
PLACED = ("-p", "grid.cell_size:=0.5", "-p", "grid.frame_id:=field")


def memory_and_threads(pid: int) -> tuple[float, int]:
    """Return a process's memory [MiB] and number of threads."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident, threads = (re.search(rf"{key}:\s+(\d+)", status) for key in ("VmRSS", "Threads"))
    assert resident and threads
    return int(resident[1]) / 1024, int(threads[1])


def start_managed(start_node: StartNode, *arguments: str):
    # Nothing of ours is logged before it is configured, so wait for the middleware only.
    return start_node(*MANAGED, *arguments, until="")


def test_a_manager_brings_it_up_and_down(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    node = start_managed(start_node, *PLACED)
    paths = client.listen(PathMessage, "/planner/plan", latched=True)
    answers = client.listen(String, "/planner/actions", latched=True)
    assert client.state() == "unconfigured"
    assert client.transition("configure") and client.state() == "inactive"
    assert client.transition("activate") and client.state() == "active"
    publish = client.camera()
    publish(lake_episodes[0].image)
    client.spin_until(lambda: answers)
    assert json.loads(answers[0].data)["error"] is None and paths[0].poses

    assert client.transition("deactivate") and client.state() == "inactive"
    client.spin_until(lambda: len(paths) == 2 and len(answers) == 2)
    assert not paths[1].poses and paths[1].header.frame_id == "field"
    last = json.loads(answers[1].data)
    assert last["error"] == "the planner was deactivated" and last["actions"] is None
    assert client.transition("cleanup") and client.state() == "unconfigured"
    assert not client.transition("activate")

    assert client.transition("configure") and client.transition("activate")
    client.camera()(lake_episodes[1].image)
    client.spin_until(lambda: len(answers) == 3)
    assert json.loads(answers[2].data)["error"] is None
    assert client.transition("shutdown")
    assert node.end() == 0
    assert "Traceback" not in node.log()


def test_what_cannot_be_configured_says_why_and_can_be_put_right(
    start_node: StartNode, client: Client, bundle_dir: Path
) -> None:
    node = start_managed(start_node, "-p", "bundle:=/not/here")
    assert client.state() == "unconfigured"
    assert client.set_parameter("bundle", "/not/there") == (True, "")
    assert not client.transition("configure")
    assert client.state() == "unconfigured"
    node.wait_for_log("no bundle at /not/there")
    assert client.set_parameter("bundle", str(bundle_dir)) == (True, "")
    assert client.transition("configure")
    taken, reason = client.set_parameter("bundle", "/elsewhere")
    assert not taken and "is read when the node is configured; clean it up first" in reason
    assert node.end() == 0


def test_a_plan_that_ends_after_the_node_was_deactivated_is_not_published(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    node = start_node(*PLACED, module="changed_planner", PLAN="sleep 6")
    paths = client.listen(PathMessage, "/planner/plan", latched=True)
    client.camera()(lake_episodes[0].image)
    client.spin_until(lambda: "a plan is at work" in node.log())
    assert client.transition("deactivate")
    client.spin_until(lambda: paths)
    # An engine does one thing at a time.
    assert not client.transition("activate")
    assert "a plan that was given up is still at work" in node.log()
    client.spin_for(4)
    assert "given up" in node.log() and [len(path.poses) for path in paths] == [0]
    assert client.transition("activate")
    assert "Traceback" not in node.log()


def test_cycles_leave_nothing_behind(start_node: StartNode, client: Client) -> None:
    node = start_managed(start_node)
    found = []
    for _ in range(15):
        for label in ("configure", "activate", "deactivate", "cleanup"):
            assert client.transition(label), node.log()
        found.append(memory_and_threads(node.process.pid))
    memory, threads = zip(*found, strict=True)
    assert threads[-1] == threads[4]
    assert memory[-1] < memory[4] * 1.05
    assert node.end() == 0


@pytest.mark.parametrize("steps", [[], ["configure"], ["configure", "activate"]])
def test_a_signal_ends_it_in_every_state(
    start_node: StartNode, client: Client, steps: list[str]
) -> None:
    node = start_managed(start_node)
    assert client.state() == "unconfigured"
    assert all(client.transition(step) for step in steps)
    assert node.end(signal.SIGINT) == 0
    assert "Traceback" not in node.log()


def test_parameters_change_while_it_runs_and_are_checked(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    start_node()
    paths = client.listen(PathMessage, "/planner/plan")
    publish = client.camera()
    publish(lake_episodes[0].image)
    client.spin_until(lambda: paths)
    assert not paths[-1].poses
    assert client.set_parameter("grid.cell_size", 0.25) == (True, "")
    publish(lake_episodes[0].image)
    client.spin_until(lambda: len(paths) == 2)
    first, second = paths[-1].poses[:2]
    distance = math.dist(
        (first.pose.position.x, first.pose.position.y),
        (second.pose.position.x, second.pose.position.y),
    )
    assert distance == 0.25
    for name, value, says in (
        ("grid.cell_size", -1.0, ""),
        ("grid.frame_id", "", "must not be empty with a calibrated grid"),
        ("max_rate", 1e9, ""),
        ("family", "maze", "clean it up first"),
        ("reliability", "perhaps", "clean it up first"),
    ):
        taken, reason = client.set_parameter(name, value)
        assert not taken and reason and says in reason, (name, reason)


def test_an_answer_that_the_model_is_not_sure_of_is_not_followed(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    start_node(*PLACED)
    answers = client.listen(String, "/planner/actions")
    paths = client.listen(PathMessage, "/planner/plan")
    publish = client.camera()
    publish(lake_episodes[0].image)
    client.spin_until(lambda: answers and paths)
    confidence = json.loads(answers[0].data)["confidence"]
    assert 0 < confidence < 1 and paths[0].poses
    assert client.set_parameter("min_confidence", 1.0) == (True, "")
    publish(lake_episodes[0].image)
    client.spin_until(lambda: len(answers) == len(paths) == 2)
    answer = json.loads(answers[1].data)
    assert not paths[1].poses and answer["actions"]
    assert answer["error"] == (
        f"the model is not sure enough: confidence {confidence:.2f}, and min_confidence is 1.00"
    )
    assert client.set_parameter("min_confidence", confidence - 1e-3) == (True, "")
    publish(lake_episodes[0].image)
    client.spin_until(lambda: len(paths) == 3)
    assert paths[2].poses


def test_a_path_is_not_left_to_be_followed_blindly(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    start_node(*PLACED, "-p", "frame_timeout:=1.0")
    paths = client.listen(PathMessage, "/planner/plan", latched=True)
    answers = client.listen(String, "/planner/actions")
    publish = client.camera()
    publish(lake_episodes[0].image)
    client.spin_until(lambda: len(paths) == len(answers) == 2)
    assert paths[0].poses and not paths[1].poses  # the camera has fallen silent
    assert "nothing usable has been seen for" in json.loads(answers[-1].data)["error"]
    client.spin_for(1.5)
    assert len(paths) == 2  # that is said once
    publish(lake_episodes[0].image)
    client.spin_until(lambda: len(paths) == 3)
    assert paths[2].poses
    # Frames come, but none that can be used.
    dark = client.node.create_publisher(Image, "/image_raw", 1)
    until = time.monotonic() + 20
    while len(paths) == 3:
        assert time.monotonic() < until
        dark.publish(Image(height=1, width=1, step=2, encoding="16UC1"))
        client.spin_for(0.1)
    assert not paths[3].poses
    publish(lake_episodes[0].image)
    client.spin_until(lambda: len(paths) == 5)
    client.call(SetBool, "enable", data=False)
    client.spin_until(lambda: len(paths) >= 6)
    assert paths[4].poses and not paths[5].poses


def test_a_still_scene_is_planned_on_again_when_more_than_the_picture_changes(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    start_node(*PLACED, "-p", "change_threshold:=5.0")
    paths = client.listen(PathMessage, "/planner/plan")
    publish = client.camera()

    def see(times: int = 4) -> None:
        for _ in range(times):
            publish(lake_episodes[0].image)
            client.spin_for(0.25)

    see()
    assert len(paths) == 1
    assert client.set_parameter("grid.origin_x", 10.0) == (True, "")
    see()
    assert len(paths) == 2
    assert paths[1].poses[0].pose.position.x == paths[0].poses[0].pose.position.x + 10
    # Whoever comes late sees the route as it is, and not one of before.
    markers = client.listen(MarkerArray, "/planner/markers", latched=True)
    client.spin_for(1.0)
    assert all(len(message.markers) == 1 for message in markers)  # nothing is drawn yet
    see()
    assert len(paths) == 3
    line = markers[-1].markers[1]
    assert [point.x for point in line.points] == [p.pose.position.x for p in paths[2].poses]


def test_planning_is_stopped_resumed_and_asked_for_once(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    start_node()
    answers = client.listen(String, "/planner/actions")
    publish = client.camera()
    stopped = client.call(SetBool, "enable", data=False)
    assert (stopped.success, stopped.message) == (True, "not planning")
    publish(lake_episodes[0].image)
    client.spin_for(0.7)
    assert not answers
    timer = client.node.create_timer(0.1, lambda: publish(lake_episodes[1].image))
    once = client.call(Trigger, "plan_once")
    timer.cancel()
    assert once.success
    client.spin_until(lambda: answers)
    assert json.loads(once.message) == json.loads(answers[0].data)
    client.spin_for(0.5)
    count = len(answers)
    publish(lake_episodes[2].image)
    client.spin_for(0.5)
    assert len(answers) == count
    assert client.call(SetBool, "enable", data=True).message == "planning"
    publish(lake_episodes[2].image)
    client.spin_until(lambda: len(answers) == count + 1)


def test_nothing_that_was_at_work_is_published_after_planning_was_switched_off(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    node = start_node(*PLACED, module="changed_planner", PLAN="sleep 1.5")
    paths = client.listen(PathMessage, "/planner/plan", latched=True)
    publish = client.camera()
    publish(lake_episodes[0].image)
    client.spin_until(lambda: paths)
    assert paths[0].poses
    for episode in lake_episodes[:2]:  # one is at work, one waits
        publish(episode.image)
        client.spin_for(0.3)
    client.call(SetBool, "enable", data=False)
    client.spin_for(4.0)
    assert [len(path.poses) > 0 for path in paths] == [True, False]
    assert node.log().count("a plan is at work") == 2


def test_a_plan_asked_for_once_is_of_a_frame_that_came_after(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    node = start_node(*PLACED, module="changed_planner", PLAN="sleep 2")
    publish = client.camera()
    publish(lake_episodes[0].image, "before")
    client.spin_until(lambda: "a plan is at work" in node.log())
    timer = client.node.create_timer(2.5, lambda: publish(lake_episodes[1].image, "after"))
    once = client.call(Trigger, "plan_once")
    timer.cancel()
    assert json.loads(once.message)["frame_id"] == "after"


def test_a_still_scene_is_planned_on_again_where_there_is_no_path(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    start_node(*PLACED, "-p", "change_threshold:=5.0", "-p", "frame_timeout:=1.0")
    paths = client.listen(PathMessage, "/planner/plan")
    publish = client.camera()
    publish(lake_episodes[0].image)
    client.spin_until(lambda: len(paths) == 2)
    assert paths[0].poses and not paths[1].poses  # the camera fell silent
    publish(lake_episodes[0].image)
    client.spin_until(lambda: len(paths) == 3)
    assert paths[2].poses


def test_a_still_scene_is_planned_on_again_after_planning_failed(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    node = start_node("-p", "change_threshold:=5.0", module="changed_planner", PLAN="fail")
    answers = client.listen(String, "/planner/actions")
    publish = client.camera()
    publish(lake_episodes[0].image)
    client.spin_until(lambda: len(answers) == 1)
    publish(lake_episodes[0].image)
    client.spin_until(lambda: len(answers) == 2)
    assert node.end() == 0
    assert "2 failed" in node.log()


def test_shut_down_while_a_plan_is_asked_for_it_answers_and_lives(
    start_node: StartNode, client: Client
) -> None:
    node = start_node(*PLACED)
    once = client.node.create_client(Trigger, "/planner/plan_once")
    client.spin_until(once.service_is_ready)
    future = once.call_async(Trigger.Request())
    client.spin_for(0.5)
    assert client.transition("shutdown") and client.state() == "finalized"
    client.spin_until(future.done)
    assert not future.result().success
    assert "the planner was shut down" in future.result().message
    assert node.end() == 0
    assert "Traceback" not in node.log()


def test_a_plan_asked_for_once_without_a_camera_is_refused_in_time(
    start_node: StartNode, client: Client
) -> None:
    start_node()
    response = client.call(Trigger, "plan_once", timeout=15)
    assert not response.success and "no frame was planned on within 10 s" in response.message


def test_diagnostics_say_how_it_does(start_node: StartNode, client: Client, lake_episodes) -> None:
    start_node(*PLACED, "-p", "frame_timeout:=0.5")
    heard = client.listen(DiagnosticArray, "/diagnostics")

    def status(text: str):
        found = [s for message in heard for s in message.status if text in s.message]
        return found[-1] if found else None

    silent = client.spin_until(lambda: status("no frame since it became active"))
    assert (silent.level, silent.name) == (b"\x02", "/planner")
    publish = client.camera()
    timer = client.node.create_timer(0.1, lambda: publish(lake_episodes[0].image))
    well = client.spin_until(lambda: status("planning"))
    client.spin_for(2.2)
    well = status("planning")
    timer.cancel()
    values = {pair.key: pair.value for pair in well.values}
    assert well.level == b"\x00"
    assert int(values["frames received"]) >= int(values["frames planned"]) > 5
    assert 1 < float(values["plan rate [Hz]"]) <= 10.5
    latency = [float(values[f"plan latency p{p} [ms]"]) for p in (50, 95, 99)]
    assert 0 < latency[0] <= latency[1] <= latency[2] < 5000
    assert values["backend"] == "onnxruntime-cpu" and values["last error"] == ""
    client.spin_until(lambda: status("no frame for"))
    client.call(SetBool, "enable", data=False)
    assert client.spin_until(lambda: status("not enabled")).level == b"\x00"


def test_an_unplaced_grid_and_useless_frames_are_in_the_diagnostics(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    start_node("-p", "max_frame_age:=3600.0")
    heard = client.listen(DiagnosticArray, "/diagnostics")
    publish = client.camera()
    publish(lake_episodes[0].image)
    client.spin_until(lambda: any("not calibrated" in m.status[0].message for m in heard))
    assert heard[-1].status[0].level == b"\x01"
    empty = np.zeros((0, 0, 3), np.uint8)
    publish(empty)
    client.spin_until(lambda: any("image not usable" in m.status[0].message for m in heard))


def test_images_of_one_stamp_get_an_answer_each(
    start_node: StartNode, client: Client, lake_episodes, monkeypatch, ros_env: dict[str, str]
) -> None:
    start_node()
    monkeypatch.setenv("ROS_DOMAIN_ID", ros_env["ROS_DOMAIN_ID"])
    rclpy.init()
    try:
        with PlannerClient("player", "/image_raw", "/planner") as player:
            header = FrameHeader(0, 0, "camera")  # as where nobody fills it in
            images = [image_message(episode.image, header) for episode in lake_episodes[:3]]
            played = [player.ask(image, 20) for image in images]
    finally:
        rclpy.shutdown()
    states = [one.answer["state"] for one in played if one is not None]
    assert states == [state_to_dict(episode.state) for episode in lake_episodes[:3]]


def test_overlay_and_markers_are_drawn_for_whoever_listens(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    start_node(*PLACED)
    episode = lake_episodes[0]
    overlays = client.listen(Image, "/planner/overlay")
    markers = client.listen(MarkerArray, "/planner/markers", latched=True)
    paths = client.listen(PathMessage, "/planner/plan")
    publish = client.camera()
    deadline = time.monotonic() + 20
    while not (overlays and markers) and time.monotonic() < deadline:
        publish(episode.image, "lens")
        client.spin_for(0.2)
    overlay = overlays[-1]
    assert (overlay.encoding, overlay.header.frame_id) == ("rgb8", "lens")
    picture = np.frombuffer(overlay.data, np.uint8).reshape(overlay.height, overlay.width, 3)
    assert (picture == (255, 0, 200)).all(-1).sum() > 50  # the route
    cleared, line, ball = markers[-1].markers
    assert cleared.action == Marker.DELETEALL
    places = [(pose.pose.position.x, pose.pose.position.y) for pose in paths[-1].poses]
    assert [(p.x, p.y) for p in line.points] == places
    assert (line.type, line.header.frame_id) == (Marker.LINE_STRIP, "field")
    assert (ball.pose.position.x, ball.pose.position.y) == places[-1]


def test_compressed_pictures_are_planned_on_and_damaged_ones_are_not(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    node = start_node("-p", "image_transport:=compressed", "-r", "image_raw:=/lens/image")
    answers = client.listen(String, "/planner/actions")
    publisher = client.node.create_publisher(CompressedImage, "/lens/image/compressed", 10)
    client.spin_until(publisher.get_subscription_count)
    client.spin_for(0.5)
    data = io.BytesIO()
    PictureFile.fromarray(lake_episodes[0].image).save(data, "PNG")
    whole = data.getvalue()
    for sent in (whole[: len(whole) // 2], b"", whole):
        publisher.publish(CompressedImage(format="png", data=array.array("B", sent)))
        client.spin_for(0.3)
    client.spin_until(lambda: answers)
    assert len(answers) == 1
    assert json.loads(answers[0].data)["state"] == state_to_dict(lake_episodes[0].state)
    assert any("image not usable" in warning for warning in node.warnings())


def test_a_rate_and_changes_spare_plans(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    start_node("-p", "max_rate:=4.0")
    answers = client.listen(String, "/planner/actions")
    publish = client.camera()
    publish(lake_episodes[0].image)
    client.spin_until(lambda: answers)
    answers.clear()
    timer = client.node.create_timer(1 / 30, lambda: publish(lake_episodes[0].image))
    client.spin_for(2.0)
    assert 5 <= len(answers) <= 9
    # The frame of a plan is the newest that there was when it began.
    client.set_parameter("max_rate", 0.0)
    client.set_parameter("change_threshold", 5.0)
    client.spin_for(0.5)
    answers.clear()
    client.spin_for(1.0)
    assert len(answers) <= 1
    timer.cancel()
    client.spin_for(0.3)
    answers.clear()
    publish(lake_episodes[3].image)
    client.spin_until(lambda: answers)
    publish(lake_episodes[3].image)
    client.spin_for(0.5)
    assert len(answers) == 1


def seen_askew(picture: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Return a picture upside down in the corner of a larger one, and where its grid is in it."""
    side = picture.shape[0]
    large = np.zeros((2 * side, 3 * side, 3), np.uint8)
    large[side - 8 : 2 * side - 8, 20 : 20 + side] = picture[::-1, ::-1]
    # The grid's outer corners, which leave a margin in the picture.
    near, far = (side * share / (1 + 2 * MARGIN) - 0.5 for share in (MARGIN, 1 + MARGIN))
    corners = [(near, near), (far, near), (far, far), (near, far)]
    return large, [
        float(value) for u, v in corners for value in (20 + side - 1 - u, side - 8 + side - 1 - v)
    ]


def test_the_work_area_is_seen_from_above(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra ros)")
    # Cells lie in a style's picture where its own camera puts them; the plain ones look straight
    # down, so only the middle of the picture matters to a student that knows it by heart.
    picture, corners = seen_askew(lake_episodes[0].image)
    start_node("-p", "area.cells:=3", "-p", f"area.corners:={corners}")
    answers = client.listen(String, "/planner/actions")
    client.camera()(picture)
    client.spin_until(lambda: answers)
    assert json.loads(answers[0].data)["state"] == state_to_dict(lake_episodes[0].state)


def test_a_grid_of_another_size_than_the_work_area_is_not_followed(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra ros)")
    picture, corners = seen_askew(lake_episodes[0].image)
    start_node(*PLACED, "-p", "area.cells:=5", "-p", f"area.corners:={corners}")
    answers = client.listen(String, "/planner/actions")
    paths = client.listen(PathMessage, "/planner/plan")
    client.camera()(picture)
    client.spin_until(lambda: answers and paths)
    answer = json.loads(answers[0].data)
    assert answer["error"] == "the model sees 3 cells a side, and the work area has 5"
    assert not paths[0].poses


def test_without_camera_info_nothing_is_planned_and_it_is_said(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra ros)")
    node = start_node(*PLACED, "-p", "area.cells:=3", "-p", "camera.z:=1.5")
    client.camera()(lake_episodes[0].image)
    client.spin_until(lambda: node.warnings())
    assert "nothing usable has come on /camera_info yet" in node.warnings()[0]
