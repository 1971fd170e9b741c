"""Data sets: what is written is what is read, and damage is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim import (
    FAMILIES,
    LEVELS,
    SPLITS,
    LevelError,
    SplitError,
    UnknownFamilyError,
    sample,
    simulate,
    split_of,
    state_digest,
    state_from_dict,
)
from sim.dataset import (
    DatasetError,
    Episode,
    generate_episodes,
    iter_episodes,
    load_episodes,
    plan_shards,
    style_seed,
    write_dataset,
)
from sim.grid import Grid
from sim.renderers import UnknownRendererError
from sim.request import DatasetRequest, parse_families, parse_levels, parse_part
from sim.scene import build_scene, grid_of
from sim.style import STYLES, StyleError

SHARD = "maze-3-test-00000.parquet"
PAIRS = [("maze", 3), ("frozenlake", 4), ("minibehaviour", 5)]
COUNT = 6


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_dataset(out, DatasetRequest(PAIRS, "train", seed=40, count=COUNT, size=64))
    write_dataset(out, DatasetRequest([("maze", 3)], "test", seed=0, count=3, size=64))
    return out


def same(one: Episode, other: Episode) -> bool:
    names = [name for name in Episode.__slots__ if name != "image"]
    return np.array_equal(one.image, other.image) and all(
        getattr(one, name) == getattr(other, name) for name in names
    )


def test_what_is_loaded_is_what_was_generated(directory: Path) -> None:
    # Loaded in the order of the families, whatever the order of writing.
    expected = [
        episode
        for family, level in [("frozenlake", 4), ("maze", 3), ("minibehaviour", 5)]
        for episode in generate_episodes(family, level, "train", 40, COUNT, 64)
    ]
    loaded = load_episodes(directory, "train")
    assert len(loaded) == len(expected)
    assert all(same(*both) for both in zip(loaded, expected, strict=True))
    assert loaded[0].image.dtype == np.uint8 and loaded[0].image.shape == (64, 64, 3)
    assert loaded[0].image.flags.writeable


def test_episodes_are_true(directory: Path) -> None:
    for episode in load_episodes(directory, "train"):
        assert simulate(episode.state, episode.plan).optimal
        assert split_of(episode.state) == episode.split
        scene = build_scene(episode.state, episode.style, 64, 64)
        assert scene.camera == episode.camera
        assert grid_of(scene) == episode.grid


@pytest.mark.parametrize("styles", STYLES)
def test_styles_are_those_asked_for(tmp_path: Path, styles: str) -> None:
    write_dataset(
        tmp_path, DatasetRequest([("maze", 3)], "train", seed=40, count=2, size=64, styles=styles)
    )
    loaded = load_episodes(tmp_path, "train")
    generated = list(generate_episodes("maze", 3, "train", 40, 2, 64, styles=styles))
    assert all(same(*both) for both in zip(loaded, generated, strict=True))
    for episode in loaded:
        assert episode.styles == styles
        scene = build_scene(episode.state, episode.style, 64, 64, styles=styles)
        assert scene.camera == episode.camera
    # Only the plain style leaves the camera where it is.
    assert (loaded[0].camera == loaded[1].camera) == (styles == "plain")


def test_selections(directory: Path) -> None:
    assert [e.seed for e in load_episodes(directory, "train", "maze")] == list(range(40, 46))
    assert [e.family for e in load_episodes(directory, "train", level=5)] == ["minibehaviour"] * 6
    assert len(load_episodes(directory, "train", limit=8)) == 8
    assert load_episodes(directory, "train", limit=0) == []
    assert [e.split for e in load_episodes(directory, "test")] == ["test"] * 3


def test_hugging_face_datasets_reads_the_same(directory: Path, tmp_path: Path) -> None:
    import datasets

    files = sorted(str(path) for path in directory.glob("maze-3-train-*.parquet"))
    loaded = datasets.load_dataset(
        "parquet", data_files={"train": files}, split="train", cache_dir=str(tmp_path)
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    for row, episode in zip(loaded, load_episodes(directory, "train", "maze"), strict=True):
        assert np.array_equal(np.asarray(row["image"]), episode.image)
        assert state_from_dict(json.loads(row["state"])) == episode.state
        assert row["style"] == episode.style and row["renderer"] == "panda"
        assert Grid.from_dict(json.loads(row["grid"])) == episode.grid


def test_splits_share_no_state_and_no_style() -> None:
    states: dict[str, set[str]] = {}
    styles: dict[str, set[int]] = {}
    for split in SPLITS:
        episodes = list(generate_episodes("frozenlake", 3, split, 0, 60, 32))
        states[split] = {state_digest(episode.state) for episode in episodes}
        styles[split] = {episode.style for episode in episodes}
        assert len(styles[split]) == 60
    for one, other in pairwise([*SPLITS, SPLITS[0]]):
        assert not states[one] & states[other]
        assert not styles[one] & styles[other]


@given(
    st.sampled_from([(family, level) for family in FAMILIES for level in LEVELS[family]]),
    st.sampled_from(SPLITS),
    st.integers(0, 2**62 - 1),
)
def test_a_style_fits_its_column_and_names_its_split(
    pair: tuple[str, int], split: str, seed: int
) -> None:
    style = style_seed(*pair, split, seed)
    assert 0 <= style < 2**63
    assert SPLITS[style % len(SPLITS)] == split


@pytest.mark.parametrize(
    ("text", "families", "expected"),
    [
        ("3", "frozenlake", [("frozenlake", 3)]),
        ("4-6", "maze", [("maze", 4), ("maze", 5), ("maze", 6)]),
        ("all", "minibehaviour", [("minibehaviour", 5), ("minibehaviour", 6)]),
        ("6-7", "all", [("frozenlake", 6), ("frozenlake", 7), ("maze", 6), ("minibehaviour", 6)]),
    ],
)
def test_levels(text: str, families: str, expected: list[tuple[str, int]]) -> None:
    assert parse_levels(text, parse_families(families)) == expected


@pytest.mark.parametrize(("text", "part"), [("0/1", (0, 1)), ("3/7", (3, 7))])
def test_parts(text: str, part: tuple[int, int]) -> None:
    assert parse_part(text) == part


@pytest.mark.parametrize(
    "text", ["", "1", "/", "1/", "/2", "2/2", "-1/2", "0/0", "1/2/3", "0.5/2", "0/100001", "a/b"]
)
def test_parts_that_do_not_exist(text: str) -> None:
    with pytest.raises(DatasetError, match="i/n"):
        parse_part(text)


@given(st.integers(1, 900), st.sampled_from([64, 700, 2048]), st.integers(1, 9))
def test_parts_are_disjoint_complete_and_of_like_size(count: int, size: int, parts: int) -> None:
    whole = plan_shards(DatasetRequest(PAIRS, "train", 5, count, size))
    drawn = [
        plan_shards(DatasetRequest(PAIRS, "train", 5, count, size), part=(i, parts))
        for i in range(parts)
    ]
    assert sorted((shard for own in drawn for shard in own), key=whole.index) == whole
    assert len({shard.file_name for shard in whole}) == len(whole)
    lengths = [len(own) for own in drawn]
    assert max(lengths) - min(lengths) <= 1
    for family, level in PAIRS:
        own = sorted((s for s in whole if s.family == family), key=lambda s: s.index)
        assert [s.level for s in own] == [level] * len(own)
        seeds = [seed for s in own for seed in range(s.seed, s.seed + s.count)]
        assert seeds == list(range(5, 5 + count))


@pytest.mark.parametrize(
    ("text", "families"),
    [("2", "maze"), ("3-7", "maze"), ("9", "all"), ("5-3", "maze"), ("three", "all"), ("", "all")],
)
def test_levels_that_do_not_exist(text: str, families: str) -> None:
    with pytest.raises(ValueError, match="level"):
        parse_levels(text, parse_families(families))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"family": "chess"}, UnknownFamilyError),
        ({"level": 9}, LevelError),
        ({"split": "dev"}, SplitError),
        ({"count": 0}, DatasetError),
        ({"seed": -1}, DatasetError),
        ({"seed": 2**62}, DatasetError),
        ({"size": 31}, DatasetError),
        ({"size": 2049}, DatasetError),
        ({"count": 10_000_001}, DatasetError),
        ({"renderer": "crayon"}, UnknownRendererError),
        ({"styles": "gaudy"}, StyleError),
    ],
)
def test_arguments_out_of_range(change: dict[str, Any], error: type[ValueError]) -> None:
    good: dict[str, Any] = {"family": "maze", "level": 3, "split": "train", "seed": 0, "count": 1}
    with pytest.raises(error):
        list(generate_episodes(**(good | change)))


# --- Damage ---


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        load_episodes(tmp_path / "nowhere", "train")


def test_missing_episodes_are_named(directory: Path) -> None:
    with pytest.raises(DatasetError, match="no validation episodes"):
        load_episodes(directory, "validation")
    with pytest.raises(DatasetError, match="no train maze level 6 episodes"):
        load_episodes(directory, "train", "maze", 6)
    with pytest.raises(SplitError):
        load_episodes(directory, "dev")
    with pytest.raises(UnknownFamilyError):
        load_episodes(directory, "train", "chess")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path, DatasetRequest([("maze", 3)], "test", 0, 250, 32, renderer="flat"))
    write_dataset(tmp_path, DatasetRequest([("maze", 4)], "test", 0, 1, 32, renderer="flat"))
    (tmp_path / "maze-3-test-00001.parquet").unlink()
    with pytest.raises(DatasetError, match=r"maze-3-test-00001\.parquet is missing, 1 of 3 files"):
        load_episodes(tmp_path, "test")
    assert len(load_episodes(tmp_path, "test", level=4)) == 1
    (tmp_path / "maze-4-test-00000.parquet").unlink()
    with pytest.raises(DatasetError, match="maze-3-test-00001"):
        load_episodes(tmp_path, "test")
    write_dataset(tmp_path, DatasetRequest([("maze", 3)], "test", 0, 250, 32, renderer="flat"))
    with pytest.raises(DatasetError, match="maze-4-test-00000"):
        load_episodes(tmp_path, "test")


def test_rows_of_another_split_are_not_judged(directory: Path, tmp_path: Path) -> None:
    shutil.copy(directory / "maze-3-train-00000.parquet", tmp_path / SHARD)
    with pytest.raises(DatasetError, match=f"{SHARD}, row 0: it holds maze-3-train, not what"):
        load_episodes(tmp_path, "test")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shards": {SHARD: None}}, f"shards {SHARD} is no object"),
        ({"parts": {"maze-3-test": [1]}}, "parts maze-3-test is no object"),
        ({"parts": {"maze-3-test": {"count": "many"}}}, "does not say how much there is"),
        ({"common": {"shard_size": 0}}, "does not say how much there is"),
    ],
)
def test_a_damaged_index_is_told(
    directory: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    shutil.copy(directory / SHARD, tmp_path)
    index = json.loads((directory / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(index | change))
    with pytest.raises(DatasetError, match=says):
        load_episodes(tmp_path, "test")


def rewritten(directory: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a shard whose row 1 was changed."""
    table = pq.read_table(directory / SHARD)
    rows = table.to_pylist()
    change(rows[1])
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / SHARD)
    return tmp_path


