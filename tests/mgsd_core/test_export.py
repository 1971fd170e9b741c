from __future__ import annotations

import json
import re
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from mgsd_core import prompts  # noqa: E402
from mgsd_core.encoding import prompt_ids  # noqa: E402
from mgsd_core.export import ExportError, export_bundle  # noqa: E402
from mgsd_core.export.graphs import decoder_graph, vision_graph  # noqa: E402
from mgsd_core.export.reference import greedy_text, logit_difference  # noqa: E402
from mgsd_core.runtime import Planner  # noqa: E402
from mgsd_core.runtime.bundle import BundleError, read_bundle  # noqa: E402
from mgsd_core.runtime.ort_engine import OrtEngine  # noqa: E402
from sim import UnknownFamilyError  # noqa: E402

LAKE = {"families": ["frozenlake"], "levels": {"frozenlake": [3]}}

# Qwen's own layout: line breaks after each turn, and before what is said in it.
QWEN_TEMPLATE = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{%- for p in m.content -%}"
    "{%- if p.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else -%}{{ p.text }}{%- endif -%}{%- endfor -%}{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def untied(backbone):
    backbone.model.lm_head.weight = torch.nn.Parameter(backbone.model.lm_head.weight * 1.5 + 0.01)
    backbone.model.config.tie_word_embeddings = False
    return backbone


@pytest.mark.parametrize(
    ("sizes", "image_size", "change"),
    [
        ({"deepstack": (0,)}, 128, None),
        ({"deepstack": (0, 1, 2)}, 64, None),
        ({"deepstack": (0, 2), "heads": 4, "kv_heads": 2, "hidden": 128}, 128, None),
        ({"heads": 3, "kv_heads": 3}, 96, None),
        ({}, 128, untied),
    ],
)
def test_graphs_compute_transformers_logits(
    make_restless, make_picture, tmp_path, sizes, image_size, change
):
    backbone = make_restless(image_size=image_size, **sizes)
    if change is not None:
        change(backbone)
    bundle = read_bundle(export_bundle(backbone, tmp_path / "bundle", **LAKE))
    engine = OrtEngine(bundle, threads=1)
    random = np.random.default_rng(0)
    for seed in range(3):
        response = random.integers(10, len(backbone.tokenizer), 20).tolist()
        picture = make_picture(seed, image_size)
        assert logit_difference(backbone, engine, "frozenlake", picture, response) < 1e-5


def test_place_embeddings_are_interpolated_as_transformers_does(make_restless, tmp_path):
    backbone = make_restless(image_size=128)
    tower = backbone.model.model.visual
    # A table of 5 × 5 places for a grid of 8 × 8 patches.
    tower.pos_embed = torch.nn.Embedding(25, tower.config.hidden_size)
    tower.num_grid_per_side = 5
    bundle = read_bundle(export_bundle(backbone, tmp_path / "bundle", **LAKE))
    assert bundle.manifest.image.grid == 8


def test_the_graphs_keep_the_contract(restless_backbone):
    spec = restless_backbone.image
    vision = vision_graph(restless_backbone.model, spec)
    decoder = decoder_graph(restless_backbone.model, 77)

    def shapes(values):
        return {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in values
        }

    assert shapes(vision.graph.input) == {"pixel_values": [64, 1536]}
    assert shapes(vision.graph.output) == {
        "image_embeds": [16, 96],
        "deepstack_embeds": [2, 16, 96],
    }
    cache = {f"{kind}_{i}": [1, 1, 77, 32] for i in range(3) for kind in ("key", "value")}
    assert shapes(decoder.graph.input) == {
        "input_ids": [1, "S"],
        "visual_embeds": [1, "S", 96],
        "deepstack_embeds": [1, 2, "S", 96],
        "position_ids": [3, 1, "S"],
        "write_index": [1],
        "attention_mask": [1, 1, "S", 77],
        "asked": ["N"],
        **{f"past_{name}": shape for name, shape in cache.items()},
    }
    vocabulary = len(restless_backbone.tokenizer)
    assert shapes(decoder.graph.output) == {
        "tokens": [1, "N"],
        "probabilities": [1, "N"],
        "total": [1, "N"],
        "logits": [1, "N", vocabulary],
        **{f"present_{name}": shape for name, shape in cache.items()},
    }
    for model in (vision, decoder):
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 24)]
        kinds = {node.op_type for node in model.graph.node}
        assert not kinds & {"NonZero", "GatherND", "Loop", "If"}
        assert not any(a.name == "is_causal" for n in model.graph.node for a in n.attribute)
        # Nothing of the machine that exported it.
        assert not any(n.doc_string or n.metadata_props for n in model.graph.node)
    # Tied weights are stored once.
    assert sum(np.prod(w.dims) == vocabulary * 96 for w in decoder.graph.initializer) == 1


