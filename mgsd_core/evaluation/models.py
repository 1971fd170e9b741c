"""What can be judged: weights, two in a row, a bundle, an endpoint, all asked in one way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgsd_core.evaluation.score import Record
from mgsd_core.evaluation.untaught import STYLE, response_limit
from mgsd_core.places import weights_place
from mgsd_core.runtime.preprocess import ImageSpec
from mgsd_core.scenes import Scenes

if TYPE_CHECKING:
    from mgsd_core.evaluation.endpoint_run import EndpointRun
    from mgsd_core.model import Backbone

Progress = Callable[[int], Any]

#: Side of the pictures that a model is shown which says nothing of it [px].
DEFAULT_SIZE = 512


@dataclass(frozen=True)
class JudgedModel:
    """A model and how it answers.

    Attributes:
        name: for people.
        image: format of the pictures that it is shown.
        digest: SHA-256 (hex) of what its answers depend on.
        style: of its prompts, see `mgsd_core.prompts`.
        reads: `image`, or `image` and `text` (the symbolic state).
        answer: returns the judged answers to scenes, given what is read; its last argument is
            called with the number of scenes done since the last call.
        about: returns what else the results say, after the last answer.
    """

    name: str
    image: ImageSpec
    digest: str
    style: str
    reads: tuple[str, ...]
    answer: Callable[[Scenes, str, Progress], list[Record]]
    about: Callable[[], dict[str, Any]] = dict


def load_model(
    model: str, batch: int, size: int | None = None, max_tokens: int | None = None
) -> JudgedModel:
    """Load weights, or a bundle, of which what a robot runs is judged.

    Args:
        model: a directory; or `hf:` and a name that transformers resolves.
        batch: responses generated at a time by weights; a bundle answers one by one.
        size: side of the pictures [px] for weights that were not trained here, of which nobody
            has said it.
        max_tokens: longest answer of models that were not trained here [tokens].

    Raises:
        mgsd_core.model.BackboneError: weights that cannot be loaded.
        mgsd_core.runtime.bundle.BundleError: a bundle that cannot.
        ValueError: a bundle with a size or a length of answers.
    """
    from mgsd_core.runtime.bundle import MANIFEST

    path = weights_place(model)
    if isinstance(path, Path) and (path / MANIFEST).is_file():
        if size is not None or max_tokens is not None:
            raise ValueError(
                f"{model} is a bundle: it says itself how large pictures are and how long answers; "
                "leave out --picture-size and --max-tokens"
            )
        return _bundle(path)
    from mgsd_core.evaluation.checkpoint import is_other_checkpoint, load_checkpoint

    if is_other_checkpoint(path):
        return load_checkpoint(path, size or DEFAULT_SIZE, batch, max_tokens)
    return _weights(path, batch, size, max_tokens)


def load_pipeline(reader: str, planner: str, batch: int) -> JudgedModel:
    """Load two models in a row, see `mgsd_core.evaluation.pipeline`.

    Args:
        reader: directory of weights that were trained here; reads the state off the picture.
        planner: another, or the same; plans from what was read.
        batch: responses generated at a time.

    Raises:
        mgsd_core.model.BackboneError: one of them is something else, or cannot be loaded.
    """
    from mgsd_core.evaluation.pipeline import evaluate_pipeline
    from mgsd_core.model import METADATA, BackboneError

    for path in (reader, planner):
        if not (Path(path) / METADATA).is_file():
            raise BackboneError(
                f"{path} holds no weights that were trained here (no {METADATA}): with --planner "
                "give directories that `mgsd coldstart` or `mgsd distill` wrote, on both sides"
            )
    backbones = [_ready(Path(path)) for path in (reader, planner)]
    reads, plans = backbones
    digests = [
        weights_digest(path, backbone.model)
        for path, backbone in zip((reader, planner), backbones, strict=True)
    ]

    def answer(scenes: Scenes, source: str, progress: Progress) -> list[Record]:
        return evaluate_pipeline(reads, plans, scenes, source, batch, progress)

    def about() -> dict[str, Any]:
        parts = zip(("reader", "planner"), (reader, planner), digests, strict=True)
        return {part: {"model": path, "model_digest": digest} for part, path, digest in parts}

    name = f"{reader} + {planner}"
    digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return JudgedModel(name, reads.image, digest, reads.style, ("image", "text"), answer, about)


def endpoint_model(
    run: EndpointRun,
    size: int,
    price_in: float | None = None,
    price_out: float | None = None,
) -> JudgedModel:
    """Return the model behind an endpoint.

    Args:
        run: asks it.
        size: side of the pictures that are sent [px].
        price_in, price_out: see `EndpointRun.about`.
    """

    def about() -> dict[str, Any]:
        return run.about(price_in, price_out)

    image = ImageSpec(size, patch=1, merge=1)
    reads = ("image", "text")
    return JudgedModel(run.endpoint.model, image, run.digest, STYLE, reads, run.answer, about)


def _weights(path: str | Path, batch: int, size: int | None, max_tokens: int | None) -> JudgedModel:
    from mgsd_core.evaluation.answers import evaluate
    from mgsd_core.model import METADATA

    backbone = _ready(path, size or DEFAULT_SIZE)

    is_taught = (Path(path) / METADATA).is_file()

    def room(family: str) -> int:
        return max_tokens or response_limit(family)

    def answer(scenes: Scenes, source: str, progress: Progress) -> list[Record]:
        longest = None if is_taught else room
        return evaluate(backbone, scenes, source, batch, progress, longest)

    digest = weights_digest(path, backbone.model)
    return JudgedModel(str(path), backbone.image, digest, backbone.style, ("image", "text"), answer)


def _ready(path: str | Path, size: int | None = None) -> Backbone:
    """Return weights where they are to answer."""
    import torch

    from mgsd_core.model import default_device, load_backbone

    backbone = load_backbone(path, size)
    device = default_device()
    if device.type == "cpu" and backbone.model.dtype == torch.float16:
        backbone.model.float()  # a CPU multiplies halves several times as slowly
    backbone.model.to(device)
    return backbone


def weights_digest(path: str | Path, model: Any) -> str:
    """Return the SHA-256 (hex) of weights; of those with a name, it and their revision instead."""
    from mgsd_core.training import directory_digest

    if Path(path).is_dir():
        return directory_digest(Path(path))
    return f"{path}@{getattr(model.config, '_commit_hash', None)}"


def _bundle(path: Path) -> JudgedModel:
    from mgsd_core.evaluation.answers import evaluate_bundle
    from mgsd_core.runtime.bundle import read_bundle

    bundle = read_bundle(path)

    def answer(scenes: Scenes, _: str, progress: Progress) -> list[Record]:
        return evaluate_bundle(path, scenes, progress)

    told = bundle.manifest
    return JudgedModel(str(path), told.image, bundle.digest, told.prompt_style, ("image",), answer)
