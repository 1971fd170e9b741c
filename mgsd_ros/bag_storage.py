"""The files of a bag: by rosbags where they are whole, else read from the front to where they end.

A recorder that loses its power leaves no metadata.yaml, an mcap file without index and footer, or
an SQLite file without its last pages. What stands before is good.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from mcap.records import Channel, Message, Schema
from mcap.stream_reader import StreamReader
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)
from rosbags.rosbag2 import Reader

from sim.errors import one_line

_FORMATS = {"ros2msg": MessageDefinitionFormat.MSG, "ros2idl": MessageDefinitionFormat.IDL}
_NO_DEFINITION = MessageDefinition(MessageDefinitionFormat.NONE, "")


class Storage(Protocol):
    """Messages by connection; rosbags' own reader is one."""

    @property
    def connections(self) -> list[Connection]:
        """Topics with their types; a topic may have several."""

    def messages(
        self, connections: Collection[Connection]
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield the messages of some connections: whose, when received [ns], and the bytes."""


@contextmanager
def open_storage(path: Path) -> Iterator[tuple[Storage, str, str]]:
    """Open a bag's directory, or one file of it, for reading.

    Yields:
        The messages; what is wrong with the bag, and what else there is to be said about it, both
        empty for nothing. Where it cannot be opened as a whole, messages come in the order in which
        they were written.

    Raises:
        Exception: of any kind, when there is not a message that can be read.
    """
    storage: Storage
    note = ""
    with ExitStack() as stack:
        try:
            storage, damage = stack.enter_context(Reader(path)), _broken_page(_files(path))
        except Exception as error:
            files = _files(path)
            is_without = path.is_dir() and not (path / "metadata.yaml").exists()
            if is_without and not any(file.suffix in _READERS for file in files):
                raise FileNotFoundError(
                    f"no metadata.yaml and no {' or '.join(_READERS)} file in it"
                ) from None
            storage = front = _Front(files)
            damage = one_line(error)
            if not front.connections:
                raise
            if is_without and not front.damage and _are_whole(files):
                damage, note = "", "it has no metadata.yaml; all messages of its files are read"
        yield storage, damage, note


def _files(path: Path) -> list[Path]:
    """Return the files of a bag in the order in which they were recorded: bag_9 before bag_10."""
    if path.is_file():
        return [path]
    return sorted(path.iterdir(), key=lambda file: (len(file.name), file.name))


def _are_whole(files: list[Path]) -> bool:
    """Return whether each file of a bag can be opened by itself, and nothing waits beside it."""
    if any(file.name.endswith(("-wal", "-journal")) and file.stat().st_size for file in files):
        return False
    own = [file for file in files if file.suffix in _READERS]
    try:
        for file in own:
            with Reader(file):
                pass
    except Exception:
        # A file that is cut off or made up raises nearly anything in the parsers beneath.
        return False
    return not _broken_page(own)


def _broken_page(files: list[Path]) -> str:
    """Say that a database ends within a page: SQLite would read zeros there and say nothing."""
    for path in files:
        if path.suffix == ".db3":
            with path.open("rb") as file:
                file.seek(16)
                # 65536 does not fit its two bytes and is spelled 1.
                page = {1: 65536}.get(size := int.from_bytes(file.read(2)), size)
            if path.stat().st_size % page:
                return f"{path.name} ends within a page"
    return ""


class _Found(NamedTuple):
    topic: str
    msgtype: str
    definition: MessageDefinition
    time: int
    data: bytes


class _Front:
    """Messages from the beginning of the first file to where one is damaged or ends early.

    Attributes:
        damage: what ends them, empty for the end of the last file.
    """

    def __init__(self, files: list[Path]) -> None:
        self.damage = ""
        self._files = [file for file in files if file.suffix in _READERS]
        counts = Counter((f.topic, f.msgtype, f.definition) for f in self._read())
        self.connections = [
            Connection(number, *kind, "", count, ConnectionExtRosbag2("cdr", []), self)
            for number, (kind, count) in enumerate(counts.items(), 1)
        ]

    def messages(
        self, connections: Collection[Connection]
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """See `Storage`."""
        wanted = {(c.topic, c.msgtype, c.msgdef): c for c in connections}
        for found in self._read():
            connection = wanted.get((found.topic, found.msgtype, found.definition))
            if connection is not None:
                yield connection, found.time, found.data

    def _read(self) -> Iterator[_Found]:
        for file in self._files:
            try:
                yield from _READERS[file.suffix](file)
            except Exception as error:
                # A file that is cut off or made up raises nearly anything in the parsers beneath.
                self.damage = one_line(error)
                return


def _read_mcap(path: Path) -> Iterator[_Found]:
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    with path.open("rb") as file:
        # No record is longer than its file, whatever a damaged length says.
        limit = path.stat().st_size
        for record in StreamReader(file, validate_crcs=True, record_size_limit=limit).records:
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Channel):
                channels[record.id] = record
            elif isinstance(record, Message):
                channel = channels[record.channel_id]
                schema = schemas[channel.schema_id]
                definition = _definition(schema.encoding, schema.data.decode())
                yield _Found(channel.topic, schema.name, definition, record.log_time, record.data)


def _read_sqlite(path: Path) -> Iterator[_Found]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as database:
        # Without it SQLite refuses a file that has fewer pages than it says, all of them.
        database.execute("PRAGMA writable_schema = ON")
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        definitions: dict[str, MessageDefinition] = {}
        if "message_definitions" in tables:  # since Iron
            definitions = {
                msgtype: _definition(encoding, text)
                for msgtype, encoding, text in database.execute(
                    "SELECT topic_type, encoding, encoded_message_definition"
                    " FROM message_definitions"
                )
            }
        topics = {
            number: (topic, msgtype, definitions.get(msgtype, _NO_DEFINITION))
            for number, topic, msgtype in database.execute("SELECT id, name, type FROM topics")
        }
        # By its key, that is as written: the index by time lies all over the file.
        for number, time, data in database.execute(
            "SELECT topic_id, timestamp, data FROM messages ORDER BY id"
        ):
            yield _Found(*topics[number], int(time), memoryview(data).tobytes())


def _definition(encoding: str, text: str) -> MessageDefinition:
    return MessageDefinition(_FORMATS[encoding], text) if text else _NO_DEFINITION


_READERS: dict[str, Callable[[Path], Iterator[_Found]]] = {
    ".mcap": _read_mcap,
    ".db3": _read_sqlite,
}
