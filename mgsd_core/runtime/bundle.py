"""Bundles on disk: what `manifest.json` says, and files that are exactly what it says.

A bundle may come from anywhere, so nothing in it is believed before it is checked. The manifest
has one spelling: what it says, written again, must give the same bytes, its own digest included.
The SHA-256 of every other file stands in the manifest.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Union

from mgsd_core import prompts
from mgsd_core.runtime.preprocess import ImageSpec
from sim import FamilyError, UnknownFamilyError
from sim.family import NAME

SCHEMA_VERSION = 3

#: What weights and activations are, see `mgsd_core.export.graphs`.
PRECISIONS = ("fp32", "fp16", "int4", "int4-fp16")

MANIFEST = "manifest.json"
VISION = "vision.onnx"
DECODER = "decoder.onnx"
TOKENIZER = "tokenizer.json"
#: Added to a graph's name: its weights, where they do not fit into it.
DATA_SUFFIX = ".data"
GOLDENS = "goldens"

_MAX_MANIFEST_BYTES = 1 << 20
# No ONNX file can be larger: protobuf ends there. Weights beside it may be.
_MAX_FILE_BYTES = 2 << 30
_MAX_DATA_BYTES = 256 << 30
_MAX_FILES = 4096
_FILE_NAME = re.compile(rf"(?:{GOLDENS}/)?[A-Za-z0-9][A-Za-z0-9._-]{{0,99}}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BundleError(ValueError):
    """A bundle that is missing, damaged or not for this version; the message says which."""


@dataclass(frozen=True, slots=True)
class FamilyPrompt:
    """What a family's prompt is, as the chat template rendered it.

    Attributes:
        prefix: text before the picture's placeholders.
        suffix: text after them, up to where the response begins.
        max_new_tokens: a response is cut there.
    """

    prefix: str
    suffix: str
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Ids with a meaning.

    Attributes:
        image: the picture's placeholder, once a visual token.
        end: end of turn.
        pad: padding.
        stop: `</answer>` by itself.
    """

    image: int
    end: int
    pad: int
    stop: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a file must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Golden:
    """A picture (a file of the bundle) and the text that the model must answer with."""

    family: str
    image: str
    text: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that `manifest.json` says.

    Attributes:
        name: what people call the model.
        image: the pictures that the vision graph takes.
        prompt_style: see `mgsd_core.prompts`.
        prompts_digest: of the prompts that the weights were trained with.
        prompts: by family; a bundle plans for these families.
        tokens: ids with a meaning.
        cache_length: Smax, most tokens of prompt and response together.
        precision: of the weights, see `mgsd_core.export.graphs`.
        portable: the graphs are those for TensorRT 10.13.
        least_agreement: share of the goldens whose plan a runtime must give to be let plan; 1 in
            fp32, where the text must be the same as well.
        versions: of the libraries that wrote the bundle, by name.
        files: by name, relative to the bundle.
        goldens: pictures and answers to check a runtime with.
    """

    name: str
    image: ImageSpec
    prompt_style: str
    prompts_digest: str
    prompts: Mapping[str, FamilyPrompt]
    tokens: TokenIds
    cache_length: int
    precision: str
    portable: bool
    least_agreement: float
    versions: Mapping[str, str]
    files: Mapping[str, FileEntry]
    goldens: tuple[Golden, ...]

    @property
    def families(self) -> tuple[str, ...]:
        """The families that the bundle plans for."""
        return tuple(self.prompts)


# --- writing ------------------------------------------------------------------------------------


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the one spelling of a manifest."""
    content = {"schema_version": SCHEMA_VERSION, "families": list(manifest.families)}
    content |= asdict(manifest)
    content["digest"] = hashlib.sha256(spell(content)).hexdigest()
    return spell(content)


def spell(content: dict[str, Any]) -> bytes:
    """Return the one spelling of a JSON object."""
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def file_entry(data: Content) -> FileEntry:
    """Return what the manifest says of a file with this content."""
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))


# --- reading ------------------------------------------------------------------------------------

