from __future__ import annotations

import json
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgsd_core.runtime import VideoError, read_camera, read_video, videos

av = pytest.importorskip("av")

RATE = 10
WIDTH, HEIGHT = 96, 64
#: An 8-bit camera's colours come back from a lossy codec within so much.
CLOSE = 8


def colour(index: int) -> tuple[int, int, int]:
    """Red grows, blue falls, green stays: no order of channels but the right one fits."""
    return 20 + 6 * index, 60, 250 - 6 * index


def picture(index: int) -> np.ndarray:
    """One colour, and a white corner at the top left, uint8 [64, 96, 3]."""
    rgb = np.full((HEIGHT, WIDTH, 3), colour(index), np.uint8)
    rgb[:16, :16] = 255
    return rgb


def write_video(path: Path, codec: str, pictures, pixels: str = "yuv420p", **options) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = pixels, 4_000_000
        for rgb in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_lossless(path: Path, pictures) -> Path:
    return write_video(path, "ffv1", pictures, "bgr0")


@pytest.fixture(scope="module")
def pictures():
    return [picture(i) for i in range(30)]


@pytest.fixture(scope="module")
def mp4(tmp_path_factory, pictures):
    return write_video(tmp_path_factory.mktemp("video") / "plain.mp4", "mpeg4", pictures)


# --- frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "mpeg4", "yuv420p"),
        ("a.MOV", "mjpeg", "yuvj420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.webm", "libvpx", "yuv420p"),
        ("a.ts", "mpeg2video", "yuv420p"),  # its time stamps do not begin at 0
        ("a.wmv", "wmv2", "yuv420p"),
        ("a.flv", "flv", "yuv420p"),
        ("a.mkv", "ffv1", "gray16le"),
    ],
)
def test_frames_have_their_colours_and_times(tmp_path, pictures, name, codec, pixels):
    path = write_video(tmp_path / name, codec, pictures, pixels)
    assert videos.is_video(path)
    frames = list(read_video(path))
    assert [frame.index for frame in frames] == list(range(30))
    assert [frame.time for frame in frames] == pytest.approx([i / RATE for i in range(30)])
    for frame, rgb in zip(frames, pictures, strict=True):
        assert frame.rgb.dtype == np.uint8 and frame.rgb.shape == (HEIGHT, WIDTH, 3)
        if pixels == "gray16le":
            rgb = np.asarray(Image.fromarray(rgb).convert("L").convert("RGB"))
        assert np.abs(frame.rgb[32:, 32:].astype(int) - rgb[32:, 32:]).max() <= CLOSE
        assert frame.rgb[4:8, 4:8].min() > 230


def test_a_lossless_video_gives_back_every_byte_also_at_odd_sizes(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (65, 97, 3), dtype=np.uint8) for _ in range(3)]
    frames = list(read_video(write_lossless(tmp_path / "a.mkv", noise)))
    assert len(frames) == 3
    assert all(np.array_equal(f.rgb, rgb) for f, rgb in zip(frames, noise, strict=True))


def test_every_nth_frame_keeps_its_index_and_time(mp4):
    frames = list(read_video(mp4, every=7))
    assert [frame.index for frame in frames] == [0, 7, 14, 21, 28]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.7, 1.4, 2.1, 2.8])
    for frame in frames:
        assert np.abs(frame.rgb[-1, -1].astype(int) - colour(frame.index)).max() <= CLOSE
    with pytest.raises(ValueError, match="at least 1"):
        next(read_video(mp4, every=0))


