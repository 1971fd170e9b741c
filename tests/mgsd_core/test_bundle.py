from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from mgsd_core.runtime.bundle import (
    BundleError,
    Manifest,
    file_entry,
    manifest_bytes,
    parse_manifest,
    read_bundle,
)


@pytest.fixture
def bundle(restless_bundle, tmp_path):
    """A copy that a test may damage."""
    path = tmp_path / "bundle"
    shutil.copytree(restless_bundle, path)
    return path


def change_manifest(bundle, **changes) -> Manifest:
    """Write another manifest that is well-formed and has the right digest."""
    manifest = replace(parse_manifest((bundle / "manifest.json").read_bytes()), **changes)
    (bundle / "manifest.json").write_bytes(manifest_bytes(manifest))
    return manifest


def change_json(bundle, change) -> None:
    """Change what the manifest says by hand, leaving its digest alone."""
    content = json.loads((bundle / "manifest.json").read_text())
    change(content)
    (bundle / "manifest.json").write_text(json.dumps(content))


def test_a_bundle_reads_back(bundle):
    read = read_bundle(bundle)
    assert read.manifest.families == ("frozenlake", "maze")
    assert set(read.files) == set(read.manifest.files)
    assert read.manifest.image.tokens == 16
    assert read == read_bundle(bundle)
    # The digest names the bundle: whatever changes in it, changes the digest.
    change_manifest(bundle, name="other")
    assert read_bundle(bundle).digest != read.digest


def test_any_changed_byte_is_refused_and_its_file_named(bundle):
    random = np.random.default_rng(0)
    names = [str(p.relative_to(bundle)) for p in sorted(bundle.rglob("*")) if p.is_file()]
    assert {"manifest.json", "vision.onnx", "decoder.onnx", "tokenizer.json"} < set(names)
    for name in names:
        data = (bundle / name).read_bytes()
        places = {0, len(data) - 1, *random.integers(0, len(data), 20).tolist()}
        for place in sorted(places):
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(random.integers(8))
            (bundle / name).write_bytes(damaged)
            with pytest.raises(BundleError, match=name.split("/")[-1].replace(".", r"\.")):
                read_bundle(bundle)
        for wrong in (data[:-1], data + b"\0", b""):
            (bundle / name).write_bytes(wrong)
            with pytest.raises(BundleError, match=name.split("/")[-1].replace(".", r"\.")):
                read_bundle(bundle)
        (bundle / name).write_bytes(data)
    read_bundle(bundle)


def test_a_changed_byte_anywhere_is_refused_and_its_file_named(bundle):
    """200 places drawn over the bundle's bytes, so large files get more of them."""
    files = sorted(p for p in bundle.rglob("*") if p.is_file())
    ends = np.cumsum([p.stat().st_size for p in files])
    random = np.random.default_rng(1)
    for place in random.integers(0, ends[-1], 200):
        which = int(np.searchsorted(ends, place, side="right"))
        path, offset = files[which], int(place - (ends[which - 1] if which else 0))
        data = path.read_bytes()
        changed = bytearray(data)
        changed[offset] ^= int(random.integers(1, 256))
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=path.name.replace(".", r"\.")):
            read_bundle(bundle)
        path.write_bytes(data)
    read_bundle(bundle)


@pytest.mark.parametrize("name", ["vision.onnx", "tokenizer.json", "goldens/0000.png"])
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"cannot read {name}.*No such file"):
        read_bundle(bundle)


