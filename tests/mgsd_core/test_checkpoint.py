"""Other people's checkpoints, loaded and asked by transformers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from small_llava import write_small_llava

from mgsd_core.cli import main
from mgsd_core.evaluation.results import read_results
from mgsd_core.prompts import student_prompt, symbolic_prompt
from sim.dataset import iter_episodes, write_dataset
from sim.request import DatasetRequest


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_dataset(path, DatasetRequest([("frozenlake", 3), ("maze", 3)], "test", seed=0, count=3))
    return path


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return write_small_llava(tmp_path_factory.mktemp("weights") / "llava")


def _evaluate(model, data, out, *more):
    arguments = ["evaluate", "--model", model, "--data", data, "--out", out, *more]
    return main([str(argument) for argument in arguments])


def test_a_checkpoint_is_told_picture_and_prompt(llava, data, tmp_path):
    options = ("--max-tokens", 12, "--picture-size", 128)
    assert _evaluate(llava, data, tmp_path, "--batch", 4, *options) == 0
    results = read_results(tmp_path)
    assert results.report["picture_size"] == 128
    assert results.report["prompts"]["style"] == "full"
    said = {s: [r.text for r in records] for s, records in results.records.items()}
    episodes = list(iter_episodes(data, "test"))
    assert said["image"] == [
        _generated(llava, student_prompt(e.state.family, "full"), np.asarray(e.image))
        for e in episodes
    ]
    assert said["text"] == [
        _generated(llava, symbolic_prompt(e.state, "full"), None) for e in episodes
    ]
    assert len(set(said["image"])) > 1
    # One by one it says the same: padding changes nothing.
    assert _evaluate(llava, data, tmp_path / "one", "--batch", 1, "--input", "image", *options) == 0
    assert [r.text for r in read_results(tmp_path / "one").records["image"]] == said["image"]


def test_a_token_that_texts_begin_with_is_not_written_twice(llava, data, tmp_path):
    # As in Llama's: the tokenizer puts it before every text, and the template writes it as well.
    begun = tmp_path / "begun"
    shutil.copytree(llava, begun)
    file = begun / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokens = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    start = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            "<|im_start|>": {
                "id": "<|im_start|>",
                "ids": [tokens["<|im_start|>"]],
                "tokens": ["<|im_start|>"],
            }
        },
    }
    file.write_text(json.dumps(tokenizer))
    file = begun / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bos_token": "<|im_start|>"}))
    options = ("--max-tokens", 12, "--picture-size", 128, "--limit", 1)
    for path in (llava, begun):
        assert _evaluate(path, data, tmp_path / f"{path.name}-out", *options) == 0
    said = [read_results(tmp_path / f"{path.name}-out").records for path in (llava, begun)]
    assert said[0] == said[1]


def test_a_template_without_a_system_turn_gets_it_with_the_question(llava, data, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(llava, bare)
    file = bare / "chat_template.jinja"
    refusal = (
        "{%- if messages[0].role == 'system' -%}{{ raise_exception('no system') }}{%- endif -%}"
    )
    file.write_text(refusal + file.read_text())
    out = tmp_path / "out"
    options = ("--max-tokens", 4, "--input", "text", "--limit", 1)
    assert _evaluate(bare, data, out, *options) == 0
    assert read_results(out).report["count"] == 2


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: (path / "chat_template.jinja").unlink(), "has no chat template"),
        (lambda path: (path / "model.safetensors").unlink(), "cannot load a vision-language model"),
        (lambda path: (path / "model.safetensors").write_bytes(b"no"), "cannot load a vision"),
        (lambda path: (path / "config.json").write_text("[]"), "cannot load a vision-language"),
        (lambda path: (path / "chat_template.jinja").write_text("{{ 1 / 0 }}"), "template in"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(spoil, said, llava, data, tmp_path, capsys):
    path = tmp_path / "spoiled"
    shutil.copytree(llava, path)
    spoil(path)
    assert _evaluate(path, data, tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and str(path) in error
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_all_there_are_refused(llava, data, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    part = tmp_path / "part"
    shutil.copytree(llava, part)
    weights = load_file(part / "model.safetensors")
    del weights[sorted(weights)[-1]]
    save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
    assert _evaluate(part, data, tmp_path / "out") == 2
    assert "lack 1, such as" in capsys.readouterr().err


def test_code_of_a_checkpoint_is_not_run_even_if_somebody_says_yes(llava, data, tmp_path):
    import subprocess
    import sys

    evil, proof = tmp_path / "evil", tmp_path / "proof"
    shutil.copytree(llava, evil)
    (evil / "code.py").write_text(f"open({str(proof)!r}, 'w')\n")
    for name, key in (
        ("config.json", "AutoConfig"),
        ("processor_config.json", "AutoProcessor"),
    ):
        file = evil / name
        told = json.loads(file.read_text())
        told["auto_map"] = {key: "code.Anything", "AutoModelForImageTextToText": "code.Anything"}
        told["model_type"] = "nobody_knows"
        file.write_text(json.dumps(told))
    command = [sys.executable, "-m", "mgsd_core.cli", "evaluate", "--model", evil, "--data", data]
    command += ["--out", tmp_path / "out"]
    done = subprocess.run(
        list(map(str, command)), input="y\n" * 9, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot load a vision-language model" in done.stderr.splitlines()[-1]
    assert not proof.exists()


def test_a_mistyped_directory_is_no_name_on_a_hub(data, tmp_path, capsys):
    assert _evaluate("runs/modle", data, tmp_path / "out") == 2
    assert "runs/modle: no such directory" in capsys.readouterr().err


def _generated(path, prompt, picture):
    """What the model says when transformers alone is asked."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(path).eval()
    processor = AutoProcessor.from_pretrained(path)
    user = [{"type": "text", "text": prompt.user}]
    if picture is not None:
        shown = Image.fromarray(picture).resize((128, 128), Image.Resampling.BICUBIC)
        user.append({"type": "image", "image": shown})
    turns = [
        {"role": "system", "content": [{"type": "text", "text": prompt.system}]},
        {"role": "user", "content": user},
    ]
    inputs = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    said = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    new = said[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True)


def test_results_say_which_model_it_was(llava, data, tmp_path):
    options = ("--max-tokens", 2, "--input", "text", "--limit", 1)
    assert _evaluate(llava, data, tmp_path, *options) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["model"] == str(llava)
    assert len(report["model_digest"]) == 64


def test_a_qwen_that_was_not_trained_here_is_given_as_much_room(data, tmp_path):
    from small_qwen import write_small_qwen

    qwen = write_small_qwen(tmp_path / "qwen")
    said = {}
    for most in (3, 60, 300):
        out = tmp_path / str(most)
        options = ("--picture-size", 256, "--input", "text", "--max-tokens", most)
        assert _evaluate(qwen, data, out, *options) == 0
        said[most] = [record.text for record in read_results(out).records["text"]]
    for short, middle, long in zip(*said.values(), strict=True):
        assert middle.startswith(short) and long.startswith(middle)
    # Beside right answers of less than 100 tokens it may say more than twice as many.
    assert max(map(len, said[300])) > 3 * max(map(len, said[60])) > 9 * max(map(len, said[3]))
