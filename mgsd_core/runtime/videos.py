"""Video files, which may be anything, and cameras into frames.

PyAV, which decodes them, is loaded when the first frame is asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgsd_core.runtime.preprocess import MAX_PIXELS, ImageError, check_size

#: What a file must be called to be taken for a video.
SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts"),
    *(".mpg", ".mpeg", ".wmv", ".asf", ".flv", ".ogv"),
)
#: Containers that are read, by FFmpeg's names. It knows more, among them playlists, which open
#: whatever other files and addresses stand in them.
FORMATS = ("mov", "matroska", "avi", "mpegts", "mpeg", "asf", "flv", "ogg")
#: Where cameras are, as `video0`, `video1`, …
DEVICES = Path("/dev")
#: A camera that sends nothing for so long [s] has stopped.
CAMERA_TIMEOUT = 10.0


#: A picture of a camera: its number, seconds since the first, the decoded picture.
_Taken = tuple[int, float, Any]


class VideoError(ImageError):
    """A video or camera that cannot be planned from; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of a video or camera.

    Attributes:
        index: how many frames came before it, those that were skipped included.
        time: seconds since the first frame, by the video's own time stamps or, for a camera, when
            it arrived; None where a video has no time stamps.
        rgb: uint8 [H, W, 3], upright as its camera meant it.
    """

    index: int
    time: float | None
    rgb: NDArray[np.uint8]


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video."""
    return path.suffix.lower() in SUFFIXES


