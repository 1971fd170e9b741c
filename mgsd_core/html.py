"""Pages for people: one self-contained HTML file, in light and dark, that requests nothing."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

#: Packages whose directory `templates` pages come from; a template is named package/file.
_PACKAGES = ("mgsd_core", "mgsd_ros")

_QUALITY = 80


def render(template: str, **values: Any) -> str:
    """Return the page that a template makes of values. Equal values give equal bytes.

    Whatever the values say is shown, and never taken for HTML.

    Args:
        template: such as mgsd_ros/bag_report.html; it extends mgsd_core/page.html.
        values: by the names that the template uses.
    """
    environment = Environment(
        loader=PrefixLoader({package: PackageLoader(package) for package in _PACKAGES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values) + "\n"


def picture_url(rgb: NDArray[np.uint8], width: int) -> str:
    """Return a picture uint8 [H, W, 3] as a data URL, of at most `width` px."""
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    if picture.width > width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()
