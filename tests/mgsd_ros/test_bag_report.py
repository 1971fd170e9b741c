"""The page about a bag, opened in a real browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_images import fields, write_images

from mgsd_ros.bag_evaluate import evaluate_bag
from mgsd_ros.bag_report import MOST_PICTURES, Thumbnails, bag_report, write_report
from mgsd_ros.frame_answer import FrameAnswerer
from mgsd_ros.parameters import PlannerParameters

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "<script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def evaluated(bundle_dir: Path, lake_episodes, tmp_path_factory) -> dict[str, Any]:
    """Return the page of a bag with two images that cannot be used, and what it is made of."""
    out = tmp_path_factory.mktemp("report")
    images = [fields(episode.image) for episode in lake_episodes[:6]]
    images.insert(2, fields(lake_episodes[0].image, encoding=HOSTILE))
    images.append(fields(lake_episodes[0].image, step=1))
    write_images(out / "bag", {"/eye": images}, "mcap")
    answerer = FrameAnswerer.load(PlannerParameters(bundle=str(bundle_dir)))
    thumbnails = Thumbnails()
    evaluate_bag(answerer, out / "bag", "/eye", out, on_frame=thumbnails.add)
    write_report(out, thumbnails)
    return {
        "written": (out / "report.html").read_text(),
        "summary": json.loads((out / "summary.json").read_text()),
        "lines": [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()],
        "timings": json.loads((out / "timings.json").read_text()),
        "pictures": thumbnails.urls,
    }


@pytest.fixture
def evaluation(evaluated: dict[str, Any]) -> dict[str, Any]:
    return dict(evaluated)


def refused(line: dict[str, Any], error: str) -> dict[str, Any]:
    return line | {"error": error, "actions": None, "confidence": 0.01}


def test_a_page_holds_everything_and_asks_for_nothing(evaluation: dict[str, Any]) -> None:
    page = evaluation.pop("written")
    assert page == bag_report(**evaluation)
    assert page.count("<figure") == page.count('src="data:image/jpeg;base64,') == 6
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    assert "http:" not in page and "https:" not in page
    assert HOSTILE not in page and "&lt;script&gt;document.title" in page
    for digest in evaluation["summary"]["digests"].values():
        assert digest in page
    assert "no answer (2)" in page
    assert "Partial" not in page


def test_what_is_partial_or_refused_is_said(evaluation: dict[str, Any]) -> None:
    lines = [refused(evaluation["lines"][0], HOSTILE), *evaluation["lines"][1:]]
    summary = evaluation["summary"] | {"complete": False, "problem": "the bag is cut off"}
    page = bag_report(summary, lines, evaluation["timings"], evaluation["pictures"])
    assert "the bag is cut off" in page
    assert "not to be followed (1)" in page
    assert HOSTILE not in page


def test_reasons_are_grouped_and_none_is_left_out(evaluation: dict[str, Any]) -> None:
    first, *rest = evaluation["lines"]
    unsure = [refused(first, f"confidence {n / 9:.2f}, and the least is 0.90") for n in range(9)]
    others = [refused(first, f"reason {chr(97 + n)}") for n in range(15)]
    lines = [line | {"index": i} for i, line in enumerate([*rest, *unsure, *others])]
    timings = evaluation["timings"] | {"frames": [evaluation["timings"]["frames"][0]] * len(lines)}
    page = bag_report(evaluation["summary"], lines, timings, {})
    rows = dict(re.findall(r"<tr><td>([^<]*)</td><td>(\d+)</td></tr>", page))
    assert rows["confidence …, and the least is …"] == "9"
    assert sum(map(int, rows.values())) == sum(line["error"] is not None for line in lines)
    assert int(rows["others"]) > 0


@pytest.mark.parametrize("count", [1, 500, 501, 5000])
def test_a_long_bag_gives_a_page_that_still_opens(evaluation: dict[str, Any], count: int) -> None:
    one = evaluation["lines"][0]
    lines = [one | {"index": index} for index in range(count)]
    lines[count // 2] = refused(lines[count // 2], "no")
    times = evaluation["timings"]["frames"][:1] * count
    page = bag_report(
        evaluation["summary"], lines, evaluation["timings"] | {"frames": times}, {0: "data:,"}
    )
    assert len(page) < 200_000
    bars = re.findall(r'<rect class="(\w+)"', page)
    assert len(bars) <= 500
    assert bars.count("poor") == 1


def test_few_pictures_are_kept_of_many_frames(evaluation: dict[str, Any]) -> None:
    thumbnails, picture = Thumbnails(), np.zeros((8, 8, 3), np.uint8)
    good = evaluation["lines"][0]
    for index in range(4 * MOST_PICTURES):
        line = good if index < 3 * MOST_PICTURES else refused(good, "no")
        thumbnails.add(index, picture, line | {"index": index})
    kept = sorted(thumbnails.urls)
    assert MOST_PICTURES // 2 < len(kept) <= MOST_PICTURES
    failures = [index for index in kept if index >= 3 * MOST_PICTURES]
    assert failures == list(range(3 * MOST_PICTURES, 3 * MOST_PICTURES + MOST_PICTURES // 2))
    others = [index for index in kept if index < 3 * MOST_PICTURES]
    assert others[0] == 0 and others[-1] > 2 * MOST_PICTURES  # all along the bag


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_the_filters_work_in_a_browser(evaluation: dict[str, Any], tmp_path: Path) -> None:
    lines = [refused(evaluation["lines"][0], "no"), *evaluation["lines"][1:]]
    page = bag_report(evaluation["summary"], lines, evaluation["timings"], evaluation["pictures"])
    # Clicks every filter and notes what is then to be seen.
    script = """<script>addEventListener("load", () => {
      const seen = {};
      for (const button of document.querySelectorAll(".filters button")) {
        button.click();
        seen[button.dataset.kind] = [...document.querySelectorAll("figure")]
          .filter(figure => figure.offsetParent !== null).length;
      }
      const loaded = [...document.images].every(image => image.complete && image.naturalWidth);
      document.title = JSON.stringify({seen, loaded, wide: document.body.scrollWidth});
    });</script>"""
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", script + "</body>").replace(' loading="lazy"', ""))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--disable-background-networking"]
    command += ["--enable-logging=stderr", "--window-size=390,800", "--virtual-time-budget=4000"]
    done = subprocess.run(
        [*command, file.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    said = json.loads(title[1])
    assert said["seen"] == {"all": 6, "success": 5, "refused": 1}
    assert said["loaded"]
    assert said["wide"] <= 500  # a phone's width: nothing to be scrolled sideways
    assert "CONSOLE" not in done.stderr
