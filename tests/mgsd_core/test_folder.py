"""Folders of pictures with states written by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mgsd_core.folder import FolderError
from mgsd_core.runtime.preprocess import ImageSpec, fit
from mgsd_core.scenes import load_scenes
from sim import FrozenLake, SplitError, parse_plan, sample, solve, state_to_dict
from sim.dataset import DatasetError, write_dataset
from sim.request import DatasetRequest

SPEC = ImageSpec(size=32, patch=8)
LAKE = FrozenLake.from_rows(["SFF", "FFF", "FFG"])


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def entry(i: int, state=LAKE, **more) -> dict:
    return {"image": f"images/{i}.png", "state": state_to_dict(state), **more}


@pytest.fixture
def folder(tmp_path):
    """Four lakes and a maze."""
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    states = [sample("frozenlake", 3, seed) for seed in range(4)] + [sample("maze", 3, 0)]
    for i in range(len(states)):
        Image.fromarray(picture(i)).save(root / "images" / f"{i}.png")
    write(root, *(entry(i, state) for i, state in enumerate(states)))
    return root


def write(root, *entries, split="train"):
    lines = (e if isinstance(e, str) else json.dumps(e) for e in entries)
    (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def test_a_folder_is_read_as_a_data_set_is(folder):
    scenes = load_scenes(folder, "train", SPEC)
    states = [sample("frozenlake", 3, seed) for seed in range(4)] + [sample("maze", 3, 0)]
    assert scenes.states == states
    assert scenes.plans == [solve(s) for s in states]
    assert list(scenes.names) == [f"images/{i}.png" for i in range(5)]
    assert scenes.images.shape == (5, 32, 32, 3)
    assert (scenes.images[2] == fit(picture(2), SPEC)).all()
    assert scenes.tasks() == [("frozenlake", 3), ("maze", 3)]
    assert scenes.digest == load_scenes(folder, "train", SPEC).digest


def test_a_picture_that_is_listed_twice_is_two_scenes(folder):
    write(folder, entry(0), entry(1), entry(0))
    names = load_scenes(folder, "train", SPEC).names
    assert names == ["images/0.png", "images/1.png", "images/0.png (2)"]


def test_limits_count_families_and_leave_other_pictures_unread(folder):
    (folder / "images/3.png").write_bytes(b"broken")
    scenes = load_scenes(folder, "train", SPEC, limit=2)
    assert list(scenes.names) == ["images/0.png", "images/1.png", "images/4.png"]


def test_given_plans_are_kept_and_part_of_the_digest(folder):
    write(folder, entry(0))
    usual = load_scenes(folder, "train", SPEC)
    write(folder, entry(0, plan="R R D D"))
    chosen = load_scenes(folder, "train", SPEC)
    assert usual.plans == [parse_plan("<answer>D D R R</answer>", "frozenlake")]
    assert chosen.plans == [parse_plan("<answer>R R D D</answer>", "frozenlake")]
    assert usual.digest != chosen.digest


def test_every_split_has_a_list_of_its_own(folder):
    write(folder, entry(1), "", entry(2), split="test")
    assert list(load_scenes(folder, "test", SPEC).names) == ["images/1.png", "images/2.png"]
    with pytest.raises(FolderError, match=r"holds no validation pictures: there is no validation"):
        load_scenes(folder, "validation", SPEC)
    with pytest.raises(SplitError, match="unknown split"):
        load_scenes(folder, "holdout", SPEC)
    (folder / "train.jsonl").write_text("\n")
    with pytest.raises(FolderError, match=r"train\.jsonl lists no pictures"):
        load_scenes(folder, "train", SPEC)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "Expecting property name"),
        ("[]", "must be an object with `image`, `state`"),
        (json.dumps({"image": "images/0.png"}), "must be an object with"),
        (entry(0, note="blurred"), "must be an object with"),
        (entry(0) | {"image": 7}, "inside the folder, not 7"),
        (entry(0) | {"image": "../secret.png"}, "inside the folder"),
        (entry(0) | {"image": "/etc/passwd"}, "inside the folder"),
        (entry(0) | {"image": "images/out.png"}, "inside the folder"),
        (entry(0) | {"image": "images/\0.png"}, "null"),
        (entry(0) | {"image": ""}, "inside the folder"),
        (entry(0) | {"image": "images/loop.png"}, "there is no picture images/loop.png"),
        (entry(0) | {"image": "images"}, "there is no picture images"),
        (entry(77), "there is no picture images/77.png"),
        (entry(0) | {"state": {"family": "chess"}}, "unknown family 'chess'"),
        (entry(0) | {"state": {"family": "maze", "size": 3}}, "has the fields"),
        (entry(0) | {"state": state_to_dict(LAKE) | {"goal": [3, 3]}}, "outside a grid"),
        (entry(0, FrozenLake.from_rows(["SH", "HG"])), "it has no plan"),
        (entry(0, plan=["R", "R"]), "plan must be a text"),
        (entry(0, plan="R R"), "does not succeed: incomplete"),
        (entry(0, plan="L"), "does not succeed: off_grid"),
        (entry(0, plan="PICK"), "no action of frozenlake"),
        (entry(0, plan="D U D D R R"), "has 6 actions, but 4 are enough"),
    ],
)
def test_a_bad_line_is_named(folder, line, says):
    (folder.parent / "secret.png").write_bytes((folder / "images/0.png").read_bytes())
    (folder / "images/out.png").symlink_to(folder.parent / "secret.png")
    (folder / "images/loop.png").symlink_to("loop.png")
    write(folder, entry(1), line)
    with pytest.raises(FolderError, match=r"train\.jsonl line 2: ") as caught:
        load_scenes(folder, "train", SPEC)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_a_bad_picture_is_named_with_its_line(folder, data):
    (folder / "images/1.png").write_bytes(data)
    with pytest.raises(FolderError, match=r"train\.jsonl line 2: .*images/1\.png"):
        load_scenes(folder, "train", SPEC)


def test_lines_that_are_no_text_are_named(folder):
    (folder / "train.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(FolderError, match=r"line 1: 'utf-8' codec"):
        load_scenes(folder, "train", SPEC)
    (folder / "train.jsonl").write_text("[" * 100_000)
    with pytest.raises(FolderError, match=r"line 1: "):
        load_scenes(folder, "train", SPEC)


def test_a_directory_is_one_or_the_other(folder):
    with pytest.raises(DatasetError, match="no such directory"):
        load_scenes(folder / "nowhere", "train", SPEC)
    write_dataset(folder, DatasetRequest([("frozenlake", 3)], "train", seed=0, count=1, size=32))
    with pytest.raises(FolderError, match="keep them apart"):
        load_scenes(folder, "train", SPEC)


def test_drawn_scenes_keep_their_digest_and_have_names(tmp_path):
    write_dataset(
        tmp_path,
        DatasetRequest([("frozenlake", 3), ("maze", 3)], "train", seed=5, count=2, size=32),
    )
    scenes = load_scenes(tmp_path, "train", SPEC)
    names = [f"{family}-3-train-{seed}" for family in ("frozenlake", "maze") for seed in (5, 6)]
    assert list(scenes.names) == names