ONE = 1 << 16


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, ONE, -ONE, 0), lambda rgb: np.rot90(rgb, -1)),
        ((-ONE, 0, 0, -ONE), lambda rgb: np.rot90(rgb, 2)),
        ((0, -ONE, ONE, 0), lambda rgb: np.rot90(rgb)),
        ((-ONE, 0, 0, ONE), lambda rgb: rgb[:, ::-1]),
        ((ONE, 0, 0, -ONE), lambda rgb: rgb[::-1]),
        ((0, ONE, ONE, 0), lambda rgb: rgb.transpose(1, 0, 2)),
    ],
)
def test_a_camera_held_otherwise_says_so_in_the_file(mp4, tmp_path, matrix, turn):
    data = bytearray(mp4.read_bytes())
    place = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, place) == (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    a, b, c, d = matrix
    struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    as_stored = next(read_video(mp4)).rgb
    assert np.array_equal(next(read_video(tmp_path / "turned.mp4")).rgb, turn(as_stored))


# --- files that may be anything -----------------------------------------------------------------


def huge_video(path: Path, pictures) -> Path:
    """A small file that says its frames have 16,000 × 16,000 px."""
    data = write_video(path, "ffv1", pictures, "bgr0").read_bytes()
    said = struct.pack("<ii", WIDTH, HEIGHT)
    assert said in data
    path.write_bytes(data.replace(said, struct.pack("<ii", 16_000, 16_000)))
    return path


@pytest.fixture(scope="module")
def bad_videos(tmp_path_factory, mp4, pictures):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "cut.mp4").write_bytes(mp4.read_bytes()[:-200])  # its index stands at the end
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video\n" * 100)
    (folder / "folder.mp4").mkdir()
    Image.fromarray(pictures[0]).save(folder / "picture.mp4", "PNG")
    huge_video(folder / "huge.avi", pictures)
    # Playlists, which make other programs open what stands in them.
    write_video(folder / "whole.ts", "mpeg2video", pictures)
    (folder / "concat.mkv").write_text("ffconcat version 1.0\nfile whole.ts\n")
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nwhole.ts\n#EXT-X-ENDLIST\n"
    (folder / "hls.ts").write_text(hls)
    with av.open(str(folder / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    (folder / "whole.ts").rename(folder / "aside")
    return sorted(path for path in folder.iterdir() if path.name != "aside")


def test_files_that_are_no_videos_are_refused_by_name(bad_videos, tmp_path, capfd):
    assert len(bad_videos) == 9
    for path in [*bad_videos, tmp_path / "nowhere.mp4"]:
        with pytest.raises(VideoError) as caught:
            list(read_video(path))
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")  # the decoder says nothing beside it


def test_playlists_are_not_followed(bad_videos, tmp_path, pictures):
    write_video(tmp_path / "whole.ts", "mpeg2video", pictures)
    for path in bad_videos:
        if path.name in ("concat.mkv", "hls.ts"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
            with pytest.raises(VideoError, match="not a video in one of the containers mov, "):
                next(read_video(tmp_path / path.name))


def test_a_huge_frame_is_refused_before_it_is_decoded(bad_videos):
    [huge] = [path for path in bad_videos if path.name == "huge.avi"]
    with pytest.raises(VideoError, match="a frame has 16000 × 16000 px, more than 64000000"):
        next(read_video(huge))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.avi", "mjpeg", {}),
        ("a.avi", "mpeg4", {}),
        ("a.mp4", "mpeg4", {"movflags": "faststart"}),  # its index stands at the beginning
        ("a.webm", "libvpx", {}),
        ("a.mkv", "mpeg4", {}),
        ("a.flv", "flv", {}),
    ],
)
def test_a_video_that_was_cut_off_gives_its_whole_frames_then_says_so(
    tmp_path, capfd, name, codec, options
):
    rng = np.random.default_rng(1)
    noise = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(30)]
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / name, codec, noise, pixels, **options)
    whole = [frame.rgb for frame in read_video(path)]
    assert len(whole) == 30
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    read = []
    with pytest.raises(VideoError, match=rf"{name} is damaged or cut off: .*; copy or record"):
        for frame in read_video(path):
            read.append(frame.rgb)
    assert 5 < len(read) < 20 and all(map(np.array_equal, read, whole))
    assert capfd.readouterr() == ("", "")


def test_frames_after_the_damage_are_not_planned_on(tmp_path):
    rng = np.random.default_rng(2)
    noise = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(30)]
    path = write_video(tmp_path / "a.avi", "mpeg4", noise)
    whole = [frame.rgb for frame in read_video(path)]
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    read = []
    with pytest.raises(VideoError, match="damaged or cut off"):
        for frame in read_video(path):
            read.append(frame.rgb)
    assert 5 < len(read) < 20 and all(map(np.array_equal, read, whole))


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.mkv", "ffv1"), ("a.avi", "mpeg4"), ("a.ts", "mpeg4")],
)
def test_random_damage_ends_in_frames_or_in_one_kind_of_error(
    tmp_path, capfd, pictures, name, codec
):
    path = write_video(tmp_path / name, codec, pictures[:8])
    data, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(60):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 5, 50))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed[: rng.randrange(1, 2 * len(changed))])
        try:
            for frame in read_video(path):
                assert frame.rgb.dtype == np.uint8 and frame.rgb.shape[2:] == (3,)
        except VideoError:
            refused += 1
    assert refused > 5
    assert capfd.readouterr() == ("", "")


# --- PyAV is an extra ---------------------------------------------------------------------------


