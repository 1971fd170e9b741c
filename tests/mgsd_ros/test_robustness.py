"""The node where things go wrong: real rclpy and DDS, pictures that no camera should send."""

from __future__ import annotations

import array
import io
import json
import math
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image as PictureFile
from ros_processes import STARTED, Client, Node, StartNode

pytest.importorskip("rclpy", reason="rclpy is not installed (extra ros)")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Path as PathMessage
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message, serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header, String
from std_srvs.srv import SetBool
from visualization_msgs.msg import MarkerArray

from mgsd_ros.answers import FrameHeader
from mgsd_ros.conversions import ENCODINGS, ConversionError, rgb_from_message
from mgsd_ros.frame_statistics import FATES
from mgsd_ros.messages import image_message
from mgsd_ros.planner_node import WARNING_PERIOD
from sim import state_to_dict

PLACED = ("-p", "grid.cell_size:=0.5", "-p", "grid.frame_id:=field")

# --- pictures that cannot be used ----------------------------------------------------------------

UINT32 = st.integers(0, 2**32 - 1)
ABSURD = st.sampled_from([0, 65_536, 2**16 + 1, 2**31, 2**32 - 1])
HEADERS = st.builds(
    lambda sec, nanosec, frame: Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id=frame),
    st.integers(-(2**31), 2**31 - 1),
    UINT32,
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
)
# What a field of text holds over DDS: anything but NUL, which ends it.
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)
STRANGE = st.sampled_from(["16UC1", "32FC1", "RGB8", "rgb8 ", "compressed", "x" * 100_000, "ръб8"])