def read_video(path: str | Path, every: int = 1) -> Generator[Frame, None, None]:
    """Yield every `every`-th frame of a video file, beginning with the first.

    Raises:
        VideoError: not a video, empty, too large, damaged or cut off, or PyAV is not installed.
            What was whole before the damage has been yielded; what comes after it is not: frames
            build upon each other.
        ValueError: `every` is not positive.
    """
    path = Path(path)
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    if not path.is_file():
        what = "it is no file" if path.exists() else "there is no such file"
        raise VideoError(f"cannot read the video {path}: {what}")
    if path.stat().st_size == 0:
        raise VideoError(f"cannot read the video {path}: the file is empty; record it again")
    av = _pyav()
    try:
        # An absolute path is never taken for an address such as `http:…`.
        container = av.open(
            str(path.absolute()),
            options={"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except ValueError:  # invalid data, invalid argument: PyAV's errors are Python's, too
        raise VideoError(
            f"cannot read the video {path}: not a video in one of the containers "
            f"{', '.join(FORMATS)}, or so damaged or cut off that nothing of it can be read; copy "
            "or record it again"
        ) from None
    except av.FFmpegError as error:
        raise VideoError(f"cannot read the video {path}: {error.strerror}") from None
    with container:
        yield from _whole_frames(container, path, every)


def _whole_frames(container: Any, path: Path, every: int) -> Generator[Frame, None, None]:
    av = _pyav()
    stream = container.streams.best("video")
    if stream is None:
        raise VideoError(f"cannot read the video {path}: there are no pictures in it")
    if stream.codec_context is None:
        raise VideoError(f"cannot read the video {path}: its codec is unknown; convert it to H.264")
    # The header says it; hardly anything has been decoded yet. Later pictures may be larger.
    try:
        check_size(stream.width, stream.height, "a frame")
    except ImageError as error:
        raise VideoError(f"cannot read the video {path}: {error}; scale it down") from None
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    count, first, end = 0, None, 0.0

    def damaged(reason: str | None) -> VideoError:
        return VideoError(
            f"the video {path} is damaged or cut off: {reason}; frames read before: {count}; copy "
            "or record it again"
        )

    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise damaged("a part of it is missing")
            for picture in packet.decode():
                if picture.is_corrupt:
                    raise damaged("a frame can be read in part only")
                seconds = None
                if picture.pts is not None:
                    first = picture.pts if first is None else first
                    seconds = float((picture.pts - first) * picture.time_base)
                    end = max(end, seconds + float((picture.duration or 0) * picture.time_base))
                if count % every == 0:
                    yield Frame(count, seconds, _upright(picture))
                count += 1
    except av.FFmpegError as error:
        raise damaged(error.strerror) from None
    if not count:
        raise damaged("there is no frame in it")
    promised = _promised(container)
    if promised > end + 1:
        raise damaged(f"it should last {promised:.1f} s and ends after {end:.1f} s")


def _promised(container: Any) -> float:
    """Return how long a video says it lasts [s], 0.0 where that proves nothing.

    Matroska and WebM say it at the beginning and end without a sign that anything is missing; the
    other containers that can be read without their end give a broken packet there. With sound in
    it, the sound may be what lasts so long.
    """
    if "matroska" not in container.format.name or len(container.streams) > 1:
        return 0.0
    return (container.duration or 0) / 1e6


def _upright(picture: Any) -> NDArray[np.uint8]:
    """Return a decoded picture as uint8 [H, W, 3], turned and mirrored as its file says."""
    rgb: NDArray[np.uint8] = picture.to_ndarray(format="rgb24")
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return rgb
    # A pixel (x, y) is to be shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    rgb = rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(rgb)


def read_camera(index: int) -> Generator[Frame, None, None]:
    """Yield the newest picture of the camera `/dev/video<index>`, again and again.

    Pictures that come while the caller is busy are dropped and counted in `Frame.index`; each is
    yielded once.

    Raises:
        VideoError: there is no such camera, it cannot be opened, it has stopped, or PyAV is not
            installed.
    """
    newest: SimpleQueue[_Taken | VideoError] = SimpleQueue()
    closing = threading.Event()
    # What nobody takes waits in a queue and grows old, so a thread takes the pictures as they come.
    # It opens the camera, too: neither that nor waiting for a picture can be interrupted.
    thread = threading.Thread(target=_take, args=(index, newest, closing), daemon=True)
    thread.start()
    try:
        while True:
            try:
                taken = newest.get(timeout=CAMERA_TIMEOUT)
            except Empty:
                raise _stopped(index, f"no picture for {CAMERA_TIMEOUT:.0f} s") from None
            if isinstance(taken, VideoError):
                raise taken
            count, seconds, picture = taken
            yield Frame(count, seconds, _upright(picture))
    finally:
        closing.set()
        thread.join(timeout=1.0)


def _take(index: int, newest: SimpleQueue[_Taken | VideoError], closing: threading.Event) -> None:
    """Keep the newest picture of a camera in a queue of one; at the end, why there are no more."""
    end = _stopped(index, "there are no more pictures")
    count, first = 0, 0.0
    try:
        with _open_camera(index) as container:
            for packet in container.demux(container.streams.video[0]):
                if closing.is_set():
                    return
                for picture in _pictures(packet):
                    now = time.monotonic()
                    first = first or now
                    with suppress(Empty):
                        newest.get_nowait()
                    newest.put((count, now - first, picture))
                    count += 1
    except VideoError as error:
        end = error
    except Exception as error:  # it ends the thread, so who waits has to be told
        end = _stopped(index, getattr(error, "strerror", None) or repr(error))
    finally:
        newest.put(end)


def _pictures(packet: Any) -> list[Any]:
    # Cables and cold starts spoil single pictures of a camera; the next one is whole.
    try:
        return [] if packet.is_corrupt else packet.decode()
    except _pyav().InvalidDataError:
        return []


def _stopped(index: int, reason: str) -> VideoError:
    return VideoError(f"camera {index} has stopped: {reason}; plug it in again")


def _open_camera(index: int) -> Any:
    av = _pyav()
    device = DEVICES / f"video{index}"
    if not device.exists():
        names = (p.name.removeprefix("video") for p in DEVICES.glob("video*"))
        there = sorted(int(name) for name in names if name.isdecimal())
        known = f"there are: {', '.join(map(str, there))}" if there else "none is connected"
        raise VideoError(f"no camera {index}; {known}")
    try:
        # What is read to get to know the camera is old when it is asked for.
        return av.open(str(device), format="v4l2", options={"fflags": "nobuffer"})
    except av.FFmpegError as error:
        hint = "is it a camera that no other program uses, and may this user (group video) read it?"
        raise VideoError(
            f"cannot open camera {index}, {device}: {error.strerror}; {hint}"
        ) from None


def _pyav() -> Any:
    try:
        import av
    except ImportError:
        raise VideoError(
            "videos and cameras need PyAV, which is not installed: pip install 'mgsd_ros[video]'"
        ) from None
    return av
