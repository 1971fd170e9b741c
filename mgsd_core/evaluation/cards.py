"""Scenes of a gallery as cards, and failures by what they are to be blamed on, for a page."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mgsd_core.evaluation.boards import Board, draw_board, drawn_fields, is_usable
from mgsd_core.evaluation.results import Results, ResultsError, Shown
from mgsd_core.evaluation.score import NO_ANSWER, REFUSED, UNPARSABLE, Cause, Record
from mgsd_core.prompts import find_language, parse_response
from sim import Failure, Plan, State

#: Failures in words; those of other families are called as they call them.
_FAILURES = {
    Failure.OFF_GRID.value: "leaves the grid",
    Failure.HOLE.value: "enters a hole",
    Failure.WALL.value: "crosses a wall",
    Failure.TABLE.value: "enters the table",
    Failure.PRINTER.value: "enters the printer",
    Failure.NOT_BESIDE_PRINTER.value: "wrong PICK or DROP",
    Failure.NOT_BESIDE_TABLE.value: "wrong PICK or DROP",
    Failure.ALREADY_CARRYING.value: "wrong PICK or DROP",
    Failure.NOT_CARRYING.value: "wrong PICK or DROP",
    Failure.NOT_IN_FAMILY.value: "unknown action",
    Failure.INCOMPLETE.value: "ends too early",
    UNPARSABLE: "no plan to be read",
    NO_ANSWER: "no answer",
    REFUSED: "not to be followed",
}

#: Causes: in a table's head, and in a sentence.
CAUSES = {
    Cause.PERCEPTION.value: (
        "read wrong",
        "the state was read wrong, and the plan would succeed in what was read",
    ),
    Cause.REASONING.value: (
        "reasoned wrong",
        "the state was read right, and the plan fails in it",
    ),
    Cause.BOTH.value: ("both", "the state was read wrong, and the plan fails in it, too"),
    Cause.NO_STATE.value: ("no state", "there is a plan, but no state to be read"),
    Cause.NO_PLAN.value: ("no plan", "there is no plan to be read"),
}

# Causes that say that nothing was read.
_NOTHING_READ = (Cause.NO_STATE, Cause.NO_PLAN)

# Longest texts that a card shows, of plans [actions] and of responses [characters].
_MOST_ACTIONS, _MOST_TEXT = 120, 6000


def failure_words(failure: str) -> str:
    """Return a failure in words."""
    return _FAILURES.get(failure, failure.replace("_", " "))


def cause_words(cause: str) -> str:
    """Return a cause in one or two words."""
    return CAUSES[cause][0] if cause in CAUSES else cause.replace("_", " ")


# --- failures -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FailureTable:
    """Failures by cause.

    Attributes:
        title: whose failures.
        family: "all", or the only one.
        causes: the columns, as (cause, words).
        rows: (failure in words, cells, total) with the most frequent failure first.
        totals: of the columns.
        count, scenes: failures, and scenes in all.
    """

    title: str
    family: str
    causes: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[FailureCount], int]]
    totals: Sequence[int]
    count: int
    scenes: int


@dataclass(frozen=True, slots=True)
class FailureCount:
    """A number of scenes; `heat` is 0 to 100, `in_gallery` whether a card shows one of them."""

    count: int
    heat: int
    in_gallery: bool


def failure_tables(records: Sequence[Record], cards: Sequence[Card]) -> list[FailureTable]:
    """Return the failures of all families, and of each where there are several."""
    shown = {(card.family, card.failure, card.cause) for card in cards}
    shown |= {("all", card.failure, card.cause) for card in cards}
    families = sorted({record.family for record in records})
    tables = [_table("all families", "all", records, shown)]
    if len(families) > 1:
        for family in families:
            found = [record for record in records if record.family == family]
            tables.append(_table(family, family, found, shown))
    return tables


def _table(
    title: str, family: str, records: Sequence[Record], shown: set[tuple[str, str, str]]
) -> FailureTable:
    failed = [r for r in records if not r.success]
    counts = Counter((failure_words(r.failure or ""), r.cause or "") for r in failed)
    rows = Counter(failure_words(r.failure or "") for r in failed)
    columns = Counter(r.cause or "" for r in failed)
    causes = [*CAUSES, *sorted(set(columns) - set(CAUSES))]
    most = max(counts.values(), default=1)
    return FailureTable(
        title,
        family,
        [(cause, cause_words(cause)) for cause in causes],
        [
            (
                failure,
                [
                    FailureCount(
                        counts[failure, cause],
                        round(100 * counts[failure, cause] / most),
                        (family, failure, cause) in shown,
                    )
                    for cause in causes
                ],
                total,
            )
            for failure, total in sorted(rows.items(), key=lambda row: (-row[1], row[0]))
        ],
        [columns[cause] for cause in causes],
        len(failed),
        len(records),
    )


# --- cards --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence about a state: what is true, and what was read (None: the same)."""

    title: str
    true: str
    read: str | None


@dataclass(frozen=True, slots=True)
class Card:
    """A scene as it is shown.

    Attributes:
        scene, family, level: of it.
        verdict: `success` or `failed`.
        failure, cause: in words, and as `score.Cause`; "" where the plan succeeds.
        against: in a comparison, who else solves it; "" where there is none.
        tone: colour of the card.
        headline, because: the verdict and what a failure is to be blamed on, in words.
        url: of the picture.
        over: what is drawn over the picture, if one knows where the cells are.
        beside: else, the board without a picture.
        plan: the actions, each with what became of it: `done`, `fails` or `rest`.
        counts: actions carried out and of a shortest plan, in words.
        misread: values that were read wrong and cannot be drawn, in words.
        state: the sentences of the true state, and how they were read.
        is_read: whether there is a recovered state.
        problem: why something could not be read, or None.
        text: the response.
    """

    scene: str
    family: str
    level: str
    verdict: str
    failure: str
    cause: str
    against: str
    tone: str
    headline: str
    because: str
    url: str
    over: Board | None
    beside: Board | None
    plan: Sequence[tuple[str, str]]
    counts: str
    misread: Sequence[str]
    state: Sequence[Said]
    is_read: bool
    problem: str | None
    text: str


