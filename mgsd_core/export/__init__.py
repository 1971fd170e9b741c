"""Trained weights into a bundle that `mgsd_core.runtime` runs without torch."""

from mgsd_core.export.bundle import export_bundle
from mgsd_core.export.graphs import ExportError

__all__ = ["ExportError", "export_bundle"]
