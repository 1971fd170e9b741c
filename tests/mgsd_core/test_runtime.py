from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgsd_core import prompts
from mgsd_core.runtime import (
    BundleError,
    ImageError,
    InferenceError,
    Planner,
    read_image,
    response_to_dict,
    with_margin,
)
from mgsd_core.runtime.bundle import manifest_bytes, read_bundle
from sim import FrozenLake, format_plan, parse_plan, simulate, state_from_dict

LAKE = {"families": ["frozenlake"], "levels": {"frozenlake": [3]}}


@pytest.fixture(scope="module")
def planner(restless_bundle):
    return Planner.load(restless_bundle, threads=1)


@pytest.fixture
def exported(tmp_path):
    """Export a backbone for lakes of level 3 and load what came out."""
    pytest.importorskip("onnx")
    from mgsd_core.export import export_bundle

    def export(backbone) -> Planner:
        return Planner.load(export_bundle(backbone, tmp_path / "exported", **LAKE), threads=1)

    return export


# --- the same answers as transformers -----------------------------------------------------------


@pytest.mark.parametrize("family", ["frozenlake", "maze"])
def test_texts_are_transformers_greedy_texts(
    restless_backbone, restless_bundle, make_picture, family
):
    pytest.importorskip("torch")
    from mgsd_core.export.reference import greedy_text

    planner = Planner.load(restless_bundle, family=family, threads=1)
    most = read_bundle(restless_bundle).manifest.prompts[family].max_new_tokens
    pictures = [make_picture(seed) for seed in range(20)]
    texts = [planner.plan(rgb).text for rgb in pictures]
    assert texts == [greedy_text(restless_backbone, family, rgb, most) for rgb in pictures]
    assert len(set(texts)) > 15  # they are about the pictures


def test_confidence_is_transformers_probability_of_the_text(
    bundle_dir, trained_backbone, lake_episodes
):
    from mgsd_core.export.reference import greedy_ids, response_logits

    planner = Planner.load(bundle_dir, threads=1)
    for episode in lake_episodes[:5]:
        response = planner.plan(episode.image)
        ids = greedy_ids(trained_backbone, "frozenlake", episode.image, 200)
        logits = response_logits(trained_backbone, "frozenlake", episode.image, ids)
        logits = logits.astype(np.float64)
        logits[:, trained_backbone.suppressed_tokens()] = -np.inf
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        expected = shares[np.arange(len(ids)), ids].prod()
        assert 0 < expected < 1
        assert response.confidence == pytest.approx(expected, abs=1e-4)
        assert planner.plan(episode.image).confidence == response.confidence


def test_a_trained_student_plans(bundle_dir, trained_backbone, lake_episodes):
    from mgsd_core.export.reference import greedy_text

    planner = Planner.load(bundle_dir)
    for episode in lake_episodes:
        response = planner.plan(episode.image)
        assert response.text == greedy_text(trained_backbone, "frozenlake", episode.image, 200)
        assert (response.state, response.plan) == (episode.state, episode.plan)
        outcome = simulate(episode.state, episode.plan)
        assert response.verdict.legal and response.verdict.success
        assert response.verdict.failure is None and response.verdict.path == outcome.path


def test_goldens_are_answered(restless_bundle):
    bundle = read_bundle(restless_bundle)
    assert {g.family for g in bundle.manifest.goldens} == {"frozenlake", "maze"}
    for golden in bundle.manifest.goldens:
        planner = Planner.load(restless_bundle, family=golden.family)
        assert planner.plan(read_image(restless_bundle / golden.image)).text == golden.text


# --- one frame after another --------------------------------------------------------------------


def test_frames_do_not_know_of_each_other(restless_bundle, planner, make_picture):
    pictures = [make_picture(seed) for seed in range(6)]
    alone = [Planner.load(restless_bundle, threads=1).plan(rgb).text for rgb in pictures]
    assert [planner.plan(rgb).text for rgb in pictures] == alone
    assert [planner.plan(rgb).text for rgb in reversed(pictures)] == alone[::-1]