def test_links_and_pipes_are_not_followed(bundle, tmp_path):
    (bundle / "vision.onnx").rename(tmp_path / "elsewhere")
    (bundle / "vision.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"vision\.onnx in .* is a symbolic link"):
        read_bundle(bundle)
    (bundle / "vision.onnx").unlink()
    os.mkfifo(bundle / "vision.onnx")
    with pytest.raises(BundleError, match=r"vision\.onnx in .* is not a plain file"):
        read_bundle(bundle)
    (bundle / "vision.onnx").unlink()
    (tmp_path / "elsewhere").rename(bundle / "vision.onnx")
    (bundle / "goldens").rename(tmp_path / "goldens")
    (bundle / "goldens").symlink_to(tmp_path / "goldens")
    with pytest.raises(BundleError, match="symbolic link"):
        read_bundle(bundle)


def test_a_linked_manifest_is_refused(bundle, tmp_path):
    (bundle / "manifest.json").rename(tmp_path / "m")
    (bundle / "manifest.json").symlink_to(tmp_path / "m")
    with pytest.raises(BundleError, match=r"manifest\.json in .* is a symbolic link"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "goldens/../../secret",
        "goldens/..",
        "sub/file",
        ".hidden",
        "a\\b",
        "a\0b",
        "",
        "manifest.json",
        "x" * 200,
    ],
)
def test_file_names_that_lead_elsewhere_are_refused(bundle, tmp_path, name):
    (tmp_path / "secret").write_bytes(b"secret")
    manifest = read_bundle(bundle).manifest
    change_manifest(bundle, files={**manifest.files, name: file_entry(b"secret")})
    with pytest.raises(BundleError, match="is no name of a bundle's file"):
        read_bundle(bundle)


@pytest.mark.parametrize("version", [0, 1, 2, 4, "3", None, True, 10**30])
def test_other_schema_versions_are_refused(bundle, version):
    change_json(bundle, lambda content: content.update(schema_version=version))
    with pytest.raises(BundleError, match=r"schema version .*; this program reads version 3"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(families=[]),
        lambda c: c.update(families=["lake"]),
        lambda c: c.update(families="frozenlake"),
        lambda c: c.update(families=[["frozenlake"]]),
        lambda c: c.update(prompt_style="rude"),
        lambda c: c.update(prompt_style=["brief"]),
        lambda c: c.update(name=1),
        lambda c: c.update(cache_length=0),
        lambda c: c.update(cache_length=True),
        lambda c: c.update(cache_length=10**12),
        lambda c: c.pop("tokens"),
        lambda c: c["tokens"].update(stop=[-1]),
        lambda c: c["tokens"].update(stop=[1.5]),
        lambda c: c.update(precision="fp64"),
        lambda c: c.update(portable=1),
        lambda c: c.update(least_agreement=1.5),
        lambda c: c.update(least_agreement=1),
        lambda c: c["tokens"].update(image="1"),
        lambda c: c["image"].update(size=100),
        lambda c: c["image"].update(patch=0),
        lambda c: c["image"].update(std=0.0),
        lambda c: c["image"].update(mean=float("nan")),
        lambda c: c["prompts"].pop("maze"),
        lambda c: c["prompts"]["maze"].update(prefix=None),
        lambda c: c["prompts"]["maze"].update(prefix="\ud800"),
        lambda c: c["prompts"]["maze"].update(max_new_tokens=0),
        lambda c: c["files"].pop("decoder.onnx"),
        lambda c: c["files"]["decoder.onnx"].update(bytes=-1),
        lambda c: c["files"]["decoder.onnx"].update(bytes=1 << 50),
        lambda c: c["files"]["decoder.onnx"].update(sha256="00"),
        lambda c: c.update(files=[]),
        lambda c: c["goldens"][0].update(image="../x.png"),
        lambda c: c["goldens"][0].update(family="minibehaviour"),
        lambda c: c.update(goldens={}),
        lambda c: c.update(surprise=1),
        lambda c: c.update(digest="0" * 64),
        lambda c: c.pop("digest"),
    ],
)
def test_manifests_that_are_not_well_formed_are_refused(bundle, change):
    change_json(bundle, change)
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 3}']
)
def test_what_is_no_manifest_is_refused(bundle, data):
    (bundle / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_bundle(bundle)


def test_a_huge_manifest_is_not_read(bundle):
    (bundle / "manifest.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(BundleError, match=r"manifest\.json in .* more than"):
        read_bundle(bundle)


def test_weights_of_other_prompts_are_refused(bundle):
    change_manifest(bundle, prompts_digest="0" * 64)
    with pytest.raises(BundleError, match="trained with other prompts"):
        read_bundle(bundle)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="no such directory"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"is no bundle: it has no manifest\.json"):
        read_bundle(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="no such directory"):
        read_bundle(tmp_path / "file")