def test_without_the_extra_one_line_says_how_to_get_it(mp4, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # importing it fails
    for frames in (read_video(mp4), read_camera(0)):
        with pytest.raises(VideoError, match=r"pip install 'mgsd_ros\[video\]'"):
            next(frames)


def test_the_runtime_loads_no_decoder_before_a_video_is_read():
    code = "import sys, mgsd_core.runtime, mgsd_core.commands_plan; assert 'av' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# --- cameras ------------------------------------------------------------------------------------

#: A generator of pictures at the pace of a camera: 50 a second.
LIVE = f"testsrc=size={WIDTH}x{HEIGHT}:rate=50"


@pytest.fixture
def camera(monkeypatch):
    """Let `read_camera` open another source."""

    def use(source) -> None:
        monkeypatch.setattr(videos, "_open_camera", lambda index: source)

    return use


def taking_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.endswith("(_take)")]


def test_of_a_camera_the_newest_frame_is_taken(camera):
    camera(av.open(f"{LIVE},realtime", format="lavfi"))
    frames = read_camera(0)
    first = next(frames)
    assert (first.index, first.time) == (0, 0.0) and first.rgb.shape == (HEIGHT, WIDTH, 3)
    start = time.monotonic()
    for _ in range(4):
        time.sleep(0.3)  # fifteen frames come in this time
        asked = time.monotonic() - start
        frame = next(frames)
        assert frame.time > asked - 0.2  # no older than a few frames
    assert frame.index > 30
    assert next(frames).index > frame.index
    assert len(taking_threads()) == 1
    frames.close()
    assert taking_threads() == []


def test_a_camera_gives_no_frame_twice(camera):
    camera(av.open(f"{LIVE},realtime", format="lavfi"))
    frames = read_camera(0)
    indices = [next(frames).index for _ in range(20)]
    assert indices == sorted(set(indices))
    frames.close()


def test_a_camera_that_does_not_exist_is_named():
    with pytest.raises(VideoError, match=r"no camera 987; (there are: \d|none is connected)"):
        next(read_camera(987))
    with pytest.raises(VideoError, match="no camera -1"):
        next(read_camera(-1))


def test_a_device_that_is_no_camera_is_refused(monkeypatch, tmp_path):
    (tmp_path / "video3").touch()
    (tmp_path / "video12").touch()
    monkeypatch.setattr(videos, "DEVICES", tmp_path)
    with pytest.raises(VideoError, match=r"cannot open camera 3, .*video3: Inappropriate ioctl"):
        next(read_camera(3))
    with pytest.raises(VideoError, match="no camera 4; there are: 3, 12"):
        next(read_camera(4))


def test_a_camera_that_stops_ends_the_frames(camera):
    camera(av.open(f"{LIVE}:duration=0.2,realtime", format="lavfi"))
    frames = read_camera(4)
    with pytest.raises(VideoError, match="camera 4 has stopped: there are no more pictures"):
        for frame in frames:
            assert frame.index < 10
    assert taking_threads() == []