def gallery_cards(
    results: Results, source: str, others: Mapping[str, Record] | None = None
) -> list[Card]:
    """Return a card for every picture.

    Args:
        results: whose gallery it is.
        source: whose responses are shown.
        others: another model's records by scene.

    Raises:
        ResultsError: the gallery has a scene to which there is no response.
    """
    records = {record.scene: record for record in results.records[source]}
    cards = []
    for shown in results.gallery:
        if shown.scene not in records:
            raise ResultsError(
                f"{results.path / 'gallery.jsonl'} shows {shown.scene!r}, to which there is no "
                "response"
            )
        record = records[shown.scene]
        other = None if others is None else others.get(shown.scene)
        against = "" if other is None else _AGAINST[record.success, other.success]
        cards.append(_card(shown, record, results.states[shown.scene], against))
    return cards


_AGAINST = {
    (True, False): "this one only",
    (False, True): "the other only",
    (True, True): "both",
    (False, False): "neither",
}


def _card(shown: Shown, record: Record, true: State, against: str) -> Card:
    parsed = parse_response(record.text, record.family)
    grid = shown.grid if shown.grid is not None and is_usable(shown.grid, true.size) else None
    board = draw_board(true, parsed.state, parsed.plan, grid)
    failure, cause = record.failure or "", record.cause or ""
    return Card(
        scene=record.scene,
        family=record.family,
        level=str(record.level),
        verdict="success" if record.success else "failed",
        failure="" if record.success else failure_words(failure),
        cause="" if record.success else cause,
        against=against,
        tone="good" if record.success else "bad" if record.parsed else "none",
        headline=_headline(record),
        because="" if record.success else CAUSES[cause][1] if cause in CAUSES else cause,
        url=shown.url,
        over=None if grid is None else board,
        beside=board if grid is None else None,
        plan=_plan(parsed.plan, record),
        counts=f"{record.steps} carried out, shortest {record.shortest}",
        misread=[] if record.cause in _NOTHING_READ else _misread(true, parsed.state),
        state=_said(true, parsed.state),
        is_read=parsed.state is not None,
        problem=record.problem,
        text=_shortened(record.text, _MOST_TEXT),
    )


def _headline(record: Record) -> str:
    if not record.success:
        return f"fails: {failure_words(record.failure or 'failed')}"
    return "succeeds, optimal" if record.optimal else "succeeds, not the shortest way"


def _plan(plan: Plan | None, record: Record) -> list[tuple[str, str]]:
    words = []
    for place, action in enumerate((plan or ())[:_MOST_ACTIONS]):
        is_next = place == record.steps and not record.success
        words.append(
            (action.value, "done" if place < record.steps else "fails" if is_next else "rest")
        )
    return words + ([("…", "rest")] if plan is not None and len(plan) > _MOST_ACTIONS else [])


def _said(true: State, read: State | None) -> list[Said]:
    sentences = []
    for field in find_language(true.family).fields:
        right = field.write(true)
        seen = None if read is None else field.write(read)
        sentences.append(Said(field.title, right, None if seen == right else seen))
    return sentences


def _misread(true: State, read: State | None) -> list[str]:
    if read is None:
        return ["no state was read"]
    names = [field.name for field in dataclasses.fields(true)]
    values = {name: (getattr(read, name), getattr(true, name)) for name in names}
    return [
        f"{name.replace('_', ' ')}: {_shortened(str(seen), 40)} was read, "
        f"{_shortened(str(right), 40)} is true"
        for name, (seen, right) in values.items()
        if name not in drawn_fields(true) and seen != right
    ]


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


# --- filters ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filter:
    """Buttons of which one is pressed: the values of a card's attribute that occur.

    Attributes:
        name: of the attribute.
        title: in words.
        values: as (value, words).
    """

    name: str
    title: str
    values: Sequence[tuple[str, str]]


def gallery_filters(cards: Sequence[Card]) -> list[Filter]:
    """Return the filters that tell cards apart."""
    filters = [
        Filter("verdict", "verdict", _occurring(("success", "failed"), [c.verdict for c in cards])),
        Filter("failure", "failure", _plain(c.failure for c in cards)),
        Filter("cause", "cause", _causes(cards)),
        Filter("family", "family", _plain(c.family for c in cards)),
        Filter("level", "level", _plain((c.level for c in cards), key=int)),
        Filter("against", "solved by", _occurring(_AGAINST.values(), [c.against for c in cards])),
    ]
    return [
        f for f in filters if len(f.values) > 1 or (f.name in ("failure", "cause") and f.values)
    ]


def _plain(values: Iterable[str], key: type = str) -> list[tuple[str, str]]:
    return [(value, value) for value in sorted({v for v in values if v}, key=key)]


def _occurring(values: Iterable[str], seen: Sequence[str]) -> list[tuple[str, str]]:
    return [(value, value) for value in values if value in seen]


def _causes(cards: Sequence[Card]) -> list[tuple[str, str]]:
    seen = {card.cause for card in cards if card.cause}
    return [
        (cause, cause_words(cause))
        for cause in [*CAUSES, *sorted(seen - set(CAUSES))]
        if cause in seen
    ]
