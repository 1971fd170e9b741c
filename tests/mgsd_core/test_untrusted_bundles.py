"""Bundles from anywhere: well-formed, with the right digests, and with graphs that do harm."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mgsd_core.runtime import BundleError, Planner
from mgsd_core.runtime.bundle import file_entry, manifest_bytes, parse_manifest, read_bundle
from mgsd_core.runtime.engine import InferenceError
from mgsd_core.runtime.goldens import GoldenError, check_goldens
from mgsd_core.runtime.ort_engine import OrtEngine

onnx = pytest.importorskip("onnx")

BLACK = np.zeros((112, 112, 3), np.uint8)


@pytest.fixture
def forged(restless_bundle, tmp_path):
    """Return a function that changes a bundle's files and signs them anew."""

    def forge(**changes):
        path = tmp_path / "forged"
        shutil.copytree(restless_bundle, path)
        for stem, change in changes.items():
            [file] = (f for f in path.rglob("*") if f.name.startswith(f"{stem}."))
            if file.suffix == ".onnx":
                model = onnx.load_model_from_string(file.read_bytes())
                change(model.graph)
                file.write_bytes(model.SerializeToString())
            else:
                file.write_bytes(change)
        manifest = parse_manifest((path / "manifest.json").read_bytes())
        files = {name: file_entry((path / name).read_bytes()) for name in manifest.files}
        (path / "manifest.json").write_bytes(manifest_bytes(replace(manifest, files=files)))
        return path

    return forge


def test_the_forger_alone_changes_nothing(forged):
    assert Planner.load(forged(vision=lambda graph: None), family="maze").plan(BLACK).text


@pytest.mark.parametrize("inside", ["initializer", "node"])
def test_weights_are_taken_from_no_file_that_is_not_listed(forged, tmp_path, monkeypatch, inside):
    secret = tmp_path / "secret.bin"

    def elsewhere(graph):
        tensor = max(graph.initializer, key=lambda t: len(t.raw_data))
        data = bytes(tensor.raw_data)
        secret.write_bytes(data)
        if inside == "node":
            name = tensor.name
            graph.initializer.remove(tensor)
            tensor = onnx.helper.make_tensor(name, tensor.data_type, tensor.dims, data, raw=True)
            node = onnx.helper.make_node("Constant", [], [name], value=tensor)
            graph.node.insert(0, node)
            tensor = graph.node[0].attribute[0].t
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        where = {"location": str(secret)[1:], "offset": "0", "length": str(len(data))}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=value)

    bundle = forged(vision=elsewhere)
    monkeypatch.chdir("/")  # as systemd starts programs
    with pytest.raises(BundleError, match=r"cannot load vision\.onnx"):
        Planner.load(bundle, family="maze")


def _wrapped(name, operator, **attributes):
    """Return a change that puts an operator behind an output of a graph."""

    def change(graph):
        for node in graph.node:
            for i, output in enumerate(node.output):
                if output == name:
                    node.output[i] = "before"
        graph.node.append(onnx.helper.make_node(operator, ["before"], [name], **attributes))

    return change


def _whole_tokens_of_32_bits(graph):
    _wrapped("tokens", "Cast", to=onnx.TensorProto.INT32)(graph)
    [value] = (v for v in graph.output if v.name == "tokens")
    value.type.tensor_type.elem_type = onnx.TensorProto.INT32


def _caches_of_any_size(graph):
    for value in [*graph.input, *graph.output]:
        if value.name.startswith(("past_", "present_")):
            value.type.tensor_type.shape.dim[3].dim_param = "D"


def _pixels_of_16_bits(graph):
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == "pixel_values":
                node.input[i] = "wide"
    graph.node.insert(
        0, onnx.helper.make_node("Cast", ["pixel_values"], ["wide"], to=onnx.TensorProto.FLOAT)
    )
    [value] = (v for v in graph.input if v.name == "pixel_values")
    value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


@pytest.mark.parametrize(
    "graphs",
    [
        {"decoder": _whole_tokens_of_32_bits},
        {"decoder": _caches_of_any_size},
        {"vision": _pixels_of_16_bits},
    ],
    ids=["tokens", "caches", "pixels"],
)
def test_graphs_with_other_inputs_or_outputs_are_refused(forged, graphs):
    with pytest.raises(BundleError, match="do not fit its manifest"):
        Planner.load(forged(**graphs), family="maze")


def test_tokens_that_are_none_are_refused(forged):
    with pytest.raises(InferenceError, match="names tokens that are none"):
        Planner.load(forged(decoder=_wrapped("tokens", "Neg")), family="maze").plan(BLACK)


def test_a_graph_that_fails_when_it_runs_is_one_line(forged):
    def change(graph):
        [value] = (v for v in graph.output if v.name == "image_embeds")
        count = value.type.tensor_type.shape.dim[0].dim_value
        graph.initializer.append(onnx.numpy_helper.from_array(np.full(count, 9999), "places"))
        _wrapped("image_embeds", "Identity")(graph)
        graph.node[-1].CopyFrom(
            onnx.helper.make_node("Gather", ["before", "places"], ["image_embeds"], axis=0)
        )

    planner = Planner.load(forged(vision=change), family="maze")
    with pytest.raises(InferenceError, match="ONNX Runtime cannot run the graphs") as caught:
        planner.plan(BLACK)
    assert "\n" not in str(caught.value)


def test_goldens_that_are_no_pictures_are_named(forged):
    large = io.BytesIO()
    Image.new("1", (70_000, 2)).save(large, "PNG")
    for data in (b"no picture", large.getvalue()):
        path = forged(**{"0000": data})
        bundle = read_bundle(path)
        with pytest.raises(BundleError, match=r"goldens/0000\.png in .* cannot be read"):
            check_goldens(bundle, OrtEngine(bundle, 1))
        shutil.rmtree(path)


def test_an_engine_whose_numbers_overflow_does_not_pass_the_goldens(forged):
    bundle = read_bundle(forged(decoder=_wrapped("total", "Log")))
    engine = OrtEngine(bundle, 1)
    # The logarithm of a negative sum is no number.
    with pytest.raises(GoldenError, match=r"it does not answer: .*not finite"):
        check_goldens(bundle, engine)


def test_the_cache_of_a_bundle_is_bounded(restless_bundle, tmp_path):
    path = tmp_path / "large"
    shutil.copytree(restless_bundle, path)
    manifest = parse_manifest((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_bytes(manifest_bytes(replace(manifest, cache_length=200_000)))
    with pytest.raises(BundleError, match="cache_length"):
        read_bundle(path)