def test_the_prefix_cache_changes_no_answer(restless_bundle, planner, make_picture):
    without = Planner.load(restless_bundle, threads=1, prefix_cache=False)
    for seed in range(8):
        assert without.plan(make_picture(seed)).text == planner.plan(make_picture(seed)).text


def test_forced_tokens_change_no_answer(restless_bundle, planner, make_picture):
    one_by_one = Planner.load(restless_bundle, threads=1, forced_tokens=False)
    for seed in range(8):
        response = one_by_one.plan(make_picture(seed))
        assert response.text == planner.plan(make_picture(seed)).text
        assert response.passes in (response.tokens, response.tokens + 1)


def test_forced_tokens_spare_most_passes(bundle_dir, lake_episodes):
    planner = Planner.load(bundle_dir, threads=1)
    one_by_one = Planner.load(bundle_dir, threads=1, forced_tokens=False)
    for episode in lake_episodes:
        response, expected = planner.plan(episode.image), one_by_one.plan(episode.image)
        assert (response.text, response.tokens) == (expected.text, expected.tokens)
        assert response.passes < response.tokens / 2


def test_a_scene_that_stands_still_takes_few_passes(bundle_dir, lake_episodes):
    planner = Planner.load(bundle_dir, threads=1)
    for episode in lake_episodes:
        first, again = planner.plan(episode.image), planner.plan(episode.image)
        assert again.text == first.text and again.passes <= 4


@pytest.mark.parametrize("cut", [1, 7, 12])
def test_a_response_is_cut_at_the_most_tokens_within_a_draft(bundle_dir, tmp_path, cut):
    manifest = read_bundle(bundle_dir).manifest
    prompt = replace(manifest.prompts["frozenlake"], max_new_tokens=cut)
    changed = rewrite(
        bundle_dir, tmp_path / "b", {}, prompts={**manifest.prompts, "frozenlake": prompt}
    )
    golden = manifest.goldens[0]
    rgb = read_image(bundle_dir / golden.image)
    response = Planner.load(changed).plan(rgb)
    assert response.tokens == cut and golden.text.startswith(response.text)
    assert response == replace(
        Planner.load(changed, forced_tokens=False).plan(rgb),
        timings=response.timings,
        passes=response.passes,
    )


def test_threads_may_share_a_planner(restless_bundle, planner, make_picture):
    pictures = [make_picture(seed) for seed in range(6)] * 2
    expected = [planner.plan(rgb).text for rgb in pictures]
    with ThreadPoolExecutor(4) as pool:
        assert [r.text for r in pool.map(planner.plan, pictures)] == expected


def test_threads_change_no_answer(restless_bundle, planner, make_picture):
    two = Planner.load(restless_bundle, threads=2)
    for seed in range(4):
        assert two.plan(make_picture(seed)).text == planner.plan(make_picture(seed)).text


def test_a_frame_that_overflows_spoils_no_later_one(make_restless, tmp_path):
    torch = pytest.importorskip("torch")
    from mgsd_core.export import export_bundle

    backbone = make_restless()
    tower = backbone.model.model.visual
    with torch.no_grad():  # a bright first pixel overflows float32, a dark one gives 0
        kernel = tower.patch_embed.proj.weight
        kernel[0] = 0
        kernel[0].view(-1)[0] = tower.patch_embed.proj.bias[0] = 3e38
        tower.pos_embed.weight[:, 0] = 0
    black = np.zeros((128, 128, 3), np.uint8)
    goldens = [("frozenlake", black)]
    planner = Planner.load(export_bundle(backbone, tmp_path / "b", goldens=goldens, **LAKE))
    before = planner.plan(black).text
    with pytest.raises(InferenceError, match="not finite"):
        planner.plan(np.full_like(black, 255))
    assert planner.plan(black).text == before


# --- where a response ends ----------------------------------------------------------------------


BLACK = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def words(make_scripted):
    """The tokenizer of every scripted backbone."""
    return make_scripted([]).tokenizer