def test_the_good_row_is_read(directory: Path, tmp_path: Path) -> None:
    assert len(load_episodes(rewritten(directory, tmp_path, lambda row: None), "test")) == 3


# The grid of another level: no grid of this picture.
LARGER_GRID = grid_of(build_scene(sample("maze", 4, 0), None, 64, 64)).to_dict()

BAD_VALUES: dict[str, list[Any]] = {
    "image": [
        None,
        {"bytes": None, "path": None},
        {"bytes": b"", "path": None},
        {"bytes": b"\x89PNG\r\n\x1a\n" + bytes(40), "path": None},
        {"bytes": b"GIF89a" + bytes(100), "path": None},
    ],
    "state": [
        None,
        "",
        "{",
        "[]",
        "{}",
        '{"family": "maze"}',
        "[" * 100_000,
        '{"family": "chess"}',
    ],
    "plan": [None, "", "L D R", "<answer>L JUMP</answer>", "<answer>PICK</answer>"],
    "camera": [None, "", "{}", '{"width": 64}', "[1]"],
    "grid": [None, "", "{}", "[1]", json.dumps(LARGER_GRID)],
    "family": [None, "frozenlake", "chess"],
    "level": [None, 4],
    "split": [None, "dev"],
    "seed": [None],
    "styles": [None, "gaudy"],
    "style": [None],
    "renderer": [None],
}


