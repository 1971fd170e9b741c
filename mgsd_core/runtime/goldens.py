"""Does an engine answer a bundle's golden pictures as the trained model did?

The failure to be feared is a wrong answer that nobody notices: an export, a precision, a driver or
a builder that computes something else. So every engine answers the goldens before it plans.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mgsd_core.prompts import parse_response
from mgsd_core.runtime.bundle import Bundle, BundleError, Golden
from mgsd_core.runtime.engine import Engine, InferenceError
from mgsd_core.runtime.planner import Planner
from mgsd_core.runtime.preprocess import ImageError, check_size
from sim.pictures import PictureError, decode_picture


class GoldenError(ValueError):
    """An engine that answers otherwise than the trained model; the message shows where."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How an engine answered the goldens.

    Attributes:
        pictures: goldens answered [count].
        plans: those with the model's plan [count].
        texts: those with the model's very text [count].
    """

    pictures: int
    plans: int
    texts: int

    @property
    def share(self) -> float:
        """Share of the pictures with the model's plan."""
        return self.plans / self.pictures if self.pictures else 1.0


def check_goldens(bundle: Bundle, engine: Engine) -> Agreement:
    """Answer all goldens with an engine.

    Raises:
        GoldenError: fewer plans agree than the manifest wants; in fp32, a text differs; or the
            engine cannot answer, as where numbers overflow.
        BundleError: a picture is none.
    """
    try:
        return _compared(bundle, engine)
    except InferenceError as error:
        raise GoldenError(f"it does not answer: {error}") from error


def _compared(bundle: Bundle, engine: Engine) -> Agreement:
    manifest = bundle.manifest
    planners: dict[str, Planner] = {}
    plans = texts = 0
    example = ""
    for golden in tqdm(manifest.goldens, "checking answers", disable=None):
        if golden.family not in planners:  # its instruction takes the other's place in the cache
            planners = {golden.family: Planner(bundle, engine, golden.family)}
        said = planners[golden.family].plan(golden_image(bundle, golden))
        texts += said.text == golden.text
        # Where there is no plan in the golden text, there should be none in the answer.
        agrees = said.plan == parse_response(golden.text, golden.family).plan
        plans += agrees
        if said.text != golden.text and (not example or not agrees):
            example = f"{said.text[-80:]!r} to {golden.image} and not {golden.text[-80:]!r}"
    agreement = Agreement(len(manifest.goldens), plans, texts)
    exact = manifest.precision == "fp32"
    if agreement.share < manifest.least_agreement or (exact and texts < agreement.pictures):
        raise GoldenError(
            f"it gives {texts if exact else plans} of {agreement.pictures} golden "
            f"{'answers' if exact else 'plans'} as the trained model does, for example {example}"
        )
    return agreement


def golden_image(bundle: Bundle, golden: Golden) -> NDArray[np.uint8]:
    """Return a golden picture, uint8 [H, W, 3].

    Raises:
        BundleError: it is no PNG, or absurdly large.
    """
    where = f"{golden.image} in {bundle.path}"
    try:
        return decode_picture(
            io.BytesIO(bundle.files[golden.image]), ["PNG"], partial(check_size, where=where)
        )
    except (PictureError, ImageError) as error:
        raise BundleError(f"{where} cannot be read: {error}") from error