def spell(tokenizer, text: str) -> list[int]:
    """Spell a text by the tokens of its single characters."""
    return [tokenizer.convert_tokens_to_ids(c) for c in text]


def test_it_stops_at_an_answer_of_many_tokens(make_scripted, exported, words):
    import torch

    from mgsd_core.export.reference import greedy_text

    script = spell(words, "XY</answer>ZQ")
    assert len(set(script)) == len(script) == 13
    backbone = make_scripted(script)
    with torch.no_grad():  # one token too far, and there are no numbers any more
        backbone.model.model.language_model.embed_tokens.weight[script[-2]] = float("nan")
    text = exported(backbone).plan(BLACK).text
    assert text == "XY</answer>" == greedy_text(backbone, "frozenlake", BLACK, 99)


def test_what_shares_a_token_with_the_end_is_cut(make_scripted, exported, words):
    backbone = make_scripted([len(words)], ("<answer>R</answer> and more",))
    assert exported(backbone).plan(BLACK).text == "<answer>R</answer>"


def test_it_stops_at_the_end_of_the_turn(make_scripted, exported, words):
    end = words.convert_tokens_to_ids("<|im_end|>")
    backbone = make_scripted([*spell(words, "XY"), end, *spell(words, "Z")])
    assert exported(backbone).plan(BLACK).text == "XY"


def test_it_stops_at_the_most_tokens(make_scripted, exported, words, tmp_path):
    script = [i for i in range(20, 200) if len(words.decode([i])) == 1][:80]
    text = exported(make_scripted(script)).plan(BLACK).text
    most = read_bundle(tmp_path / "exported").manifest.prompts["frozenlake"].max_new_tokens
    assert most < len(script) and text == words.decode(script[:most])


def test_special_tokens_are_never_said(make_scripted, exported, words):
    x, y = spell(words, "XY")
    backbone = make_scripted([x, words.convert_tokens_to_ids("<|image_pad|>"), y])
    text = exported(backbone).plan(BLACK).text
    assert text[0] == "X" and "<|" not in text
    assert not set(words(text).input_ids) & set(backbone.suppressed_tokens())


# --- verdicts -----------------------------------------------------------------------------------

SCENE = "Size 3. Start (0,0). Goal (0,2). Holes (0,1) (2,2)."


@pytest.mark.parametrize(
    ("text", "legal", "success", "failure", "cells"),
    [
        (f"{SCENE} <answer>D R R U</answer>", True, True, None, 5),
        (f"{SCENE} <answer>D R</answer>", True, False, "incomplete", 3),
        (f"{SCENE} <answer>R R</answer>", False, False, "hole", 1),
        (f"{SCENE} <answer>D L</answer>", False, False, "off_grid", 2),
        (f"{SCENE} <answer>D PICK</answer>", False, False, "plan: PICK in the answer is no", 0),
        (f"{SCENE} there is no way.", False, False, "plan: no <answer>", 0),
        ("Somewhere. <answer>R R</answer>", False, False, "state: no sentence 'Size", 0),
    ],
)
def test_verdicts_are_about_the_state_that_was_recovered(
    make_scripted, exported, words, text, legal, success, failure, cells
):
    end = words.convert_tokens_to_ids("<|im_end|>")
    response = exported(make_scripted([len(words), end], (text,))).plan(BLACK)
    assert response.text == text
    verdict = response.verdict
    assert (verdict.legal, verdict.success, len(verdict.path)) == (legal, success, cells)
    assert verdict.failure == failure or verdict.failure.startswith(failure)
    data = json.loads(json.dumps(response_to_dict(response)))
    assert data["verdict"] == {"legal": legal, "success": success, "failure": verdict.failure}
    assert data["text"] == text and len(data["path"]) == cells
    if cells:
        state = FrozenLake(3, (0, 0), (0, 2), frozenset({(0, 1), (2, 2)}))
        assert response.state == state == state_from_dict(data["state"])
        plan = parse_plan(text, "frozenlake")
        assert response.plan == plan and data["actions"] == [a.value for a in plan]
        assert format_plan(response.plan) in text
    else:
        assert data["state"] is None or data["actions"] is None


