"""What a bundle is and needs, checked: the report of `mgsd inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mgsd_core.runtime.bundle import (
    DECODER,
    SCHEMA_VERSION,
    VISION,
    read_bundle,
)
from mgsd_core.runtime.goldens import GoldenError, check_goldens
from mgsd_core.runtime.ort_engine import OrtEngine


def inspect_bundle(
    path: str | Path, answer: bool = True, threads: int | None = None
) -> dict[str, Any]:
    """Read a bundle, every digest checked, and return what it is as JSON values.

    Args:
        path: of the bundle.
        answer: also run it: do its graphs load, and does it answer its golden pictures as the
            trained model did?
        threads: CPU threads of the run; None: as the planner chooses.

    Returns:
        {"bundle", "digest", "schema_version", "name", "precision", "portable", "families":
        {family: most tokens of a response}, "image": {"side_px", "visual_tokens"},
        "cache_length", "graphs": {file: {"bytes", "inputs" and "outputs": {name: [type,
        shape]}}}, "bytes", "versions": {library that wrote it: version}, "goldens": {"pictures",
        "least_agreement" and, if they were answered, "plans", "texts": those that agree,
        "problem": None or what differs}}.

    Raises:
        BundleError: missing, damaged or of another version.
    """
    bundle = read_bundle(path)
    manifest = bundle.manifest
    engine = OrtEngine(bundle, threads)
    goldens: dict[str, Any] = {
        "pictures": len(manifest.goldens),
        "least_agreement": manifest.least_agreement,
    }
    if answer:
        try:
            agreement = check_goldens(bundle, engine)
            goldens |= {"plans": agreement.plans, "texts": agreement.texts, "problem": None}
        except GoldenError as error:
            goldens["problem"] = str(error)
    return {
        "bundle": str(path),
        "digest": bundle.digest,
        "schema_version": SCHEMA_VERSION,
        "name": manifest.name,
        "precision": manifest.precision,
        "portable": manifest.portable,
        "families": {f: prompt.max_new_tokens for f, prompt in manifest.prompts.items()},
        "image": {"side_px": manifest.image.size, "visual_tokens": manifest.image.tokens},
        "cache_length": manifest.cache_length,
        "graphs": {
            name: {"bytes": bundle.graph_bytes(name), **engine.signature(name)}
            for name in (VISION, DECODER)
        },
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "versions": dict(manifest.versions),
        "goldens": goldens,
    }
