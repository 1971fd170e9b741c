from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from mgsd_core.cli import main
from mgsd_core.runtime.bundle import manifest_bytes, parse_manifest, read_bundle


@pytest.fixture
def bundle(bundle_dir, tmp_path):
    path = tmp_path / "bundle"
    shutil.copytree(bundle_dir, path)
    return path


def test_a_bundle_is_described_and_its_goldens_are_answered(bundle, capsys):
    assert main(["inspect", str(bundle)]) == 0
    printed = capsys.readouterr()
    found, manifest = json.loads(printed.out), read_bundle(bundle).manifest
    assert found["digest"] == read_bundle(bundle).digest
    assert found["families"] == {f: p.max_new_tokens for f, p in manifest.prompts.items()}
    assert found["bytes"] == sum(p.stat().st_size for p in bundle.rglob("*.*")) - (
        (bundle / "manifest.json").stat().st_size
    )
    decoder = found["graphs"]["decoder.onnx"]
    assert decoder["inputs"]["input_ids"] == ["tensor(int64)", [1, "S"]]
    assert decoder["outputs"]["tokens"] == ["tensor(int64)", [1, "N"]]
    count = len(manifest.goldens)
    assert found["goldens"] == {
        "pictures": count,
        "least_agreement": 1.0,
        "plans": count,
        "texts": count,
        "problem": None,
    }
    assert found["digest"] in printed.err and f"{count} of {count} plans" in printed.err


def test_a_bundle_that_answers_otherwise_ends_with_1(bundle, capsys):
    manifest = parse_manifest((bundle / "manifest.json").read_bytes())
    first = manifest.goldens[0]
    wrong = replace(first, text=first.text.replace("<answer>", "<answer>U "))
    goldens = (wrong, *manifest.goldens[1:])
    (bundle / "manifest.json").write_bytes(manifest_bytes(replace(manifest, goldens=goldens)))
    assert main(["inspect", str(bundle)]) == 1
    printed = capsys.readouterr()
    assert first.image in json.loads(printed.out)["goldens"]["problem"]
    assert "golden answers as the trained model does" in printed.err
    assert main(["inspect", str(bundle), "--no-answers"]) == 0
    assert "not answered" in capsys.readouterr().err


def test_what_is_damaged_ends_with_2_and_one_line(bundle, tmp_path, capsys):
    data = bytearray((bundle / "decoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "decoder.onnx").write_bytes(data)
    assert main(["inspect", str(bundle)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "decoder.onnx" in printed.err and printed.err.count("\n") == 1
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "no bundle at" in capsys.readouterr().err


def test_no_threads_are_refused(bundle, capsys):
    assert main(["inspect", str(bundle), "--threads", "0"]) == 2
    assert capsys.readouterr().err == "mgsd inspect: threads must be at least 1, not 0\n"