@pytest.mark.parametrize(
    ("answer", "repaired"),
    [("D R R U", False), ("D R", True), ("R R", True), ("PICK", True), ("", True)],
)
def test_a_plan_that_fails_in_its_own_state_can_be_repaired(
    make_scripted, exported, words, tmp_path, answer, repaired
):
    end = words.convert_tokens_to_ids("<|im_end|>")
    text = f"{SCENE} <answer>{answer}</answer>" if answer else f"{SCENE} I am at a loss."
    as_it_is = exported(make_scripted([len(words), end], (text,))).plan(BLACK)
    response = Planner.load(tmp_path / "exported", repair=True).plan(BLACK)
    assert not as_it_is.repaired and response.repaired is repaired
    assert response.text == as_it_is.text == text and response.state == as_it_is.state
    assert response.verdict.success and simulate(response.state, response.plan).success
    assert response_to_dict(response)["repaired"] is repaired
    if not repaired:
        assert response.plan == as_it_is.plan


@pytest.mark.parametrize(
    "scene", ["Somewhere.", "Size 3. Start (0,0). Goal (0,2). Holes (0,1) (1,0)."]
)
def test_what_cannot_be_repaired_stays_as_it_is(make_scripted, exported, words, tmp_path, scene):
    end = words.convert_tokens_to_ids("<|im_end|>")
    exported(make_scripted([len(words), end], (f"{scene} <answer>R R</answer>",)))
    response = Planner.load(tmp_path / "exported", repair=True).plan(BLACK)
    assert not response.repaired and not response.verdict.legal


def test_timings_are_seconds_of_each_stage(planner, make_picture):
    timings = planner.plan(make_picture(0)).timings
    assert list(timings) == ["preprocess", "vision", "prefill", "decode", "check", "total"]
    assert all(value > 0 for value in timings.values())
    total = timings.pop("total")
    assert sum(timings.values()) <= total < 60


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rgb",
    [
        np.zeros((0, 128, 3), np.uint8),
        np.zeros((128, 128, 3), np.float32),
        np.zeros((128, 128), np.uint8),
        np.zeros((128, 128, 4), np.uint8),
        None,
    ],
)
def test_what_is_no_picture_is_refused(planner, make_picture, rgb):
    before = planner.plan(make_picture(0)).text
    with pytest.raises(ImageError):
        planner.plan(rgb)
    assert planner.plan(make_picture(0)).text == before


def test_loading_says_what_there_is(restless_bundle, tmp_path):
    with pytest.raises(BundleError, match=r"cannot plan for 'minibehaviour'.*frozenlake, maze"):
        Planner.load(restless_bundle, family="minibehaviour")
    with pytest.raises(
        BundleError, match="unknown backend 'tpu'; there are: auto, tensorrt, tensorrt-rtx, onnx"
    ):
        Planner.load(restless_bundle, backend="tpu")
    with pytest.raises(BundleError, match="threads must be at least 1"):
        Planner.load(restless_bundle, threads=0)
    with pytest.raises(BundleError, match="no such directory"):
        Planner.load(tmp_path / "nowhere")
    planner = Planner.load(restless_bundle, backend="onnxruntime-cpu", family="maze")
    assert (planner.family, planner.backend) == ("maze", "onnxruntime-cpu")
    assert planner.bundle_digest == read_bundle(restless_bundle).digest


def rewrite(source: Path, target: Path, files: dict[str, bytes], **changes) -> Path:
    """Copy a bundle with other files or manifest entries, every digest right."""
    from mgsd_core.runtime.bundle import file_entry

    shutil.copytree(source, target)
    manifest = read_bundle(source).manifest
    entries = {name: file_entry(data) for name, data in files.items()}
    manifest = replace(manifest, files={**manifest.files, **entries}, **changes)
    for name, data in files.items():
        (target / name).write_bytes(data)
    (target / "manifest.json").write_bytes(manifest_bytes(manifest))
    return target


