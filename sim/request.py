"""What is asked of a data set: families, levels, split, seeds and how its pictures are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sim.episodes import DatasetError
from sim.family import FAMILIES, check_family, find_family
from sim.renderers import check_renderer
from sim.sampling import check_level, check_split
from sim.style import check_styles

MIN_SIZE, MAX_SIZE = 32, 2048
MAX_COUNT = 10_000_000
MAX_PARTS = 100_000

#: Digests of states that are kept out of training and validation, by family and level.
Exclusion = Mapping[tuple[str, int], frozenset[str]]


@dataclass(frozen=True, slots=True)
class DatasetRequest:
    """Episodes of one split: `count` of each family and level.

    Attributes:
        pairs: the families and levels.
        split: train, validation or test.
        seed: of the first episode of each pair; the others' follow.
        count: of episodes of each pair.
        size: side of the square pictures [px].
        renderer: one of `sim.renderers.RENDERERS`.
        styles: one of `sim.style.STYLES`.
        exclude: states that no episode of the splits train and validation has; in their place the
            next states that the seeds give are taken.

    Raises:
        ValueError: a field is out of range.
        sim.renderers.MissingRendererError: the renderer is not installed.
    """

    pairs: Sequence[tuple[str, int]]
    split: str
    seed: int
    count: int
    size: int = 128
    renderer: str = "panda"
    styles: str = "varied"
    exclude: Exclusion = field(default_factory=dict)

    def __post_init__(self) -> None:
        for family, level in self.pairs:
            check_level(family, level)
            if find_family(family).build is None:
                raise DatasetError(
                    f"{family} is not drawn by a renderer: bring pictures of your own"
                )
            if family not in FAMILIES and self.renderer != "panda":
                raise DatasetError(
                    f"only the renderer panda draws {family}; {self.renderer} does not"
                )
        check_episodes(self.split, self.seed, self.count, self.size, self.renderer, self.styles)

    def left_out(self, family: str, level: int) -> frozenset[str]:
        """Return the digests of the states that episodes must not have; in `test` any may."""
        if self.split == "test":
            return frozenset()
        return self.exclude.get((family, level), frozenset())


def check_episodes(
    split: str, seed: int, count: int, size: int, renderer: str, styles: str
) -> None:
    """Raise an error that names the first of a request's fields that is out of range.

    Raises:
        ValueError: one is out of range.
        sim.renderers.MissingRendererError: the renderer is not installed.
    """
    check_split(split)
    if not 1 <= count <= MAX_COUNT:
        raise DatasetError(f"count must be 1 to {MAX_COUNT}, not {count}")
    if not 0 <= seed < 1 << 62:
        raise DatasetError(f"seed must be 0 to 2^62 - 1, not {seed}")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise DatasetError(f"size must be {MIN_SIZE} to {MAX_SIZE} px, not {size}")
    check_styles(styles)
    check_renderer(renderer)


def parse_families(text: str) -> tuple[str, ...]:
    """Return the families that `all` (those of this package) or a family's name stands for."""
    return FAMILIES if text == "all" else (check_family(text),)


def parse_levels(text: str, families: Sequence[str]) -> list[tuple[str, int]]:
    """Return the (family, level) pairs of `3`, `3-5` or `all`.

    One family must have all the levels named; of several, each takes those that it has.

    Raises:
        ValueError: the text is no level or range, or a level exists in none of `families`.
    """
    if text == "all":
        return [(family, level) for family in families for level in find_family(family).levels]
    first, dash, last = text.partition("-")
    try:
        wanted = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        wanted = range(0)
    if not wanted:
        raise DatasetError(f"level must be a number, a range such as 3-5, or all, not {text!r}")
    levels = {family: find_family(family).levels for family in families}
    for level in (wanted[0], wanted[-1]):
        if not any(level in own for own in levels.values()):
            check_level(families[0], level)
    return [(family, level) for family in families for level in levels[family] if level in wanted]


def parse_part(text: str) -> tuple[int, int]:
    """Return (i, n) of `i/n`: the i-th of n parts, 0 <= i < n.

    Raises:
        DatasetError: the text is something else.
    """
    first, _, last = text.partition("/")
    if first.isdecimal() and last.isdecimal() and len(text) < 20:
        part, parts = int(first), int(last)
        if part < parts <= MAX_PARTS:
            return part, parts
    raise DatasetError(
        f"shard must be i/n with 0 <= i < n <= {MAX_PARTS}, such as 0/4, not {text!r}"
    )