# All that TensorRT 10.13 reads, of what we use.
PORTABLE = set(
    re.findall(
        r"\w+",
        "Add ArgMax Cast Concat Cos DequantizeLinear Div Equal Exp Gather Gelu Gemm Identity "
        "LayerNormalization MatMul Mul Reciprocal ReduceMax ReduceMean ReduceSum Reshape Shape "
        "Sigmoid Sin Softmax Split Sqrt Squeeze Sub Transpose Unsqueeze Where",
    )
)


@pytest.mark.parametrize(("precision", "opset"), [("fp32", 20), ("fp16", 20), ("int4-fp16", 21)])
def test_portable_graphs_hold_old_operators_only(restless_backbone, precision, opset):
    vision = vision_graph(restless_backbone.model, restless_backbone.image, precision, True)
    decoder = decoder_graph(restless_backbone.model, 77, (), precision, True)
    assert [o.version for o in decoder.opset_import] == [opset]
    for model in (vision, decoder):
        assert {node.op_type for node in model.graph.node} <= PORTABLE
    outputs = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in decoder.graph.output
    }
    assert outputs["present_key_0"] == [1, 1, "S", 32]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4", "int4-fp16"])
@pytest.mark.parametrize("portable", [False, True])
def test_every_precision_is_close_to_transformers(
    make_restless, make_picture, tmp_path, precision, portable
):
    # Weights as they come: those of a restless model are so large that fp16 has little left.
    backbone = make_restless(hidden=128, heads=4, kv_heads=2)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.ndim >= 2:
                parameter.div_(4)
    path = export_bundle(
        backbone,
        tmp_path / "bundle",
        precision=precision,
        portable=portable,
        least_agreement=None if precision == "fp32" else 0.0,
        **LAKE,
    )
    bundle = read_bundle(path)
    assert (bundle.manifest.precision, bundle.manifest.portable) == (precision, portable)
    engine = OrtEngine(bundle, threads=1)
    response = np.random.default_rng(0).integers(10, len(backbone.tokenizer), 20).tolist()
    difference = logit_difference(backbone, engine, "frozenlake", make_picture(0), response)
    least, most = {"fp32": (0, 1e-5), "fp16": (1e-6, 1e-2)}.get(precision, (1e-3, 0.3))
    assert least <= difference < most
    # Passes of several tokens say what passes of one do.
    ids = response[:9]
    positions = np.arange(9)[None]
    logits = engine.read_logits(ids, positions, start=0, asked=9).astype(np.float64)
    logits[:, backbone.suppressed_tokens()] = -np.inf
    at_once, sure = engine.read(ids, positions, start=0, asked=9)
    passes = [engine.read([t], positions[:, i, None], start=i) for i, t in enumerate(ids)]
    assert at_once == [token for (token,), _ in passes]
    np.testing.assert_allclose(sure, [s for _, (s,) in passes], rtol=0.02)
    np.testing.assert_allclose(sure, 1 / np.exp(logits - logits.max(-1)[:, None]).sum(-1), 1e-4)


def test_int4_weights_are_the_nearest_of_their_block(restless_backbone):
    """The rounding error of a value is at most half a step, but for what is cut off at the end."""
    import onnxruntime as ort
    from onnx import helper

    decoder = decoder_graph(restless_backbone.model, 77, (), "int4")
    layer = restless_backbone.model.model.language_model.layers[0].mlp.down_proj
    name = "layers.0.down.weight"
    node = next(n for n in decoder.graph.node if name in n.input)
    kept = {w.name: w for w in decoder.graph.initializer if w.name in node.input}
    value = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "weight", [], [value], initializer=kept.values())
    model = helper.make_model(graph, opset_imports=decoder.opset_import, ir_version=11)
    session = ort.InferenceSession(model.SerializeToString())
    found = session.run(None, {})[0]
    expected = layer.weight.detach().numpy().T
    scale = onnx.numpy_helper.to_array(kept[f"{name}.scale"])
    scale = np.repeat(scale, len(found) // len(scale), axis=0)
    error = np.abs(found - expected) / np.abs(scale)
    assert np.quantile(error, 0.95) <= 0.5 + 1e-4 and error.max() < 4
    steps = found / scale
    assert np.allclose(steps, steps.round(), atol=1e-4)
    assert steps.round().min() == -8 and 0 < steps.round().max() <= 7


def test_weights_beside_their_graph_are_the_same(make_restless, make_picture, tmp_path):
    backbone = make_restless()
    inside = export_bundle(backbone, tmp_path / "inside", **LAKE)
    beside = export_bundle(backbone, tmp_path / "beside", external_bytes=0, **LAKE)
    assert {"decoder.onnx.data", "vision.onnx.data"} <= set(read_bundle(beside).manifest.files)
    assert (beside / "decoder.onnx").stat().st_size < (inside / "decoder.onnx").stat().st_size / 10
    planners = [Planner.load(path, threads=1) for path in (inside, beside)]
    for seed in range(3):
        a, b = (planner.plan(make_picture(seed)).text for planner in planners)
        assert a == b
    data = beside / "decoder.onnx.data"
    whole = data.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", b"\1" + whole[1:], b""):
        data.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"decoder\.onnx\.data"):
            read_bundle(beside)