def test_files_that_are_intact_but_wrong_are_refused(restless_bundle, tmp_path):
    files = read_bundle(restless_bundle).files
    manifest = read_bundle(restless_bundle).manifest
    with pytest.raises(BundleError, match=r"cannot load vision\.onnx"):
        Planner.load(rewrite(restless_bundle, tmp_path / "1", {"vision.onnx": b"not a graph"}))
    with pytest.raises(BundleError, match=r"cannot load tokenizer\.json"):
        Planner.load(rewrite(restless_bundle, tmp_path / "2", {"tokenizer.json": b"{}"}))
    swapped = {"vision.onnx": files["decoder.onnx"], "decoder.onnx": files["vision.onnx"]}
    with pytest.raises(BundleError, match="do not fit its manifest"):
        Planner.load(rewrite(restless_bundle, tmp_path / "3", swapped))
    with pytest.raises(BundleError, match="do not fit its manifest"):
        longer = manifest.cache_length + 1
        Planner.load(rewrite(restless_bundle, tmp_path / "4", {}, cache_length=longer))
    with pytest.raises(BundleError, match="exceed the model's vocabulary"):
        tokens = replace(manifest.tokens, end=1 << 20)
        Planner.load(rewrite(restless_bundle, tmp_path / "5", {}, tokens=tokens))
    with pytest.raises(BundleError, match="exceed its cache"):
        prompt = replace(manifest.prompts["maze"], max_new_tokens=1 << 20)
        changed = rewrite(
            restless_bundle, tmp_path / "6", {}, prompts={**manifest.prompts, "maze": prompt}
        )
        Planner.load(changed, family="maze")


# --- a robot's computer -------------------------------------------------------------------------

ROBOT = """
import sys
for name in ("torch", "transformers", "rclpy", "onnx"):
    sys.modules[name] = None  # importing it fails
import numpy as np
from mgsd_core.runtime import Planner
response = Planner.load(sys.argv[1]).plan(np.zeros((128, 128, 3), np.uint8))
print(response.text)
"""


