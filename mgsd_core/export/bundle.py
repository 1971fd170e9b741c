"""Writes a bundle, and lets it out only when it answers as transformers does."""

from __future__ import annotations

import copy
import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from tqdm import tqdm
from transformers import Qwen3VLForConditionalGeneration

from mgsd_core import prompts
from mgsd_core.adapters import has_adapter, merge_adapter
from mgsd_core.encoding import chat_text, prompt_ids, text_ids
from mgsd_core.export.graphs import ExportError, decoder_graph, vision_graph
from mgsd_core.export.reference import greedy_text, logit_difference
from mgsd_core.model import Backbone
from mgsd_core.runtime.bundle import (
    DATA_SUFFIX,
    DECODER,
    GOLDENS,
    MANIFEST,
    PRECISIONS,
    TOKENIZER,
    VISION,
    FamilyPrompt,
    FileEntry,
    Golden,
    Manifest,
    TokenIds,
    file_entry,
    manifest_bytes,
    read_bundle,
)
from mgsd_core.runtime.goldens import GoldenError, check_goldens, golden_image
from mgsd_core.runtime.ort_engine import OrtEngine
from mgsd_core.runtime.preprocess import check_rgb
from sim import FAMILIES, find_family, sample, solve
from sim.family import check_family

#: By precision, the share of goldens whose plan must be transformers', unless it is said otherwise.
#: models/nano gives 100 % of them in fp16 and 94 % in int4, see benchmarks/agreement.py.
LEAST_AGREEMENT = {"fp32": 1.0, "fp16": 0.9, "int4": 0.75, "int4-fp16": 0.75}

#: Weights of more bytes are written beside their graph, which must stay below protobuf's 2 GiB.
EXTERNAL_BYTES = 1 << 30

#: Largest difference of a logit from transformers', relative to the largest logit (at least 1).
LOGIT_TOLERANCE = 1e-4

# States of each level whose responses say how long a response may be.
_STATES_PER_LEVEL = 64
# A plan may be legal and longer than the shortest.
_ROOM = 1.25


def export_bundle(
    backbone: Backbone,
    out_dir: str | Path,
    families: Sequence[str] = FAMILIES,
    goldens: Sequence[tuple[str, NDArray[np.uint8]]] = (),
    levels: Mapping[str, Sequence[int]] | None = None,
    name: str = "student",
    overwrite: bool = False,
    precision: str = "fp32",
    portable: bool = False,
    least_agreement: float | None = None,
    external_bytes: int = EXTERNAL_BYTES,
) -> Path:
    """Write a bundle that plans as `backbone` does.

    The same weights and arguments give the same bytes. Nothing is left at `out_dir` unless the
    finished bundle, run by the real `Planner`, answers every golden picture as transformers does.

    Args:
        backbone: the model; its adapter, if any, is merged.
        out_dir: directory to write.
        families: families that the bundle plans for.
        goldens: (family, picture uint8 [H, W, 3]) to check the bundle with, now and on the robot;
            families without one get a picture of noise.
        levels: grid sides by family, which bound the length of responses; default: all that each
            family has.
        name: what people call the model.
        overwrite: replace an existing bundle.
        precision: one of `mgsd_core.runtime.bundle.PRECISIONS`, see `mgsd_core.export.graphs`.
        portable: write the graphs that TensorRT 10.13 reads.
        least_agreement: share of the goldens whose plan the bundle must give; default: all of them
            in fp32, where texts and logits must be transformers' too, else `LEAST_AGREEMENT`.
        external_bytes: weights of more bytes are written beside their graph.

    Raises:
        ExportError: the backbone cannot be exported, or the bundle answers otherwise.
        FileExistsError: `out_dir` exists and `overwrite` is False.
    """
    out_dir = Path(out_dir)
    check_free(out_dir, overwrite)
    if not families:
        raise ExportError("a bundle needs at least one family")
    if levels is None:
        levels = {family: find_family(family).levels for family in families}
    for family in families:
        if not levels.get(check_family(family)):
            raise ExportError(f"no levels are given for {family}")
    for family in {family for family, _ in goldens} - set(families):
        raise ExportError(f"a golden picture is for {family}, which is not to be in the bundle")
    if precision not in PRECISIONS:
        raise ExportError(f"unknown precision {precision!r}; there are: {', '.join(PRECISIONS)}")
    if least_agreement is None:
        least_agreement = LEAST_AGREEMENT[precision]
    elif precision == "fp32" and least_agreement != 1.0:
        raise ExportError("in fp32 all answers must agree: least_agreement is 1")
    elif not 0 <= least_agreement <= 1:
        raise ExportError(f"least_agreement must be from 0 to 1, not {least_agreement}")
    with _exportable(backbone) as backbone:
        templates = {f: _prompt(backbone, f, levels[f]) for f in families}
        pictures = [*goldens, *_noise(backbone, families, goldens)]
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
        try:
            about = _About(name, precision, portable, float(least_agreement), external_bytes)
            _write(temporary, backbone, templates, pictures, about)
            _check(temporary, backbone)
            temporary.chmod(0o755)
            _put(temporary, out_dir, overwrite)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return out_dir