def test_answers_that_do_not_agree_well_enough_are_not_let_out(
    trained_backbone, lake_episodes, tmp_path
):
    goldens = [("frozenlake", episode.image) for episode in lake_episodes]
    export = partial(export_bundle, trained_backbone, tmp_path / "b", goldens=goldens, **LAKE)
    # What the weights alone do not say: transformers never goes right.
    right = [i for word, i in trained_backbone.tokenizer.get_vocab().items() if word in ("R", "ĠR")]
    mask = torch.zeros(len(trained_backbone.tokenizer))
    mask[right] = -1e9
    handle = trained_backbone.model.lm_head.register_forward_hook(lambda *args: args[2] + mask)
    try:
        with pytest.raises(ExportError, match=r"it gives \d+ of 16 golden plans as the tr"):
            export(precision="int4", least_agreement=1.0)
        assert list(tmp_path.iterdir()) == []
        manifest = read_bundle(export(precision="int4", least_agreement=0.0)).manifest
        assert manifest.least_agreement == 0.0
    finally:
        handle.remove()
    with pytest.raises(ExportError, match="in fp32 all answers must agree"):
        export(least_agreement=0.5, overwrite=True)
    with pytest.raises(ExportError, match="unknown precision 'fp8'; there are: fp32, fp16, int4"):
        export(precision="fp8", overwrite=True)


def test_the_same_weights_give_the_same_bytes(make_restless, tmp_path):
    first = export_bundle(make_restless(), tmp_path / "a", **LAKE)
    backbone = make_restless()
    # Batches leave padding and truncation behind in a tokenizer; a bundle must not have them.
    backbone.tokenizer(["a b c d e f", "b"], padding=True, truncation=True, max_length=3)
    second = export_bundle(backbone, tmp_path / "b", **LAKE)
    names = sorted(p.relative_to(first) for p in first.rglob("*"))
    assert names == sorted(p.relative_to(second) for p in second.rglob("*"))
    for name in names:
        if (first / name).is_file():
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_goldens_hold_transformers_answers(make_restless, make_picture, tmp_path):
    backbone = make_restless()
    pictures = [make_picture(1), make_picture(2, 200)]
    goldens = [("frozenlake", rgb) for rgb in pictures]
    bundle = read_bundle(export_bundle(backbone, tmp_path / "b", goldens=goldens, **LAKE))
    most = bundle.manifest.prompts["frozenlake"].max_new_tokens
    texts = [g.text for g in bundle.manifest.goldens]
    assert texts == [greedy_text(backbone, "frozenlake", rgb, most) for rgb in pictures]
    assert len(set(texts)) == 2


def test_a_half_precision_model_in_training_is_exported_and_left_alone(make_restless, tmp_path):
    backbone = make_restless()
    backbone.model.to(torch.bfloat16).train()
    bundle = read_bundle(export_bundle(backbone, tmp_path / "b", **LAKE))
    assert backbone.model.dtype is torch.bfloat16 and backbone.model.training
    backbone.model.float().eval()
    engine = OrtEngine(bundle, threads=1)
    rgb = np.zeros((128, 128, 3), np.uint8)
    assert logit_difference(backbone, engine, "frozenlake", rgb, [20, 21]) < 1e-5


def test_qwens_chat_layout(make_restless, make_picture, tmp_path):
    backbone = make_restless()
    backbone.tokenizer.chat_template = QWEN_TEMPLATE
    backbone.style = "full"
    path = export_bundle(backbone, tmp_path / "b", **LAKE)
    prompt = read_bundle(path).manifest.prompts["frozenlake"]
    assert prompt.prefix.startswith("<|im_start|>system\nYou plan for a robot")
    assert prompt.prefix.endswith("</answer>'.<|vision_start|>")
    assert prompt.suffix == "<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    planner = Planner.load(path, threads=1)
    for seed in range(5):
        rgb = make_picture(seed)
        expected = greedy_text(backbone, "frozenlake", rgb, prompt.max_new_tokens)
        assert planner.plan(rgb).text == expected