def test_a_robot_needs_neither_torch_nor_ros_and_reports_to_nobody(
    restless_bundle, planner, tmp_path
):
    # ONNX Runtime would keep a device id and its reports in the home directory.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "XDG_CACHE_HOME")
    }
    run = subprocess.run(
        [sys.executable, "-c", ROBOT, str(restless_bundle)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**environment, "HOME": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == planner.plan(np.zeros((128, 128, 3), np.uint8)).text + "\n"
    assert list(tmp_path.rglob("*")) == []


# --- picture files and the command --------------------------------------------------------------


def huge_png() -> bytes:
    """A tiny file that says it is 100,000 × 100,000 px."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.fixture
def bad_pictures(make_picture, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    Image.fromarray(make_picture(0)).save(folder / "whole.png")
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:100])
    (folder / "whole.png").unlink()
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    (folder / "huge.png").write_bytes(huge_png())
    Image.new("1", (70_000, 2)).save(folder / "thin.png")
    (folder / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    return sorted(folder.iterdir())


def test_bad_picture_files_are_refused(bad_pictures):
    assert len(bad_pictures) == 6
    for path in bad_pictures:
        with pytest.raises(ImageError, match=path.name.replace(".", r"\.")):
            read_image(path)


def test_pictures_of_any_mode_are_read(make_picture, tmp_path):
    rgb = make_picture(0)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb)
    for mode in ("L", "P", "RGBA", "1"):
        Image.fromarray(rgb).convert(mode).save(tmp_path / "b.png")
        assert read_image(tmp_path / "b.png").shape == rgb.shape
    # A camera held sideways says so in the file.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "c.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "c.png"), np.rot90(rgb, -1))


def run_command(capsys, *arguments) -> tuple[int, list[dict], str]:
    from mgsd_core.cli import main

    status = main(["plan", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_the_command_plans_a_directory(bundle_dir, lake_episodes, tmp_path, capsys):
    folder, drawn = tmp_path / "in", tmp_path / "drawn"
    folder.mkdir()
    for i, episode in enumerate(lake_episodes[:3]):
        Image.fromarray(episode.image).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no picture, so it is left out")
    status, lines, _ = run_command(capsys, folder, "--bundle", bundle_dir, "--draw", drawn)
    assert status == 0
    assert [line["image"] for line in lines] == [str(folder / f"{i}.png") for i in range(3)]
    for line, episode in zip(lines, lake_episodes, strict=False):
        assert line["actions"] == [a.value for a in episode.plan]
        assert state_from_dict(line["state"]) == episode.state
        assert line["verdict"] == {"legal": True, "success": True, "failure": None}
        assert prompts.parse_response(line["text"], "frozenlake").plan == episode.plan
        assert line["timings"]["total"] > 0
    assert sorted(p.name for p in drawn.iterdir()) == ["0000_0.png", "0001_1.png", "0002_2.png"]
    assert read_image(drawn / "0000_0.png").max() == 255


def test_the_command_puts_a_margin_around_pictures_that_end_with_the_grid(
    bundle_dir, lake_episodes, tmp_path, capsys
):
    Image.fromarray(lake_episodes[0].image).save(tmp_path / "a.png")
    arguments = (tmp_path / "a.png", "--bundle", bundle_dir, "--draw", tmp_path / "drawn")
    plain = run_command(capsys, *arguments)[1][0]
    height, width = read_image(tmp_path / "drawn" / "0000_a.png").shape[:2]
    told = run_command(capsys, *arguments, "--add-margin")[1][0]
    taller, wider = read_image(tmp_path / "drawn" / "0000_a.png").shape[:2]
    assert taller > height and wider > width
    with_it = Planner.load(bundle_dir, family="frozenlake").plan(
        with_margin(lake_episodes[0].image)
    )
    assert told["text"] == with_it.text and told["image"] == plain["image"]


def test_the_command_says_when_there_is_no_legal_plan(
    restless_bundle, make_picture, tmp_path, capsys
):
    Image.fromarray(make_picture(0)).save(tmp_path / "a.png")
    status, [line], _ = run_command(
        capsys, tmp_path / "a.png", "--bundle", restless_bundle, "--draw", tmp_path / "drawn"
    )
    assert status == 1
    assert not line["verdict"]["legal"] and line["verdict"]["failure"]
    assert (tmp_path / "drawn" / "0000_a.png").is_file()


def test_the_command_refuses_bad_input_in_one_line(
    restless_bundle, bad_pictures, make_picture, tmp_path, capsys
):
    good = tmp_path / "good.png"
    Image.fromarray(make_picture(0)).save(good)
    (tmp_path / "nothing").mkdir()
    bundle = ("--bundle", restless_bundle)
    wrong = [
        *((path, *bundle) for path in bad_pictures),
        (tmp_path / "nowhere.png", *bundle),
        (tmp_path / "nothing", *bundle),
        (good, "--bundle", tmp_path),
        (good, *bundle, "--family", "minibehaviour"),
        (good, *bundle, "--family", "lake"),
        (good, *bundle, "--backend", "tpu"),
        (good, *bundle, "--threads", 0),
        (good, *bundle, "--threads", 0, "--backend", "tensorrt"),
    ]
    for arguments in wrong:
        status, lines, error = run_command(capsys, *arguments)
        assert status == 2 and lines == []
        assert error.startswith("mgsd plan: ") and len(error.splitlines()) == 1


def test_no_threads_are_refused_whatever_runs_the_bundle(restless_bundle):
    for backend in ("auto", "tensorrt", "onnxruntime-cpu"):
        with pytest.raises(BundleError, match=r"^threads must be at least 1, not 0$"):
            Planner.load(restless_bundle, backend, threads=0)