def check_free(out_dir: Path, overwrite: bool) -> None:
    """Raise `FileExistsError` when a bundle may not be written at `out_dir`."""
    if not out_dir.exists() and not out_dir.is_symlink():
        return
    if not overwrite:
        raise FileExistsError(f"{out_dir} exists; choose another directory or overwrite it")
    # Only a bundle is ever replaced: a mistyped path must not cost anyone their files.
    if out_dir.is_symlink() or not (out_dir / MANIFEST).is_file():
        raise FileExistsError(f"{out_dir} is no bundle, so it is not overwritten")


def _put(temporary: Path, out_dir: Path, overwrite: bool) -> None:
    if overwrite and out_dir.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
        out_dir.rename(old)
        temporary.rename(out_dir)
        shutil.rmtree(old)
    else:  # the system refuses if something has come to be there meanwhile
        temporary.rename(out_dir)


@contextmanager
def _exportable(backbone: Backbone) -> Iterator[Backbone]:
    """Give the backbone, its adapter merged, in float32 and evaluation mode.

    The caller's stays as it was.
    """
    model = backbone.model
    if not isinstance(model, Qwen3VLForConditionalGeneration):
        raise ExportError(f"only a Qwen3-VL can be exported, not {type(model).__name__}")
    adapted = has_adapter(backbone)
    if adapted or any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        model = copy.deepcopy(model).float()
    if adapted:
        merge_adapter(replace(backbone, model=model))
    training = model.training
    model.eval()
    try:
        yield replace(backbone, model=model)
    finally:
        model.train(training)


def _prompt(backbone: Backbone, family: str, levels: Sequence[int]) -> FamilyPrompt:
    """Render a family's prompt and find how long its responses may become."""
    prompt = prompts.student_prompt(family, backbone.style)
    placeholder = backbone.tokenizer.convert_ids_to_tokens(backbone.image_token)
    prefix, *rest = chat_text(backbone, prompt).split(placeholder)
    if len(rest) != 1:
        raise ExportError(f"the chat template wrote {len(rest)} image placeholders for 1 picture")
    ids = [*text_ids(backbone, prefix), *[backbone.image_token] * backbone.image.tokens]
    if ids + text_ids(backbone, rest[0]) != prompt_ids(backbone, prompt):
        raise ExportError("the tokenizer does not keep the image placeholder apart from text")
    states = (sample(family, level, seed) for level in levels for seed in range(_STATES_PER_LEVEL))
    longest = max(
        len(text_ids(backbone, prompts.response_text(state, solve(state) or ())))
        for state in states
    )
    return FamilyPrompt(prefix, rest[0], int(longest * _ROOM))