def cut_off(draw: st.DrawFn, message: Any) -> bytes:
    """Return the beginning of a message's bytes."""
    whole: bytes = serialize_message(message)
    # DDS sends fours of bytes and fills up the last.
    return whole[: 4 * draw(st.integers(1, (len(whole) - 1) // 4))]


@st.composite
def images(draw: st.DrawFn) -> Image | bytes:
    """An image in which one thing is wrong, or some; as a message or as its bytes, cut off."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    step = draw(st.integers(0, 9 * width))
    fields: dict[str, Any] = {
        "header": draw(HEADERS),
        "height": height,
        "width": width,
        "step": step,
        "encoding": draw(st.sampled_from(ENCODINGS)),
        "is_bigendian": draw(st.integers(0, 255)),
        "data": array.array("B", bytes(step * height)),
    }
    wrong = draw(st.sampled_from(["step", "data", "encoding", "size", "fields", "bytes"]))
    if wrong == "step":
        fields["step"] = draw(UINT32)
    elif wrong == "data":
        fields["data"] = array.array("B", bytes(draw(st.integers(0, 4 * step * height))))
    elif wrong == "encoding":
        fields["encoding"] = draw(TEXTS | STRANGE)
    elif wrong == "size":
        sides = draw(st.sampled_from([("height",), ("width",), ("height", "width")]))
        fields |= {side: draw(ABSURD | UINT32) for side in sides}
    elif wrong == "fields":
        fields |= {name: draw(UINT32) for name in ("height", "width", "step")}
    message = Image(**fields)
    if wrong != "bytes":
        return message
    return cut_off(draw, message)


def file_of(form: str, **options: Any) -> bytes:
    """Return a noisy picture as a file."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    file = io.BytesIO()
    PictureFile.fromarray(noise).save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, *before: bytes) -> bytes:
    """Return a grey PNG that says it has that size, whatever is in it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + body


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg_of_many_scans(side: int, scans: int) -> bytes:
    """Return a grey, progressive JPEG whose scans all say that nothing changes."""

    def table(kind: int, symbol: int) -> bytes:  # one code, "0", that means the symbol
        return segment(0xC4, bytes([kind << 4, 1]) + bytes(15) + bytes([symbol]))

    blocks = (side // 8) ** 2
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0]))
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(blocks // 8 + 1)
    # Runs of 32,767 blocks without anything: the code, and 14 bits that are set.
    bits = ("0" + "1" * 14) * (blocks // 32_767 + 1)
    bits += "1" * (-len(bits) % 8)
    runs = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    again = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + runs
    tables = segment(0xDB, b"\0" + b"\1" * 64) + table(0, 0) + table(1, 0xE0)
    return b"\xff\xd8" + tables + frame + first + again * scans + b"\xff\xd9"


JPEG, PNG = file_of("JPEG"), file_of("PNG")
NOTHING = zlib.compress(bytes(50_000_000), 9)  # 50 MB in 48 kB
BOMBS = [
    png(2**31 - 1, 2**31 - 1, b""),
    png(8_001, 8_000, bytes(1000)),
    png(64_000_000, 1, bytes(64_000_001)),
    png(1, 32_000_000, bytes(64_000_000)),
    png(0, 0, b""),
    png(8, 8, bytes(72), chunk(b"iCCP", b"p\0\0" + NOTHING)),
    png(8, 8, bytes(72), chunk(b"zTXt", b"t\0\0" + NOTHING)),
    png(8, 8, bytes(72), chunk(b"iTXt", b"t\0\1\0\0\0" + NOTHING)),
    png(8, 8, bytes(50_000_000)),
    jpeg_of_many_scans(8_000, 2_000),
    JPEG[:2] + segment(0xC0, struct.pack(">BHHB", 8, 65_500, 65_500, 1) + bytes([1, 0x11, 0])),
]


@st.composite
def compressed_images(draw: st.DrawFn) -> CompressedImage | bytes:
    """A file that is cut off, damaged, of another kind, or a bomb; or a message that is cut off."""
    data = bytearray(draw(st.sampled_from([JPEG, PNG, file_of("JPEG", progressive=True)])))
    wrong = draw(st.sampled_from(["end", "noise", "bomb", "other", "bytes"]))
    if wrong == "end":
        data = data[: draw(st.integers(0, len(data) - 1))]
    elif wrong == "noise":
        for _ in range(draw(st.integers(1, 8))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    elif wrong == "bomb":
        data = bytearray(draw(st.sampled_from(BOMBS)))
    elif wrong == "other":
        data = bytearray(draw(st.binary(max_size=50)) + draw(st.sampled_from([b"GIF89a", b"BM"])))
    form = draw(TEXTS | st.sampled_from(["jpeg", "png", "16UC1; compressedDepth", "; png"]))
    message = CompressedImage(header=draw(HEADERS), format=form, data=array.array("B", data))
    if wrong != "bytes":
        return message
    return cut_off(draw, message)


class Watch:
    """What the node's diagnostics say about frames."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._heard = client.listen(DiagnosticArray, "/diagnostics")

    def counts(self) -> Counter[str]:
        """Return the newest counts by fate, and of frames "received"."""
        newest = self._client.spin_until(lambda: self._heard)[-1]
        del self._heard[:-1]
        values = {pair.key: pair.value for pair in newest.status[0].values}
        return Counter({name: int(values[f"frames {name}"]) for name in ("received", *FATES)})

    def wait_for(self, counts: Counter[str]) -> None:
        self._client.spin_until(lambda: self.counts() == counts)


def what_is_wrong(message: Image | CompressedImage | bytes, kind: Any) -> ConversionError | None:
    if isinstance(message, bytes):
        try:
            message = deserialize_message(message, kind)
        except Exception as error:
            return ConversionError(str(error))
    try:
        rgb_from_message(message)
    except ConversionError as error:
        return error
    return None


def raw_image(rgb: np.ndarray) -> Image:
    return image_message(rgb, FrameHeader(1, 2, "camera"))


def png_image(rgb: np.ndarray) -> CompressedImage:
    file = io.BytesIO()
    PictureFile.fromarray(rgb).save(file, "PNG")
    return CompressedImage(format="png", data=array.array("B", file.getvalue()))


def memory(node: Node) -> tuple[float, float]:
    """Return a node's memory now and at most so far [MiB]."""
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    now, most = (re.search(rf"{key}:\s+(\d+)", status) for key in ("VmRSS", "VmHWM"))
    assert now and most
    return int(now[1]) / 1024, int(most[1]) / 1024


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_pictures_that_cannot_be_used_do_it_no_harm(
    start_node: StartNode, client: Client, lake_episodes, transport: str
) -> None:
    kind, topic, broken, good = {
        "raw": (Image, "/image_raw", images(), raw_image),
        "compressed": (CompressedImage, "/image_raw/compressed", compressed_images(), png_image),
    }[transport]
    node = start_node(
        *("-p", f"image_transport:={transport}"),
        *("-p", "reliability:=reliable"),
        module="watched_planner",
    )
    answers = client.listen(String, "/planner/actions")
    client.listen(Image, "/planner/overlay")
    watch = Watch(client)
    publisher = client.node.create_publisher(kind, topic, QoSProfile(depth=1))
    client.spin_until(publisher.get_subscription_count)
    client.spin_for(0.5)
    expected, sent, found = watch.counts(), Counter[str](), [memory(node)[0]]
    kinds: dict[str, str] = {}

    # Once the counts differ they stay so: looking for a smaller example would find nothing.
    @settings(
        max_examples=620,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(message=broken)
    def send(message: Any) -> None:
        error = what_is_wrong(message, kind)
        expected.update(["received", "unusable" if error else "planned"])
        if error:
            sent[type(error).__name__] += 1
            kinds[" ".join(str(error).split())] = type(error).__name__
        publisher.publish(message)
        watch.wait_for(expected)  # each is looked at: none gave way to a newer one
        found.append(memory(node)[0])

    began = time.monotonic()
    send()
    lasted = time.monotonic() - began
    assert expected["unusable"] >= 500, expected

    # One warning of a kind in each period, and they account for nearly all.
    warned, told = Counter[str](), Counter[str]()
    for text in node.warnings():
        said = re.fullmatch(
            r"image not usable: (.*?)(?: \(and (\d+) more since the last warning\))?", text
        )
        if said:
            unpacked = "ConversionError" if "cannot be unpacked" in text else None
            name = unpacked or kinds[said[1]]
            warned[name] += 1
            told[name] += 1 + int(said[2] or 0)
    assert set(warned) == set(sent)
    assert max(warned.values()) <= 1 + lasted / WARNING_PERIOD
    assert all(told[name] <= sent[name] for name in sent)

    assert found[-1] < found[len(found) // 4] * 1.1
    assert memory(node)[1] < found[0] + 120
    episode = lake_episodes[0]
    answers.clear()
    publisher.publish(good(episode.image))
    answer = json.loads(client.spin_until(lambda: answers)[0].data)
    assert answer["state"] == state_to_dict(episode.state)
    assert node.end() == 0
    assert "Traceback" not in node.log()


def test_pictures_of_odd_shapes_are_planned_on_and_drawn(
    start_node: StartNode, client: Client
) -> None:
    node = start_node("-p", "reliability:=reliable", *PLACED, module="watched_planner")
    overlays = client.listen(Image, "/planner/overlay")
    client.listen(MarkerArray, "/planner/markers", latched=True)
    watch = Watch(client)
    publisher = client.node.create_publisher(Image, "/image_raw", QoSProfile(depth=1))
    client.spin_until(publisher.get_subscription_count)
    client.spin_for(0.5)
    expected, before = watch.counts(), memory(node)[0]
    for height, width in ((1, 1), (1, 960), (960, 1), (2, 65_535), (65_535, 1), (7, 3_000)):
        publisher.publish(raw_image(np.zeros((height, width, 3), np.uint8)))
        expected.update(["received", "planned"])
        watch.wait_for(expected)
    client.spin_until(lambda: len(overlays) == expected["planned"])
    assert memory(node)[1] < before + 60
    assert node.end() == 0


STEPS = ("configure", "activate", "deactivate", "cleanup")


def holds(node: Node) -> tuple[float, int, int]:
    """Return the memory [MiB] that a watched node uses, its open files and its threads."""
    node.process.send_signal(signal.SIGUSR1)
    time.sleep(0.5)
    files, threads = (Path(f"/proc/{node.process.pid}/{what}") for what in ("fd", "task"))
    return memory(node)[0], len(list(files.iterdir())), len(list(threads.iterdir()))


def test_two_hundred_cycles_under_a_camera_leave_nothing_behind(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    node = start_node(
        *("-p", "autostart:=false"),
        *("--log-level", "error"),
        module="watched_planner",
        until="the node begins",
    )
    answers = client.listen(String, "/planner/actions")
    camera = client.node.create_publisher(Image, "/image_raw", QoSProfile(depth=1))
    client.node.create_timer(1 / 30, lambda: camera.publish(raw_image(lake_episodes[0].image)))
    manager = client.node.create_client(ChangeState, "/planner/change_state")
    client.spin_until(manager.service_is_ready)
    for count in range(200):
        for label in STEPS:
            done = manager.call_async(ChangeState.Request(transition=Transition(label=label)))
            client.spin_until(done.done)
            assert done.result().success, f"{label} in cycle {count}:\n{node.log()}"
            if label == "activate" and count % 4 == 0:
                answers.clear()
                client.spin_until(lambda: answers)
        if count == 20:
            warm = holds(node)
    used, *others = holds(node)
    assert used < warm[0] * 1.05
    assert others == [*warm[1:]]
    assert node.end() == 0
    assert "Traceback" not in node.log()


# --- signals --------------------------------------------------------------------------------------


def end_by_signals(start_node: StartNode, client: Client, rgb: Any, seed: int) -> str:
    """Start a node, send it a signal or two at some moment, and return what was done.

    Frames come all the time, plans take 0.2 s, and in a third of the cases it is led from
    transition to transition.
    """
    dice = random.Random(seed)
    moment = dice.choice(["start", "planning", "transitions"])
    camera = client.node.create_publisher(Image, "/image_raw", QoSProfile(depth=1))
    timer = client.node.create_timer(1 / 30, lambda: camera.publish(raw_image(rgb)))
    node = start_node(
        module="watched_planner",
        PLAN="sleep 0.2",
        until="the node begins" if moment == "start" else STARTED,
    )
    numbers = dice.choices([signal.SIGTERM, signal.SIGINT], k=dice.choice([1, 2, 2]))
    delays = [dice.uniform(0, 1), dice.choice([0, dice.uniform(0, 0.5)])]
    what = f"seed {seed}: {moment}, {[n.name for n in numbers]} after {delays[: len(numbers)]} s"

    def send() -> None:
        for number, delay in zip(numbers, delays, strict=False):
            time.sleep(delay)
            if node.process.poll() is None:
                node.process.send_signal(number)

    sender = threading.Thread(target=send)
    sender.start()
    manager = client.node.create_client(ChangeState, "/planner/change_state")
    labels, asked = cycle(("deactivate", "cleanup", "configure", "activate")), None
    began = time.monotonic()
    while node.process.poll() is None and time.monotonic() < began + 15:
        client.spin_for(0.02)
        if moment == "transitions" and (asked is None or asked.done()):
            change = Transition(label=next(labels))
            asked = manager.call_async(ChangeState.Request(transition=change))
    took = time.monotonic() - began - sum(delays[: len(numbers)])
    sender.join()
    for destroy, thing in (
        (client.node.destroy_timer, timer),
        (client.node.destroy_publisher, camera),
        (client.node.destroy_client, manager),
    ):
        destroy(thing)
    log = node.log()
    assert node.process.poll() == 0, f"{what}: status {node.process.poll()}\n{log}"
    assert took < 4, f"{what}: {took} s\n{log}"
    assert "Traceback" not in log and "rror" not in log, f"{what}\n{log}"
    return what


@pytest.mark.parametrize("seed", range(9))
def test_signals_end_it_at_any_moment(
    start_node: StartNode, client: Client, lake_episodes, seed: int
) -> None:
    end_by_signals(start_node, client, lake_episodes[0].image, seed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_while_it_is_still_imported(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "mgsd_ros.run_node"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        # NumPy is among the first of what the node imports.
        while "_multiarray_umath" not in maps.read_text():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(number)
        _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (0, "")


# --- clocks ---------------------------------------------------------------------------------------


def test_it_goes_on_when_time_stands_still_or_jumps_back(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    node = start_node(
        *("-p", "use_sim_time:=true"),
        *("-p", "max_frame_age:=1.0"),
        *("-p", "reliability:=reliable"),
        module="watched_planner",
    )
    answers = client.listen(String, "/planner/actions")
    watch = Watch(client)
    clock = client.node.create_publisher(Clock, "/clock", 10)
    camera = client.node.create_publisher(Image, "/image_raw", QoSProfile(depth=1))
    client.spin_until(camera.get_subscription_count)
    client.spin_until(clock.get_subscription_count)
    client.spin_for(0.5)
    expected = watch.counts()  # it reports although no clock goes

    def see(stamp: int, fate: str) -> None:
        camera.publish(image_message(lake_episodes[0].image, FrameHeader(stamp, 0, "camera")))
        expected.update(["received", fate])
        watch.wait_for(expected)

    def tick(seconds: int) -> None:
        clock.publish(Clock(clock=Time(sec=seconds)))
        client.spin_for(0.3)

    # Nobody has said yet what time it is.
    see(0, "planned")
    see(1_000, "planned")
    tick(1_000)
    see(1_000, "planned")
    see(998, "stale")
    # A bag begins again: what is on its way from its end is of the future.
    tick(5)
    see(1_000, "planned")
    see(5, "planned")
    see(3, "stale")
    tick(0)
    see(0, "planned")
    assert [json.loads(answer.data)["stamp"]["sec"] for answer in answers][-1] == 0
    assert node.end() == 0
    assert "Traceback" not in node.log()


# --- neighbours -----------------------------------------------------------------------------------


def test_two_planners_on_one_machine_do_not_disturb_each_other(
    start_node: StartNode, client: Client, lake_episodes
) -> None:
    cells = {"left": 0.25, "right": 0.5}
    nodes = {
        side: start_node(
            *("-r", f"__ns:=/{side}"),
            *("-r", f"image_raw:=/cameras/{side}/image"),
            *("-p", f"grid.cell_size:={cell}"),
        )
        for side, cell in cells.items()
    }
    paths = {side: client.listen(PathMessage, f"/{side}/planner/plan") for side in cells}
    heard = client.listen(DiagnosticArray, "/diagnostics")
    cameras = {side: client.camera(f"/cameras/{side}/image") for side in cells}
    for side, other in (("left", "right"), ("right", "left")):
        cameras[side](lake_episodes[0].image, side)
        client.spin_until(lambda side=side: paths[side])
        client.spin_for(0.3)
        first, second = (pose.pose.position for pose in paths[side].pop().poses[:2])
        assert math.dist((first.x, first.y), (second.x, second.y)) == cells[side]
        assert not paths[other]
    names = {"/left/planner", "/right/planner"}
    client.spin_until(lambda: {m.status[0].name for m in heard} == names)

    # Each has services of its own.
    assert client.call(SetBool, "/left/planner/enable", data=False).message == "not planning"
    client.spin_until(lambda: paths["left"])
    assert not paths["left"].pop().poses and not paths["right"]
    for side in cells:
        cameras[side](lake_episodes[1].image, side)
    client.spin_until(lambda: paths["right"])
    client.spin_for(0.3)
    assert not paths["left"]
    end = Transition(label="shutdown")
    shut = client.call(ChangeState, "/right/planner/change_state", transition=end)
    assert shut.success
    assert client.call(SetBool, "/left/planner/enable", data=True).message == "planning"
    cameras["left"](lake_episodes[2].image, "left")
    client.spin_until(lambda: paths["left"])
    assert [node.end() for node in nodes.values()] == [0, 0]


def test_a_quality_of_service_that_cannot_be_overridden_is_not_taken_silently(
    start_node: StartNode,
) -> None:
    node = start_node("-p", "qos_overrides./image_raw.subscription.reliability:=reliable")
    assert any("subscription.reliability is not one of" in text for text in node.warnings())