def test_responses_of_every_level_fit(restless_backbone, tmp_path):
    path = export_bundle(
        restless_backbone, tmp_path / "b", families=["frozenlake"], levels={"frozenlake": [3, 5]}
    )
    manifest = read_bundle(path).manifest
    from sim import sample, solve

    ids = restless_backbone.tokenizer(
        [
            prompts.response_text(state, solve(state))
            for state in (
                sample("frozenlake", level, 10_000 + i) for level in (3, 5) for i in range(50)
            )
        ]
    ).input_ids
    prompt = prompt_ids(restless_backbone, prompts.student_prompt("frozenlake", "brief"))
    longest = manifest.prompts["frozenlake"].max_new_tokens
    assert max(map(len, ids)) <= longest <= 2 * max(map(len, ids))
    assert manifest.cache_length == len(prompt) + longest


def test_a_bundle_that_answers_otherwise_is_not_let_out(make_restless, tmp_path):
    backbone = make_restless()
    # What the weights alone do not say: transformers' answers now come from something else.
    handle = backbone.model.lm_head.register_forward_hook(lambda *args: args[2] * 1.001)
    with pytest.raises(ExportError, match="other logits than the model"):
        export_bundle(backbone, tmp_path / "b", **LAKE)
    handle.remove()
    with torch.no_grad():
        backbone.model.model.language_model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="logits"):
        export_bundle(backbone, tmp_path / "b", **LAKE)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced_unasked(restless_backbone, make_restless, tmp_path):
    path = export_bundle(restless_backbone, tmp_path / "b", **LAKE)
    before = read_bundle(path).digest
    other = make_restless(seed=2)
    with pytest.raises(FileExistsError, match="exists"):
        export_bundle(other, path, **LAKE)
    assert read_bundle(path).digest == before
    export_bundle(other, path, overwrite=True, **LAKE)
    assert read_bundle(path).digest != before
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="is no bundle"):
        export_bundle(other, precious, overwrite=True, **LAKE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "precious"]


def test_requests_that_make_no_sense_are_refused(restless_backbone, make_picture, tmp_path):
    def export(**arguments):
        export_bundle(restless_backbone, tmp_path / "b", **{**LAKE, **arguments})

    with pytest.raises(UnknownFamilyError, match="unknown family 'lake'"):
        export(families=["lake"])
    with pytest.raises(ExportError, match="at least one family"):
        export(families=[])
    with pytest.raises(ExportError, match="no levels are given for maze"):
        export(families=["maze"])
    with pytest.raises(ExportError, match="golden picture is for maze"):
        export(goldens=[("maze", make_picture(0))])
    with pytest.raises(ValueError, match="uint8"):
        export(goldens=[("frozenlake", make_picture(0) / 255)])
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_unknown_are_refused(make_restless, tmp_path):
    backbone = make_restless()
    backbone.model.config.text_config.hidden_act = "gelu"
    with pytest.raises(ExportError, match="text activation is 'gelu'"):
        export_bundle(backbone, tmp_path / "b", **LAKE)
    backbone.model = torch.nn.Linear(1, 1)
    with pytest.raises(ExportError, match="only a Qwen3-VL"):
        export_bundle(backbone, tmp_path / "b", **LAKE)


def test_the_command_exports_for_the_data_it_is_given(
    restless_backbone, tmp_path, capsys, monkeypatch
):
    from mgsd_core.cli import main
    from mgsd_core.model import save_backbone
    from sim.dataset import write_dataset
    from sim.request import DatasetRequest

    model = tmp_path / "model"
    model.mkdir()
    save_backbone(restless_backbone, model)
    write_dataset(tmp_path / "data", DatasetRequest([("frozenlake", 3)], "test", 0, 3, 128))
    command = ["export", "--model", str(model), "--data", str(tmp_path / "data")]
    command += ["--out", str(tmp_path / "bundle"), "--goldens", "2", "--name", "lakes"]
    assert main(command) == 0
    summary = json.loads(capsys.readouterr().out)
    bundle = read_bundle(tmp_path / "bundle")
    assert summary["digest"] == bundle.digest
    assert summary["levels"] == {"frozenlake": [3]}
    assert bundle.manifest.families == ("frozenlake",) and bundle.manifest.name == "lakes"
    assert len(bundle.manifest.goldens) == 2

    assert main(command) == 2
    assert "exists; choose another directory" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert main(["export", "--model", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "cannot load a Qwen3-VL model" in error and len(error.splitlines()) == 1