def _noise(
    backbone: Backbone,
    families: Sequence[str],
    goldens: Sequence[tuple[str, NDArray[np.uint8]]],
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return a picture for every family that has none."""
    have = {family for family, _ in goldens}
    side = backbone.image.size
    random = np.random.default_rng(0)
    return [
        (family, random.integers(0, 256, (side, side, 3), dtype=np.uint8))
        for family in families
        if family not in have
    ]


@dataclass(frozen=True)
class _About:
    """What a bundle is to be; see `export_bundle`."""

    name: str
    precision: str
    portable: bool
    least_agreement: float
    external_bytes: int


def _write(
    directory: Path,
    backbone: Backbone,
    templates: Mapping[str, FamilyPrompt],
    pictures: Sequence[tuple[str, NDArray[np.uint8]]],
    about: _About,
) -> None:
    cache_length = max(
        len(prompt_ids(backbone, prompts.student_prompt(family, backbone.style)))
        + prompt.max_new_tokens
        for family, prompt in templates.items()
    )
    model, precision, portable = backbone.model, about.precision, about.portable
    vision = partial(vision_graph, model, backbone.image, precision, portable)
    suppressed = backbone.suppressed_tokens()
    decoder = partial(decoder_graph, model, cache_length, suppressed, precision, portable)
    entries = _write_graph(directory, VISION, model.model.visual, about, vision)
    entries |= _write_graph(directory, DECODER, model.model.language_model, about, decoder)
    files = {TOKENIZER: backbone.tokenizer.backend_tokenizer.to_str().encode()}
    goldens = []
    for i, (family, rgb) in enumerate(tqdm(pictures, "golden answers", disable=None)):
        file = f"{GOLDENS}/{i:04d}.png"
        files[file] = _png(rgb)
        text = greedy_text(backbone, family, rgb, templates[family].max_new_tokens)
        goldens.append(Golden(family, file, text))
    (directory / GOLDENS).mkdir()
    for file, data in files.items():
        (directory / file).write_bytes(data)
        entries[file] = file_entry(data)
    manifest = Manifest(
        name=about.name,
        image=backbone.image,
        prompt_style=backbone.style,
        prompts_digest=prompts.prompts_digest(backbone.style, list(templates)),
        prompts=dict(templates),
        tokens=TokenIds(
            image=backbone.image_token,
            end=backbone.end_token,
            pad=backbone.pad_token,
            stop=tuple(text_ids(backbone, prompts.STOP_TEXT)),
        ),
        cache_length=cache_length,
        precision=about.precision,
        portable=about.portable,
        least_agreement=about.least_agreement,
        versions={p: version(p) for p in ("onnx", "onnxruntime", "torch", "transformers")},
        files=entries,
        goldens=tuple(goldens),
    )
    (directory / MANIFEST).write_bytes(manifest_bytes(manifest))


def _write_graph(
    directory: Path,
    name: str,
    part: nn.Module,
    about: _About,
    build: Callable[..., onnx.ModelProto],
) -> dict[str, FileEntry]:
    """Write a graph, and its weights beside it where they are large; return what they are."""
    size = sum(p.numel() for p in part.parameters()) * (2 if "fp16" in about.precision else 4)
    if size <= about.external_bytes:
        data = build().SerializeToString(deterministic=True)
        (directory / name).write_bytes(data)
        return {name: file_entry(data)}
    beside = name + DATA_SUFFIX
    # Weight by weight, so that memory need not hold them twice.
    with (directory / beside).open("wb") as file:
        graph = build(data=file, data_name=beside)
    (directory / name).write_bytes(graph.SerializeToString(deterministic=True))
    onnx.checker.check_model(directory / name, full_check=True)
    entries = {name: file_entry((directory / name).read_bytes())}
    with (directory / beside).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return entries | {beside: FileEntry(digest, (directory / beside).stat().st_size)}


def _png(rgb: NDArray[np.uint8]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(check_rgb(rgb)).save(data, "PNG")
    return data.getvalue()


def _check(directory: Path, backbone: Backbone) -> None:
    """Refuse a bundle whose answers, or in fp32 logits, are not transformers'."""
    bundle = read_bundle(directory)
    engine = OrtEngine(bundle, threads=None)
    if bundle.manifest.precision == "fp32":
        for golden in tqdm(bundle.manifest.goldens, "checking logits", disable=None):
            response = [*text_ids(backbone, golden.text), backbone.end_token]
            response = response[: bundle.manifest.prompts[golden.family].max_new_tokens]
            rgb = golden_image(bundle, golden)
            difference = logit_difference(backbone, engine, golden.family, rgb, response)
            if not difference <= LOGIT_TOLERANCE:
                raise ExportError(
                    f"the exported graphs compute other logits than the model: they differ by "
                    f"{difference:.1e} of the largest on {golden.image}"
                )
    try:
        check_goldens(bundle, engine)
    except GoldenError as error:
        raise ExportError(str(error)) from None