class Silent:
    """A camera that is open and sends nothing, until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.streams = av.open(LIVE, format="lavfi").streams

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def demux(self, stream):
        self.let_go.wait(20)
        yield from ()


def test_a_camera_that_sends_nothing_is_given_up(camera, monkeypatch):
    monkeypatch.setattr(videos, "CAMERA_TIMEOUT", 0.2)
    silent = Silent()
    camera(silent)
    with pytest.raises(VideoError, match="camera 0 has stopped: no picture for 0 s"):
        next(read_camera(0))
    silent.let_go.set()


class Spoilt(Silent):
    """A camera whose first pictures are broken, as those of many are."""

    class Packet:
        def __init__(self, is_corrupt: bool) -> None:
            self.is_corrupt = is_corrupt

        def decode(self):
            raise av.InvalidDataError(0, "No JPEG data found in image")

    def demux(self, stream):
        yield from (self.Packet(True), self.Packet(False))
        with av.open(f"{LIVE},realtime", format="lavfi") as container:
            yield from container.demux(video=0)


def test_a_broken_picture_of_a_camera_is_passed_over(camera):
    camera(Spoilt())
    frames = read_camera(0)
    assert next(frames).rgb.shape == (HEIGHT, WIDTH, 3)
    frames.close()


# --- the command --------------------------------------------------------------------------------


def run_command(capfd, *arguments) -> tuple[int, list[dict], str]:
    from mgsd_core.cli import main

    status = main(["plan", *map(str, arguments)])
    captured = capfd.readouterr()
    return status, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_the_command_plans_videos_and_directories_together(
    bundle_dir, lake_episodes, tmp_path, capfd
):
    episodes = lake_episodes[:6]
    video = write_lossless(tmp_path / "drive.mkv", [e.image for e in episodes])
    folder, drawn = tmp_path / "in", tmp_path / "drawn"
    folder.mkdir()
    for i, episode in enumerate(episodes[:2]):
        Image.fromarray(episode.image).save(folder / f"{i}.png")
    arguments = (video, folder, video, "--bundle", bundle_dir, "--every", 2, "--draw", drawn)
    status, lines, _ = run_command(capfd, *arguments)
    assert status == 0
    first, second = str(folder / "0.png"), str(folder / "1.png")
    frames = [(str(video), i, pytest.approx(i / RATE)) for i in (0, 2, 4)]
    said = [(line["image"], line.get("frame"), line.get("time")) for line in lines]
    assert said == [*frames, (first, None, None), (second, None, None), *frames]
    shown = [episodes[i] for i in (0, 2, 4, 0, 1, 0, 2, 4)]
    assert [line["actions"] for line in lines] == [[a.value for a in e.plan] for e in shown]
    names = sorted(path.name for path in drawn.iterdir())
    assert names == [
        *(f"0000_drive_{i:08d}.png" for i in (0, 2, 4)),
        *("0001_0.png", "0002_1.png"),
        *(f"0003_drive_{i:08d}.png" for i in (0, 2, 4)),
    ]
    status, lines, _ = run_command(capfd, video, "--bundle", bundle_dir, "--count", 2)
    assert status == 0 and [line["frame"] for line in lines] == [0, 1]


def test_the_command_plans_what_is_whole_of_a_video_that_was_cut_off(
    restless_bundle, tmp_path, capfd
):
    rng = np.random.default_rng(3)
    noise = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(20)]
    path = write_video(tmp_path / "a.avi", "mjpeg", noise, "yuvj420p")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    status, lines, error = run_command(capfd, path, "--bundle", restless_bundle)
    assert status == 2 and [line["frame"] for line in lines] == list(range(len(lines)))
    assert 3 < len(lines) < 10
    assert error.startswith("mgsd plan: ") and len(error.splitlines()) == 1
    first = run_command(capfd, path, "--bundle", restless_bundle, "--count", 2)
    assert first[0] in (0, 1) and len(first[1]) == 2 and first[2] == ""


def test_the_command_refuses_bad_videos_and_cameras_in_one_line(
    restless_bundle, bad_videos, mp4, capfd
):
    bundle = ("--bundle", restless_bundle)
    wrong = [
        *((path, *bundle) for path in bad_videos),
        bundle,
        ("--camera", 987, *bundle),
        ("--camera", -1, *bundle),
        (mp4, "--camera", 0, *bundle),
        (mp4, "--every", 0, *bundle),
        ("--camera", 987, "--every", 2, *bundle),
        (mp4, "--count", 0, *bundle),
    ]
    for arguments in wrong:
        status, lines, error = run_command(capfd, *arguments)
        assert status == 2 and lines == []
        assert error.startswith("mgsd plan: ") and len(error.splitlines()) == 1
        assert ("--every is for videos" in error) == ("--camera" in arguments and 2 in arguments)


def test_the_command_stops_a_camera_after_so_many_frames(restless_bundle, camera, tmp_path, capfd):
    camera(av.open(f"{LIVE},realtime", format="lavfi"))
    status, lines, error = run_command(
        *(capfd, "--camera", 2, "--count", 3, "--bundle", restless_bundle, "--draw", tmp_path / "d")
    )
    assert status in (0, 1) and error == ""
    assert [line["image"] for line in lines] == ["camera 2"] * 3
    indices = [line["frame"] for line in lines]
    assert indices == sorted(set(indices)) and lines[0]["time"] < lines[2]["time"]
    names = [f"camera2_{i:08d}.png" for i in indices]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == names
    assert taking_threads() == []


INTERRUPTED = """
import sys, av
from mgsd_core.cli import main
from mgsd_core.runtime import videos
videos._open_camera = lambda index: av.open(sys.argv[1], format="lavfi")
sys.exit(main(["plan", "--camera", "0", "--bundle", sys.argv[2]]))
"""


def test_ctrl_c_ends_a_camera_with_the_status_of_its_plans(restless_bundle):
    run = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, f"{LIVE},realtime", str(restless_bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    lines = [run.stdout.readline() for _ in range(5)]
    run.send_signal(signal.SIGINT)
    rest, error = run.communicate(timeout=60)
    legal = [json.loads(line)["verdict"]["legal"] for line in [*lines, *rest.splitlines()]]
    assert run.returncode == (0 if all(legal) else 1)
    assert error == ""