#: Weights of many gigabytes are mapped, not read.
Content = Union[bytes, mmap.mmap, memoryview]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked.

    Attributes:
        path: where it is.
        digest: SHA-256 (hex) of `manifest.json`; names the bundle and, through it, every file.
        manifest: what it says.
        files: the content of every file, by name; read-only.
    """

    path: Path
    digest: str
    manifest: Manifest
    files: Mapping[str, Content]

    def graph_bytes(self, name: str) -> int:
        """Return the size of a graph, its weights included [bytes]."""
        return len(self.files[name]) + len(self.files.get(name + DATA_SUFFIX, b""))


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle whole, every digest checked; what is checked is what is returned.

    Raises:
        BundleError: not a bundle, of another schema version, for a family that is not installed
            here, trained with other prompts, or one of its files (named) is not what the manifest
            says.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"no bundle at {path}: there is no such directory")
    if not (path / MANIFEST).exists():
        raise BundleError(f"{path} is no bundle: it has no {MANIFEST}")
    data = read_plain(path, MANIFEST, _MAX_MANIFEST_BYTES)
    manifest = parse_manifest(data)
    try:
        digest = prompts.prompts_digest(manifest.prompt_style, manifest.families)
    except UnknownFamilyError as error:
        raise BundleError(
            f"{path} plans for a family that is not installed here ({error}); install the package "
            "that it was trained with"
        ) from None
    except FamilyError as error:
        raise BundleError(f"{path}: {error}") from None
    if manifest.prompts_digest != digest:
        raise BundleError(
            f"{path} was trained with other prompts than this version has; export it again"
        )
    files = {}
    for name, entry in manifest.files.items():
        content: Content
        if name.endswith(DATA_SUFFIX) and entry.bytes:
            content = map_plain(path, name, entry.bytes)
        else:
            content = read_plain(path, name, entry.bytes)
        if file_entry(content) != entry:
            raise BundleError(f"{name} in {path} is damaged: its SHA-256 is not the manifest's")
        files[name] = content
    return Bundle(path, hashlib.sha256(data).hexdigest(), manifest, files)


def read_plain(directory: Path, name: str, most: int) -> bytes:
    """Read a regular file of at most `most` bytes, never through a symbolic link."""
    with open_plain(directory, name, most) as file:
        return file.read(most + 1)


def map_plain(directory: Path, name: str, size: int) -> mmap.mmap:
    """Map a regular file of exactly `size` bytes, never through a symbolic link."""
    with open_plain(directory, name, size) as file:
        if os.fstat(file.fileno()).st_size != size:
            raise BundleError(f"{name} in {directory} is damaged: it has not {size} bytes")
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)


@contextmanager
def open_plain(directory: Path, name: str, most: int) -> Iterator[BinaryIO]:
    """Open a regular file of at most `most` bytes, never through a symbolic link.

    Raises:
        BundleError: it is something else, or cannot be read; the file is named.
    """
    path = directory / name
    try:
        for part in (directory / name.split("/")[0], path):
            if stat.S_ISLNK(part.lstat().st_mode):
                raise BundleError(f"{name} in {directory} is a symbolic link; there must be none")
        # Not blocking: opening a named pipe would wait for its writer.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{name} in {directory} is not a plain file")
            if status.st_size > most:
                raise BundleError(f"{name} in {directory} is damaged: more than {most} bytes")
            yield file
    except OSError as error:
        raise BundleError(f"cannot read {name} in {directory}: {error.strerror}") from None


def parse_manifest(data: bytes) -> Manifest:
    """Read the bytes of a `manifest.json`.

    Raises:
        BundleError: they are not what `manifest_bytes` writes.
    """
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise BundleError(f"{MANIFEST} is damaged: it is no JSON object")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION or type(version) is not int:
        raise BundleError(
            f"{MANIFEST} has schema version {str(version)[:20]}; this program reads version "
            f"{SCHEMA_VERSION}"
        )
    manifest = _manifest(_Fields(content, MANIFEST))
    if manifest_bytes(manifest) != data:
        raise BundleError(f"{MANIFEST} is damaged: it is not what its own digest says")
    return manifest


class _Fields:
    """A JSON object whose values are taken by name and type."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"{MANIFEST} is damaged: {where} is no object")
        self.value, self.where = value, where

    def fail(self, name: str, expected: str) -> BundleError:
        return BundleError(f"{MANIFEST} is damaged: {name!r} in {self.where} is not {expected}")

    def text(self, name: str, pattern: re.Pattern[str] | None = None) -> str:
        value = self.value.get(name)
        if not isinstance(value, str) or (pattern and not pattern.fullmatch(value)):
            raise self.fail(name, "text" if pattern is None else "well-formed")
        if any("\ud800" <= c <= "\udfff" for c in value):  # JSON can say halves of characters
            raise self.fail(name, "whole characters")
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.value.get(name)
        if type(value) is not int or not low <= value <= high:
            raise self.fail(name, f"a whole number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        value = self.value.get(name)
        if type(value) is not bool:
            raise self.fail(name, "true or false")
        return value

    def number(self, name: str) -> float:
        value = self.value.get(name)
        if type(value) is not float or not math.isfinite(value):
            raise self.fail(name, "a number")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        values = self.value.get(name)
        if not isinstance(values, list) or any(type(v) is not int or v < 0 for v in values):
            raise self.fail(name, "a list of token ids")
        return tuple(values)

    def inner(self, name: str) -> _Fields:
        return _Fields(self.value.get(name), name)


def _manifest(fields: _Fields) -> Manifest:
    names = fields.value.get("families")
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) and NAME.fullmatch(name) for name in names)
    ):
        raise fields.fail("families", "a list of names of families")
    style = fields.text("prompt_style")
    if style not in prompts.PROMPT_STYLES:
        raise fields.fail("prompt_style", f"one of: {', '.join(prompts.PROMPT_STYLES)}")
    precision = fields.text("precision")
    if precision not in PRECISIONS:
        raise fields.fail("precision", f"one of: {', '.join(PRECISIONS)}")
    least_agreement = fields.number("least_agreement")
    if not 0 <= least_agreement <= 1:
        raise fields.fail("least_agreement", "from 0 to 1")
    prompt_fields, version_fields = fields.inner("prompts"), fields.inner("versions")
    files = _files(fields.inner("files"))
    return Manifest(
        name=fields.text("name"),
        image=_image(fields.inner("image")),
        prompt_style=style,
        prompts_digest=fields.text("prompts_digest", _SHA256),
        prompts={name: _prompt(prompt_fields.inner(name)) for name in names},
        tokens=_tokens(fields.inner("tokens")),
        # Engines hold a table of its square.
        cache_length=fields.integer("cache_length", 1, 1 << 14),
        precision=precision,
        portable=fields.flag("portable"),
        least_agreement=least_agreement,
        versions={name: version_fields.text(name) for name in version_fields.value},
        files=files,
        goldens=_goldens(fields, names, files),
    )