@pytest.mark.parametrize(
    ("column", "value"),
    [(column, value) for column, values in BAD_VALUES.items() for value in values],
)
def test_a_bad_row_is_named(directory: Path, tmp_path: Path, column: str, value: Any) -> None:
    broken = rewritten(directory, tmp_path, lambda row: row.update({column: value}))
    episodes = iter_episodes(broken, "test")
    next(episodes)
    with pytest.raises(DatasetError, match=f"{SHARD}, row 1: ") as caught:
        next(episodes)
    assert len(str(caught.value)) < 500


def test_a_picture_of_another_size_than_its_camera_is_refused(
    directory: Path, tmp_path: Path
) -> None:
    other = next(generate_episodes("maze", 3, "test", 0, 1, 48)).camera
    text = json.dumps(other.to_dict())
    broken = rewritten(directory, tmp_path, lambda row: row.update(camera=text))
    with pytest.raises(DatasetError, match=r"row 1: the image has 64 × 64 px, its camera 48 × 48"):
        load_episodes(broken, "test")


def test_other_columns_are_refused(directory: Path, tmp_path: Path) -> None:
    table = pq.read_table(directory / SHARD)
    pq.write_table(table.drop_columns(["plan"]), tmp_path / SHARD)
    with pytest.raises(DatasetError, match="other columns"):
        load_episodes(tmp_path, "test")


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_a_truncated_shard_is_named(directory: Path, tmp_path: Path, keep: float) -> None:
    data = (directory / SHARD).read_bytes()
    end = keep if isinstance(keep, int) else int(keep * len(data))
    (tmp_path / SHARD).write_bytes(data[:end])
    with pytest.raises(DatasetError, match=SHARD):
        load_episodes(tmp_path, "test")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_flipped_bytes_are_named_or_change_nothing(
    directory: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray((directory / SHARD).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    (tmp_path / SHARD).write_bytes(content)
    try:
        loaded = load_episodes(tmp_path, "test")
    except DatasetError as error:
        assert SHARD in str(error)
    else:
        good = load_episodes(directory, "test")
        assert len(loaded) == len(good)
        assert all(same(*both) for both in zip(loaded, good, strict=True))
