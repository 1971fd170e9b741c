"""NVIDIA's real builder, which needs no GPU, and the cache of what it built."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("tensorrt_rtx")

import onnxruntime as ort  # noqa: E402

from mgsd_core.export import export_bundle  # noqa: E402
from mgsd_core.installed import shipped_bundle  # noqa: E402
from mgsd_core.runtime import Planner, backends  # noqa: E402
from mgsd_core.runtime.backends import choose_engine  # noqa: E402
from mgsd_core.runtime.bundle import (  # noqa: E402
    DECODER,
    PRECISIONS,
    VISION,
    Bundle,
    BundleError,
    read_bundle,
)
from mgsd_core.runtime.engine_cache import (  # noqa: E402
    ENGINES,
    ENTRY,
    Check,
    default_cache,
    locked,
    open_cache,
    read_blob,
    read_engines,
    read_entry,
    write_blob,
    write_entry,
)
from mgsd_core.runtime.engines import find_engine, load_engine, shown  # noqa: E402
from mgsd_core.runtime.goldens import GoldenError  # noqa: E402
from mgsd_core.runtime.tensorrt_build import (  # noqa: E402
    add_profiles,
    build,
    decoder_lengths,
    engine_key,
    is_checked,
    parse_graph,
    provide_engine,
)
from mgsd_core.runtime.tensorrt_library import (  # noqa: E402
    TENSORRT,
    TENSORRT_RTX,
    EngineError,
    Gpu,
    Library,
    find_gpu,
    load_library,
    may_have_gpu,
)
from mgsd_core.runtime.wide_attention import attend_in_fp32  # noqa: E402

LAKE = {"families": ["frozenlake"], "levels": {"frozenlake": [3]}}
ORIN, THOR = Gpu("Orin", "8.7"), Gpu("NVIDIA Thor", "11.0")

no_gpu_here = pytest.mark.skipif(may_have_gpu(), reason="about machines without a GPU")


@pytest.fixture(scope="session")
def library() -> Library:
    return load_library(TENSORRT_RTX)


@pytest.fixture(scope="session")
def bundle_of(restless_backbone, tmp_path_factory):
    """Bundles of an untrained nano, by precision and portability; every answer is good enough."""
    made: dict[tuple[str, bool], Bundle] = {}

    def bundle(precision: str = "fp32", portable: bool = False) -> Bundle:
        if (precision, portable) not in made:
            path = tmp_path_factory.mktemp("bundle") / "bundle"
            least = None if precision == "fp32" else 0.0
            export_bundle(
                restless_backbone,
                path,
                **LAKE,
                precision=precision,
                portable=portable,
                least_agreement=least,
            )
            made[precision, portable] = read_bundle(path)
        return made[precision, portable]

    return bundle


@pytest.fixture
def cache(tmp_path):
    return open_cache(tmp_path / "engines")


@pytest.fixture
def filled(cache, bundle_of, library):
    """A cache with an entry for `bundle_of()` whose engines are but a few bytes."""
    key = engine_key(bundle_of().manifest, library, None)
    engines = {VISION: b"eyes" * 99, DECODER: b"mouth" * 99}
    return cache, write_entry(cache, key, engines, "graph", 539, None)


def with_decoder(bundle: Bundle, change) -> Bundle:
    """The bundle with another decoder, as if its digests were right."""
    model = onnx.load_model_from_string(bytes(bundle.files[DECODER]))
    change(model)
    return dataclasses.replace(
        bundle, files={**bundle.files, DECODER: model.SerializeToString(deterministic=True)}
    )


# --- what the builder takes ---------------------------------------------------------------------


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_graph_builds(bundle_of, library, cache, precision, portable):
    bundle = bundle_of(precision, portable)
    entry, was_there = provide_engine(bundle, library, None, cache)
    assert not was_there and entry.checked is None and entry.attention == "graph"
    assert entry.key.library == TENSORRT_RTX and entry.key.version == library.version
    assert set(entry.key.graphs) == {VISION, DECODER}
    engines = read_engines(cache, entry)
    for graph in (VISION, DECODER):
        # All weights are inside, and kernels besides.
        assert len(engines[graph]) > bundle.graph_bytes(graph)
    assert entry.vocabulary == outputs(bundle)["logits"][-1]


def outputs(bundle: Bundle) -> dict[str, list[int]]:
    model = onnx.load_model_from_string(bytes(bundle.files[DECODER]))
    return {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output}


@pytest.mark.parametrize("portable", [False, True])
def test_the_network_is_what_the_contract_says(bundle_of, library, portable):
    bundle, trt = bundle_of("fp16", portable), library.module
    lengths = decoder_lengths(bundle.manifest)
    prompt = bundle.manifest.prompts["frozenlake"]
    assert lengths.most == bundle.manifest.cache_length
    assert lengths.usual == lengths.most - prompt.max_new_tokens
    builder = trt.Builder(library.logger)
    network, _parser = parse_graph(bundle, library, builder, DECODER, "graph")
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    inputs = {(t := network.get_input(i)).name: t for i in range(network.num_inputs)}
    results = {(t := network.get_output(i)).name: t for i in range(network.num_outputs)}
    most = lengths.most
    heads = outputs(bundle)["present_key_0"][1]
    assert tuple(inputs["past_key_0"].shape) == (1, heads, most, 32)
    assert inputs["past_key_0"].dtype == trt.float16 and inputs["attention_mask"].dtype == trt.bool
    assert tuple(inputs["attention_mask"].shape) == (1, 1, -1, -1 if portable else most)
    assert ("write_index" in inputs) != portable
    assert results["tokens"].dtype == trt.int64
    assert results["probabilities"].dtype == results["total"].dtype == trt.float32
    config = builder.create_builder_config()
    add_profiles(builder, config, network, lengths)
    assert config.num_optimization_profiles == 2


def test_attention_may_be_done_in_steps(bundle_of, library):
    trt = library.module
    for graph in (VISION, DECODER):
        builder = trt.Builder(library.logger)
        network, _parser = parse_graph(bundle_of(), library, builder, graph, "graph")
        found = 0
        for i in range(network.num_layers):
            layer = network.get_layer(i)
            if layer.type == trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = trt.IAttentionInputLayer
                assert layer.attention.decomposable
                found += 1
        assert found == 3


def test_weights_beside_the_graph_are_taken_from_memory(
    restless_backbone, bundle_of, library, cache, tmp_path
):
    path = export_bundle(restless_backbone, tmp_path / "bundle", **LAKE, external_bytes=0)
    bundle = read_bundle(path)
    for name in bundle.manifest.files:
        (path / name).unlink()  # what was checked is all that is used
    key = engine_key(bundle.manifest, library, None)
    assert set(key.graphs) == {VISION, DECODER, f"{VISION}.data", f"{DECODER}.data"}
    built = build(bundle, key, library, cache)
    inside = build(bundle_of(), key, library, cache)
    for graph, engine in built.engines.items():
        assert len(engine) == pytest.approx(len(inside.engines[graph]), rel=0.02)


def test_weights_that_lie_elsewhere_are_refused(restless_backbone, library, tmp_path):
    path = export_bundle(restless_backbone, tmp_path / "bundle", **LAKE, external_bytes=0)
    bundle = read_bundle(path)
    builder = library.module.Builder(library.logger)
    for name, value in [
        ("offset", "-4096"),
        ("offset", str(1 << 60)),
        ("length", "0"),
        ("location", "../weights"),
        ("length", "much"),
    ]:

        def move(model, name=name, value=value):
            tensor = next(t for t in model.graph.initializer if t.external_data)
            next(e for e in tensor.external_data if e.key == name).value = value

        with pytest.raises(EngineError, match=r"decoder\.onnx in .* is damaged"):
            parse_graph(with_decoder(bundle, move), library, builder, DECODER, "graph")


def test_a_graph_that_is_not_read_is_named_in_one_line(bundle_of, library, cache):
    def ask_for_softmax(model):
        for node in model.graph.node:
            if node.op_type == "Attention":
                node.attribute.append(onnx.helper.make_attribute("softmax_precision", 1))

    bundle = with_decoder(bundle_of("fp16"), ask_for_softmax)
    with pytest.raises(EngineError, match=r"does not read decoder\.onnx: .*softmax") as caught:
        provide_engine(bundle, library, None, cache)
    assert len(str(caught.value).splitlines()) == 1
    assert [p.name for p in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize("inside", ["graph", "node"])
def test_weights_in_files_that_are_not_listed_are_not_opened(
    bundle_of, library, cache, tmp_path, monkeypatch, inside
):
    def take_elsewhere(model):
        tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        data = bytes(tensor.raw_data)
        (tmp_path / "secret.bin").write_bytes(data)
        if inside == "node":
            model.graph.initializer.remove(tensor)
            node = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
            model.graph.node.insert(0, node)
            tensor = model.graph.node[0].attribute[0].t
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        where = {"location": "secret.bin", "offset": "0", "length": str(len(data))}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=value)

    bundle = with_decoder(bundle_of(), take_elsewhere)
    monkeypatch.chdir(tmp_path)
    says = "weights that are not there" if inside == "graph" else "weights elsewhere"
    with pytest.raises(EngineError, match=says):
        provide_engine(bundle, library, None, cache)


# --- attention in fp32 --------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [VISION, DECODER])
def test_attention_in_fp32_computes_the_same(bundle_of, graph):
    model = onnx.load_model_from_string(bytes(bundle_of("fp16").files[graph]))
    feeds = noise(model)
    expected = run(model, feeds)
    attend_in_fp32(model)
    onnx.checker.check_model(model, full_check=True)
    found = run(model, feeds)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        if name not in ("tokens", "total"):
            assert np.abs(found[name] - values).max() < 4e-3 * max(1, np.abs(values).max()), name


def noise(model) -> dict[str, np.ndarray]:
    """Inputs for three new tokens after five."""
    random, sides, feeds = np.random.default_rng(0), {"S": 3, "N": 2}, {}
    for i in model.graph.input:
        kind = onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
        shape = [d.dim_value or sides[d.dim_param] for d in i.type.tensor_type.shape.dim]
        feeds[i.name] = random.normal(size=shape).astype(kind)
    if "input_ids" in feeds:
        feeds["input_ids"][:] = [[11, 12, 13]]
        feeds["position_ids"][:] = [5, 6, 7]
        feeds["asked"][:] = [1, 2]
        feeds["write_index"][:] = 5
        length = feeds["attention_mask"].shape[-1]
        feeds["attention_mask"][0, 0] = np.tri(length, dtype=bool)[5:8]
    return feeds


def run(model, feeds) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


class Answers:
    """A checker whose first engines answer wrongly."""

    def __init__(self, bundle: Bundle, wrong: int) -> None:
        self.bundle, self.wrong, self.asked = bundle, wrong, 0

    def __call__(self, engines, vocabulary) -> Check:
        assert set(engines) == {VISION, DECODER} and vocabulary > 0
        self.asked += 1
        if self.asked <= self.wrong:
            raise GoldenError("it gives 0 of 1 golden plans as the trained model does")
        return Check(self.bundle.digest, THOR.name, 1, 1, 1)


def test_wrong_answers_in_fp16_are_tried_again_with_attention_in_fp32(bundle_of, library, cache):
    bundle = bundle_of("fp16")
    entry, _ = provide_engine(bundle, library, THOR, cache, checker=Answers(bundle, 1))
    assert entry.attention == "fp32" and entry.checked.plans == 1
    assert read_entry(cache, entry.key.digest) == entry
    assert is_checked(entry, bundle, THOR) and not is_checked(entry, bundle, ORIN)


def test_wrong_answers_are_refused_and_nothing_is_kept(bundle_of, library, cache):
    for precision, tried in [("fp16", 2), ("fp32", 1)]:
        bundle = bundle_of(precision)
        answers = Answers(bundle, 9)
        with pytest.raises(EngineError, match="is refused: it gives 0 of 1 golden plans"):
            provide_engine(bundle, library, THOR, cache, checker=answers)
        assert answers.asked == tried
        assert [p.name for p in cache.iterdir()] == [".lock"]


def test_an_unchecked_engine_is_checked_where_there_is_a_gpu(bundle_of, filled, library):
    cache, entry = filled
    bundle, answers = bundle_of(), Answers(bundle_of(), 0)
    for _ in range(2):  # once is enough
        found, was_there = provide_engine(bundle, library, THOR, cache, checker=answers)
        assert was_there and answers.asked == 1
        assert found == dataclasses.replace(entry, checked=answers(*[{VISION: 0, DECODER: 0}, 1]))
        answers.asked = 1
    assert read_entry(cache, entry.key.digest).checked == found.checked


# --- the command --------------------------------------------------------------------------------


def build_engine(capsys, *arguments) -> tuple[int, dict | None, str]:
    from mgsd_core.cli import main

    status = main(["build-engine", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


@no_gpu_here
def test_the_command_builds_the_shipped_model_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status, said, _ = build_engine(capsys)
    assert status == 0
    assert said["library"] == TENSORRT_RTX and not said["cached"] and said["checked"] is None
    assert said["digest"] == read_bundle(shipped_bundle()).digest
    entry = read_entry(default_cache(), said["engine"].split("/")[-1])
    assert said["bytes"] == sum(file.bytes for file in entry.files.values())
    assert stat.S_IMODE(default_cache().stat().st_mode) == 0o700
    again = build_engine(capsys)[1]
    assert again["cached"] and again["engine"] == said["engine"]
    assert read_entry(default_cache(), entry.key.digest) == entry
    assert not build_engine(capsys, "--rebuild", "--workspace", 0.5)[1]["cached"]


@no_gpu_here
def test_the_command_refuses_bad_input_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "file").touch()
    for arguments, text in [
        (("--bundle", tmp_path), "is no bundle"),
        (("--library", "onnx"), "unknown library 'onnx'; there are: auto, tensorrt, tensorrt-rtx"),
        (("--workspace", 0), "--workspace must be above 0"),
        (("--workspace", "nan"), "--workspace must be above 0"),
        (("--workspace", "inf"), "--workspace must be above 0"),
        (("--cache", tmp_path / "open"), "others may write to"),
        (("--cache", tmp_path / "file"), "File exists"),
    ]:
        status, said, error = build_engine(capsys, *arguments)
        assert (status, said) == (2, None)
        assert error.startswith("mgsd build-engine: ") and len(error.splitlines()) == 1
        assert text in error
    monkeypatch.setattr(
        "mgsd_core.runtime.tensorrt_library.LIBRARIES", {TENSORRT: "no_such", TENSORRT_RTX: "no"}
    )
    load_library.cache_clear()
    assert "neither tensorrt nor tensorrt-rtx is installed" in build_engine(capsys)[2]
    assert "tensorrt is not installed" in build_engine(capsys, "--library", TENSORRT)[2]
    assert not any(tmp_path.glob("xdg/**/engine.json"))


# --- the cache ----------------------------------------------------------------------------------


def test_a_changed_byte_is_found_and_its_file_named(filled):
    cache, entry = filled
    random = np.random.default_rng(0)
    path = cache / entry.key.digest
    for name in (ENTRY, *ENGINES.values()):
        intact = (path / name).read_bytes()
        for place in random.integers(0, len(intact), 40):
            damaged = bytearray(intact)
            damaged[place] ^= 1 << int(random.integers(8))
            (path / name).write_bytes(damaged)
            with pytest.raises(BundleError, match=name.replace(".", r"\.")):
                read_engines(cache, read_entry(cache, entry.key.digest))
        for other in (b"", intact[:-1], intact + b"\0"):
            (path / name).write_bytes(other)
            with pytest.raises(BundleError, match=name.replace(".", r"\.")):
                read_engines(cache, read_entry(cache, entry.key.digest))
        (path / name).write_bytes(intact)
    assert set(read_engines(cache, read_entry(cache, entry.key.digest))) == {VISION, DECODER}


@pytest.mark.parametrize("name", [ENTRY, *ENGINES.values()])
def test_links_and_missing_files_are_refused(filled, tmp_path, name):
    cache, entry = filled
    path = cache / entry.key.digest
    (path / name).rename(tmp_path / name)
    with pytest.raises(BundleError, match=f"cannot read {name} in .*: No such file"):
        read_engines(cache, read_entry(cache, entry.key.digest))
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(BundleError, match=f"{name} in .* is a symbolic link"):
        read_engines(cache, read_entry(cache, entry.key.digest))


def test_a_linked_entry_is_refused(filled, tmp_path):
    cache, entry = filled
    path = cache / entry.key.digest
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match="is a symbolic link"):
        read_entry(cache, entry.key.digest)


@pytest.mark.parametrize("version", [0, 2, "1", True, None])
def test_another_schema_version_is_refused(filled, version):
    cache, entry = filled
    path = cache / entry.key.digest / ENTRY
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "schema_version": version}))
    with pytest.raises(EngineError, match=r"has schema version .*; this program reads version 1"):
        read_entry(cache, entry.key.digest)


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", "[" * 100_000, '{"schema_version": 1}'])
def test_what_is_no_entry_is_refused(filled, text):
    cache, entry = filled
    (cache / entry.key.digest / ENTRY).write_text(text[:60_000])
    with pytest.raises(EngineError, match=r"engine\.json in .* is damaged"):
        read_entry(cache, entry.key.digest)


def test_an_entry_under_another_name_is_refused(filled):
    cache, entry = filled
    (cache / entry.key.digest).rename(cache / ("0" * 64))
    with pytest.raises(EngineError, match="is damaged"):
        read_entry(cache, "0" * 64)


def test_only_a_private_cache_is_used(filled, bundle_of, library):
    cache, _ = filled
    for mode in (0o777, 0o770, 0o702):
        cache.chmod(mode)
        for use in (
            lambda: open_cache(cache),
            lambda: find_engine(bundle_of(), library, None, cache),
        ):
            with pytest.raises(EngineError, match="others may write to"):
                use()
    cache.chmod(0o755)  # to be read is no harm
    assert find_engine(bundle_of(), library, None, cache)
    if os.geteuid() == 0:
        os.chown(cache, 1, -1)
        with pytest.raises(EngineError, match="belongs to another user"):
            open_cache(cache)


def test_the_cache_is_where_the_user_keeps_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache() == tmp_path / ".cache/mgsd_ros/engines"
    assert shown(default_cache()) == "~/.cache/mgsd_ros/engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # does not count
    assert default_cache() == tmp_path / ".cache/mgsd_ros/engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(default_cache()) == "/somewhere/mgsd_ros/engines"


def test_a_damaged_engine_is_built_anew(bundle_of, filled, library, capsys):
    cache, entry = filled
    (cache / entry.key.digest / ENGINES[DECODER]).write_bytes(b"!")
    rebuilt, was_there = provide_engine(bundle_of(), library, None, cache)
    assert not was_there and rebuilt.files != entry.files
    assert "building it anew: decoder.engine in" in capsys.readouterr().err
    assert read_engines(cache, read_entry(cache, rebuilt.key.digest))
    assert {p.name for p in cache.iterdir()} == {".lock", rebuilt.key.digest}


def test_an_interrupted_build_leaves_nothing(bundle_of, library, cache):
    def interrupt(engines, vocabulary):
        raise KeyboardInterrupt

    (cache / ".building-killed").mkdir()  # by an earlier one that was killed
    with pytest.raises(KeyboardInterrupt):
        provide_engine(bundle_of(), library, THOR, cache, checker=interrupt)
    assert [p.name for p in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize("at", [0, 5])  # while a graph is read, while it is built
def test_ctrl_c_ends_a_build(bundle_of, library, cache, monkeypatch, at):
    """It is pressed in a callback of the library's, where an exception would be lost."""
    messages = []

    def press(severity, message):
        messages.append(message)
        if len(messages) == at + 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(library.logger, "log", press)
    with pytest.raises(KeyboardInterrupt):
        provide_engine(bundle_of(), library, None, cache)
    assert [p.name for p in cache.iterdir()] == [".lock"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_entry_that_cannot_be_written_leaves_the_old_one(filled, monkeypatch):
    cache, entry = filled

    def full(path, data):
        raise OSError("no space left on device")

    monkeypatch.setattr("mgsd_core.runtime.engine_cache.write_file", full)
    with pytest.raises(OSError, match="no space"):
        write_entry(cache, entry.key, {VISION: b"1", DECODER: b"2"}, "graph", 539, None)
    assert read_entry(cache, entry.key.digest) == entry
    assert {p.name for p in cache.iterdir()} == {entry.key.digest}


def test_builders_wait_for_each_other(cache, capsys):
    order, inside = [], threading.Event()

    def second():
        inside.wait()
        with locked(cache):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked(cache):
        inside.set()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "another process works in" in capsys.readouterr().err


def test_blobs_are_what_was_written_or_nothing(tmp_path):
    path = tmp_path / "blob"
    assert read_blob(path) == b""
    for content in (b"", b"kernels" * 99):
        write_blob(path, content)
        assert read_blob(path) == content
    data = path.read_bytes()
    for damaged in (data[:-1], data[:5], data + b"\0", b"\0" + data[1:]):
        path.write_bytes(damaged)
        assert read_blob(path) == b""


# --- which engine is whose ----------------------------------------------------------------------


def test_keys_tell_apart_what_matters(bundle_of, library):
    manifest = bundle_of().manifest
    tensorrt = dataclasses.replace(library, name=TENSORRT)
    keys = [
        engine_key(manifest, library, None),
        engine_key(manifest, library, Gpu("RTX 2080", "7.5")),
        engine_key(manifest, dataclasses.replace(library, version="1.8"), None),
        engine_key(manifest, tensorrt, THOR),
        engine_key(manifest, tensorrt, ORIN),
        engine_key(bundle_of("fp16").manifest, library, None),
        engine_key(bundle_of("fp32", True).manifest, library, None),
    ]
    assert len({key.digest for key in keys}) == len(keys)
    # One engine of TensorRT-RTX is for all newer GPUs, wherever it was built.
    assert engine_key(manifest, library, ORIN) == keys[0]
    with pytest.raises(EngineError, match="there is none here"):
        engine_key(manifest, tensorrt, None)


def test_an_engine_of_another_version_is_refused_and_both_are_named(bundle_of, filled, library):
    cache, entry = filled
    assert find_engine(bundle_of(), library, None, cache) == entry
    newer = dataclasses.replace(library, version="2.0.0.1")
    with pytest.raises(EngineError) as caught:
        find_engine(bundle_of(), newer, None, cache)
    assert f"tensorrt-rtx {library.version}" in str(caught.value)
    assert "tensorrt-rtx 2.0.0.1" in str(caught.value)


def test_an_engine_for_another_gpu_is_refused_and_both_are_named(bundle_of, cache, library):
    tensorrt = dataclasses.replace(library, name=TENSORRT)
    key = engine_key(bundle_of().manifest, tensorrt, ORIN)
    write_entry(cache, key, {VISION: b"1", DECODER: b"2"}, "graph", 539, None)
    with pytest.raises(EngineError, match=r"built for tensorrt .* on Orin, and here is .* Thor"):
        find_engine(bundle_of(), tensorrt, THOR, cache)
    with pytest.raises(EngineError, match="no tensorrt engine for this bundle in"):
        find_engine(bundle_of("fp16"), tensorrt, THOR, cache)


# --- planners -----------------------------------------------------------------------------------


@no_gpu_here
def test_without_a_gpu_planners_run_on_the_cpu_and_say_why(bundle_of):
    planner = Planner.load(bundle_of().path)
    assert planner.backend == "onnxruntime-cpu"
    assert planner.backend_reason == "onnxruntime-cpu: there is no NVIDIA GPU here"
    planner = Planner.load(bundle_of().path, "onnxruntime-cpu")
    assert planner.backend_reason == "onnxruntime-cpu: as asked for"
    with pytest.raises(BundleError, match="tensorrt-rtx cannot be had here: there is no NVIDIA"):
        Planner.load(bundle_of().path, "tensorrt-rtx")


@no_gpu_here
def test_planners_say_what_is_missing(bundle_of, filled, library, tmp_path, monkeypatch):
    """As on a machine with a GPU, up to the first call of CUDA, which fails here."""
    cache, _ = filled
    for module in (backends, sys.modules[load_engine.__module__], sys.modules[find_gpu.__module__]):
        monkeypatch.setattr(module, "may_have_gpu", lambda: True)
    monkeypatch.setattr(backends, "installed_libraries", lambda: ())
    assert "neither tensorrt nor" in choose_engine(bundle_of(), "auto", 1).reason
    monkeypatch.setattr(backends, "installed_libraries", lambda: (TENSORRT_RTX,))
    empty = open_cache(tmp_path / "empty")
    for none in (tmp_path / "nowhere", empty):
        chosen = choose_engine(bundle_of(), "auto", 1, none)
        assert chosen.backend == "onnxruntime-cpu"
        assert chosen.reason == (
            f"onnxruntime-cpu: no tensorrt-rtx engine for this bundle in {none}; "
            "build one with mgsd build-engine"
        )
        with pytest.raises(BundleError, match="tensorrt-rtx cannot be had here: no tensorrt-rtx"):
            choose_engine(bundle_of(), "tensorrt-rtx", 1, none)
    assert "CUDA: cudaGetDeviceCount: " in choose_engine(bundle_of(), "auto", 1, cache).reason
    with pytest.raises(BundleError, match="tensorrt cannot be had here: tensorrt is not installed"):
        choose_engine(bundle_of(), "tensorrt", 1, cache)


@no_gpu_here
def test_without_a_gpu_nothing_of_nvidias_is_imported():
    code = (
        "import sys; from mgsd_core.runtime import Planner; planner = Planner.load();"
        "print(planner.backend, sorted({m.split('.')[0] for m in sys.modules} &"
        "{'torch', 'transformers', 'rclpy', 'tensorrt', 'tensorrt_rtx', 'cuda', 'onnx'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "onnxruntime-cpu []\n"