def _image(fields: _Fields) -> ImageSpec:
    sizes = {name: fields.integer(name, 1, 8192) for name in ("size", "patch", "merge", "temporal")}
    try:
        spec = ImageSpec(**sizes, mean=fields.number("mean"), std=fields.number("std"))
    except ValueError as error:
        raise BundleError(f"{MANIFEST} is damaged: {error}") from None
    if spec.std <= 0:
        raise fields.fail("std", "above 0")
    return spec


def _prompt(fields: _Fields) -> FamilyPrompt:
    return FamilyPrompt(
        fields.text("prefix"), fields.text("suffix"), fields.integer("max_new_tokens", 1, 1 << 20)
    )


def _tokens(fields: _Fields) -> TokenIds:
    image, end, pad = (fields.integer(name, 0, 1 << 31) for name in ("image", "end", "pad"))
    return TokenIds(image, end, pad, fields.ids("stop"))


def _files(fields: _Fields) -> dict[str, FileEntry]:
    names = list(fields.value)
    if len(names) > _MAX_FILES:
        raise BundleError(f"{MANIFEST} is damaged: it lists more than {_MAX_FILES} files")
    for name in names:
        # Also keeps absolute paths and `..` out: every part begins with a letter or a digit.
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise BundleError(
                f"{MANIFEST} is damaged: {name[:100]!r} is no name of a bundle's file"
            )
    for name in (VISION, DECODER, TOKENIZER):
        if name not in names:
            raise BundleError(f"{MANIFEST} is damaged: it does not list {name}")
    entries = {}
    for name in names:
        entry = fields.inner(name)
        most = _MAX_DATA_BYTES if name.endswith(DATA_SUFFIX) else _MAX_FILE_BYTES
        entries[name] = FileEntry(entry.text("sha256", _SHA256), entry.integer("bytes", 0, most))
    return entries


def _goldens(fields: _Fields, families: list[str], files: dict[str, Any]) -> tuple[Golden, ...]:
    values = fields.value.get("goldens")
    if not isinstance(values, list):
        raise fields.fail("goldens", "a list")
    goldens = []
    for value in values:
        entry = _Fields(value, "goldens")
        golden = Golden(entry.text("family"), entry.text("image"), entry.text("text"))
        if golden.family not in families or golden.image not in files:
            raise fields.fail("goldens", "about the bundle's own families and files")
        goldens.append(golden)
    return tuple(goldens)
