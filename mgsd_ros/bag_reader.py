"""Reads a bag's messages, sqlite3 or mcap, by the types that it or a distribution defines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection, MessageDefinitionFormat, Nodetype
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from mgsd_ros.bag_storage import Storage, open_storage
from sim.errors import one_line

#: Message definitions for bags without any of their own, and those of the bags we write.
TYPESTORE = Stores.ROS2_JAZZY


class BagError(ValueError):
    """A bag that cannot be written or read; the message names it and says what is wrong."""


class BagReader:
    """An open bag.

    Attributes:
        path: of the bag.
        connections: topics with their types and how many messages there are to be.
        damage: why not all of it can be read, as far as known by now; empty: nothing is wrong.
        note: what else there is to be said about it, empty for nothing.
    """

    def __init__(
        self, path: Path, storage: Storage, damage: str, note: str, typestore: Stores
    ) -> None:
        self.path, self.damage, self.note = path, damage, note
        self._storage, self._typestore = storage, typestore
        self.connections = list(storage.connections)

    def on(self, topic: str) -> list[Connection]:
        """Return the connections of a topic; none where there is no such topic."""
        return [connection for connection in self.connections if connection.topic == topic]

    def topics(self) -> str:
        """Return all topics for a message to people."""
        own = sorted(f"{c.topic} ({c.msgtype}, {c.msgcount})" for c in self.connections)
        return ", ".join(own) or "no topics at all"

    def messages(self, topic: str) -> Iterator[tuple[int, Any, bytes]]:
        """Yield a topic's messages up to where they can be read; then `damage` is set.

        Yields:
            When it was received [ns], the message, and its bytes.

        Raises:
            BagError: nobody knows the topic's type.
        """
        connections = self.on(topic)
        if not connections:
            return
        types = {connection.msgtype: self.types(connection) for connection in connections}
        try:
            for connection, time, data in self._storage.messages(connections):
                store = types[connection.msgtype]
                yield time, store.deserialize_cdr(data, connection.msgtype), data
        except Exception as error:
            # A file that is cut off or made up raises nearly anything in the parsers beneath.
            self.damage = one_line(error)

    def types(self, connection: Connection) -> Any:
        """Return a type store that knows a connection's type, the bag's own definition of it first.

        Raises:
            BagError: it is unknown.
        """
        usual = get_typestore(self._typestore)
        own: Any = {}
        with _only_bag_errors(self.path):
            text = connection.msgdef.data
            if connection.msgdef.format is MessageDefinitionFormat.MSG:
                own = get_types_from_msg(text, connection.msgtype)
            elif connection.msgdef.format is MessageDefinitionFormat.IDL:
                own = _types_from_idl(text)
            store = usual
            if own:
                store = get_typestore(Stores.EMPTY)
                store.register(own)
                if _unknown(store.fielddefs, connection.msgtype):
                    store = get_typestore(Stores.EMPTY)
                    store.register({**usual.fielddefs, **own})
            unknown = _unknown(store.fielddefs, connection.msgtype)
        if unknown:
            raise BagError(
                f"{self.path}: the type {unknown} on {connection.topic} is defined neither in the "
                f"bag nor in {self._typestore.value}; give the distribution it was recorded with "
                "by --typestore"
            )
        return store


def _types_from_idl(text: str) -> Any:
    """Return the types of a definition in IDL, whose parts stand under lines of `=`."""
    parts = text.split("=" * 80 + "\n")
    types: Any = {}
    for part in parts:
        header, _, body = part.partition("\n")
        types |= get_types_from_idl(body if header.startswith("IDL: ") else part) if part else {}
    return types


def _unknown(fielddefs: Mapping[str, Any], msgtype: str) -> str | None:
    """Return the first type that a type is made of and that is not defined."""
    if msgtype not in fielddefs:
        return msgtype
    for _, (kind, detail) in fielddefs[msgtype][1]:
        while kind in (Nodetype.ARRAY, Nodetype.SEQUENCE):
            kind, detail = detail[0]
        if kind is Nodetype.NAME and (unknown := _unknown(fielddefs, detail)):
            return unknown
    return None


def find_typestore(name: str) -> Stores:
    """Return the message definitions of a ROS distribution, such as ros2_humble.

    Raises:
        BagError: there is none of that name.
    """
    stores = {store.value: store for store in Stores if store.value.startswith("ros2_")}
    if name not in stores:
        raise BagError(f"unknown typestore {name!r}; there are: {', '.join(stores)}")
    return stores[name]


@contextmanager
def open_bag(path: Path, typestore: Stores = TYPESTORE) -> Iterator[BagReader]:
    """Open a bag, sqlite3 or mcap, as far as it can be read.

    Args:
        path: of its directory, or of a file of it.
        typestore: definitions of types that the bag itself does not define.

    Raises:
        BagError: there is none at `path`, or nothing of it can be read.
    """
    if not path.exists():
        raise BagError(f"{path}: no such bag")
    with ExitStack() as stack:
        with _only_bag_errors(path):
            storage, damage, note = stack.enter_context(open_storage(path))
        yield BagReader(path, storage, damage, note, typestore)


@contextmanager
def _only_bag_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # A file that is cut off or made up raises nearly anything in the parsers beneath.
        raise BagError(f"{path} cannot be read as a ROS 2 bag: {one_line(error)}") from error
