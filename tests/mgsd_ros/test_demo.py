from __future__ import annotations

import json
import subprocess
import sys

from PIL import Image


def test_the_demo_goes_the_whole_way(tmp_path):
    """A training far too short to learn from: all steps run, and the missed bar is said."""
    out = tmp_path / "demo"
    settings = (
        "text.steps=3",
        "coldstart.steps=3",
        "distill.steps=2",
        "distill.validate_every=2",
        "backbone.nano.layers=1",
    )
    command = [sys.executable, "-m", "mgsd_core.cli", "demo", "--out", str(out)]
    command += ["--families", "frozenlake", "--scenes", "40", "--held-out", "6", "--frames", "3"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1, done.stderr
    report = json.loads((out / "results.json").read_text())
    assert list(report["table"]) == ["base", "stage 1", "MGSD", "symbolic upper bound"]
    assert report["gain"] < report["required_gain"]
    assert report["ros"]["frozenlake"]["answered"] == 3
    assert len(list((out / "pictures").glob("frozenlake-*.png"))) == 3
    assert Image.open(out / "pictures" / "sheet.png").width > 300
    assert report["closed_loop"]["scenes"] == report["closed_loop"]["closed_loop"]["count"] == 9
    assert report["closed_loop"]["succeeded"] >= 5  # this one is trained
    assert Image.open(out / "closed_loop.gif").n_frames > 1
    for name in (
        "base",
        "stage 1",
        "MGSD",
        "symbolic upper bound",
        str(out / "results.json"),
        str(out / "report.html"),
        "closed_loop.gif",
    ):
        assert name in done.stdout
