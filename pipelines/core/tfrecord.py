"""TFRecord files and the `tf.train.Example` messages in them, without TensorFlow, whose import takes seconds.

A record is the length of its data in 8 bytes, the masked CRC-32C of the length, the data, and the masked CRC-32C of the data
(https://www.tensorflow.org/tutorials/load_data/tfrecord). An Example is protobuf: Features, a map from names to Feature.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import google_crc32c
import numpy as np
from numpy.typing import NDArray

BYTES, FLOAT, INTEGER = 1, 2, 3  # kinds of features: the field numbers of `bytes_list` and so on in a Feature

HEADER_BYTES, _FOOTER = 12, 4  # around the data of a record
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_LONGEST_VARINT = 10  # bytes
_FLOAT_BYTES = 4


class Feature(NamedTuple):
    """Where the first value of a feature is in the buffer, and whether it is the only one. For numbers, `stop` is the end of the list."""

    kind: int
    start: int
    stop: int
    single: bool


def checksum(data: Any) -> int:
    """Return the masked CRC-32C of bytes."""
    crc = google_crc32c.value(data)
    masked: int = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked


def write_record(file: BinaryIO, data: bytes) -> None:
    """Write one record."""
    length = struct.pack("<Q", len(data))
    for part in (length, data):
        file.write(part)
        file.write(struct.pack("<I", checksum(part)))


def is_header(data: bytes) -> bool:
    """Return whether bytes start with the length of a record and its checksum."""
    return len(data) >= HEADER_BYTES and checksum(data[:8]) == struct.unpack_from("<I", data, 8)[0]


def records(data: Any, at: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the data of each record from byte `at` of a buffer; ValueError if it is not a TFRecord.

    The checksum of the data is not checked, so that the data need not be read.
    """
    while at < len(data):
        header = bytes(data[at : at + HEADER_BYTES])
        start = at + HEADER_BYTES
        if not is_header(header):
            raise ValueError(f"no record starts at byte {at}: the checksum of its length does not match")
        stop = start + struct.unpack_from("<Q", header)[0]
        if record_end(stop) > len(data):
            raise ValueError(
                f"the record at byte {at} should end at byte {record_end(stop)}, but there are {len(data)} bytes"
            )
        yield start, stop
        at = record_end(stop)


def record_end(stop: int) -> int:
    """Return the end of a record whose data ends at `stop`."""
    return stop + _FOOTER


def read_record(file: BinaryIO, file_bytes: int) -> tuple[bytes, bool]:
    """Read the record at the current position of a file that has `file_bytes` bytes.

    Returns:
        Its data, and whether they match their checksum.

    Raises:
        ValueError: No whole record starts there.
    """
    header = file.read(HEADER_BYTES)
    if not is_header(header):
        raise ValueError("no record starts here")
    length = struct.unpack_from("<Q", header)[0]
    if length > file_bytes:
        raise ValueError(f"a record of {length} bytes does not fit the file")
    data, footer = file.read(length), file.read(_FOOTER)
    if len(data) + len(footer) != length + _FOOTER:
        raise ValueError(f"the file ends inside a record of {length} bytes")
    return data, checksum(data) == struct.unpack("<I", footer)[0]


def features(data: Any, start: int, stop: int) -> dict[str, Feature]:
    """Return the features of the Example from `start` to `stop` that have a value; ValueError if it is not an Example."""
    found = {}
    for number, first, last in _fields(data, start, stop):
        if number == 1:  # Features
            for inner, left, right in _fields(data, first, last):
                if inner == 1:  # an entry of the map
                    name, feature = _entry(data, left, right)
                    if feature:
                        found[name] = feature
    return found


def integer(data: Any, feature: Feature) -> int:
    """Return the first integer of a feature, signed."""
    value, _ = _varint_at(data, feature.start, feature.stop)
    return value - 2**64 if value >= 2**63 else value


def integers(data: Any, feature: Feature | None) -> NDArray[np.int64]:
    """Return the packed integers of a feature, signed, without values if it is None; ValueError if it is of another kind."""
    numbers: list[int] = []
    if feature is not None:
        at = _checked(feature, INTEGER).start
        while at < feature.stop:
            value, at = _varint_at(data, at, feature.stop)
            numbers.append(value - 2**64 if value >= 2**63 else value)
    return np.array(numbers, np.int64)


def floats(data: Any, feature: Feature | None) -> NDArray[np.float32]:
    """Return the packed floats of a feature, without values if it is None; ValueError if it is of another kind."""
    packed = b"" if feature is None else bytes(data[_checked(feature, FLOAT).start : feature.stop])
    return np.frombuffer(packed, "<f4")


def _checked(feature: Feature, kind: int) -> Feature:
    if feature.kind != kind:
        raise ValueError(f"the feature at byte {feature.start} is of kind {feature.kind}, not {kind}")
    return feature


def values(data: Any, start: int, stop: int, names: Collection[str]) -> dict[str, Any]:
    """Return all values of some features of an Example: one value, or a list of several; ValueError if it is not an Example."""
    found: dict[str, Any] = {}
    for _, first, last in (each for each in _fields(data, start, stop) if each[0] == 1):
        for _, left, right in (each for each in _fields(data, first, last) if each[0] == 1):
            parts = {number: (begin, end) for number, begin, end in _fields(data, left, right)}
            if 1 not in parts or 2 not in parts:
                continue
            name = bytes(data[slice(*parts[1])]).decode()
            if name in names:
                items = [
                    item for kind, begin, end in _fields(data, *parts[2]) for item in _list(data, kind, begin, end)
                ]
                found[name] = items[0] if len(items) == 1 else items
    return found


def _list(data: Any, kind: int, start: int, stop: int) -> Iterator[bytes | int | float]:
    """Yield the values of a list of a kind; numbers may be packed."""
    for number, first, last in _fields(data, start, stop):
        if number != 1:
            continue
        if kind == BYTES:
            yield bytes(data[first:last])
        elif kind == FLOAT:
            if (last - first) % _FLOAT_BYTES:
                raise ValueError(f"the floats at byte {first} have {last - first} bytes")
            yield from struct.unpack(f"<{(last - first) // _FLOAT_BYTES}f", bytes(data[first:last]))
        elif kind == INTEGER:
            at = first
            while at < last:
                value, at = _varint_at(data, at, last)
                yield value - 2**64 if value >= 2**63 else value


def _entry(data: Any, start: int, stop: int) -> tuple[str, Feature | None]:
    name, feature = "", None
    for number, first, last in _fields(data, start, stop):
        if number == 1:
            name = bytes(data[first:last]).decode()
        elif number == 2:
            feature = _first_value(data, first, last)
    return name, feature


def _first_value(data: Any, start: int, stop: int) -> Feature | None:
    for kind, first, last in _fields(data, start, stop):
        if kind in (BYTES, FLOAT, INTEGER):
            fields = _fields(data, first, last)
            values = [
                (left, right) for number, left, right in fields if number == 1 and (kind == BYTES or right > left)
            ]
            if values:
                left, right = values[0]
                end = _varint_at(data, left, right)[1] if kind == INTEGER else left + _FLOAT_BYTES
                return Feature(kind, left, right, len(values) == 1 and (kind == BYTES or end == right))
    return None


def _fields(data: Any, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield the fields of a message as (number, where its value starts, where it ends)."""
    while at < stop:
        tag, at = _varint_at(data, at, stop)
        number, wire = tag >> 3, tag & 7
        start = at
        if wire == _LENGTH:
            length, start = _varint_at(data, at, stop)
            at = start + length
        elif wire == _VARINT:
            _, at = _varint_at(data, at, stop)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire} at byte {at}")
        if at > stop:
            raise ValueError(f"the field at byte {start} extends past its message, which ends at byte {stop}")
        yield number, start, at


def _varint_at(data: Any, at: int, stop: int) -> tuple[int, int]:
    """Read a varint: seven bits a byte, the low ones first. Return it and where it ends."""
    value = 0
    for position in range(at, min(stop, at + _LONGEST_VARINT)):
        byte = int(data[position])
        value |= (byte & 0x7F) << 7 * (position - at)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + 1
    raise ValueError(f"the number at byte {at} extends past its message")


Value: TypeAlias = bytes | int | Sequence[int] | Sequence[float] | NDArray[np.float32]
"""The value of a feature, or its numbers; an array where there may be none."""


def make_example(values: Mapping[str, Value]) -> bytes:
    """Serialize an Example with these features, in this order; an integer of 2**63 or more wraps around.

    Protobuf's own serializers promise no order, and an image must be at the same offset in every record.
    """
    entries = [_field(1, _field(1, name.encode()) + _field(2, _feature(value))) for name, value in values.items()]
    return _field(1, b"".join(entries))


def _feature(value: Value) -> bytes:
    if isinstance(value, bytes):
        return _field(BYTES, _field(1, value))
    if isinstance(value, int):
        return _field(INTEGER, _field(1, _varint(value % 2**64)))
    if isinstance(value, np.ndarray):
        return _field(FLOAT, _field(1, value.astype("<f4").tobytes()))
    if any(isinstance(number, float) for number in value):
        return _field(FLOAT, _field(1, struct.pack(f"<{len(value)}f", *value)))
    return _field(INTEGER, _field(1, b"".join(_varint(int(number) % 2**64) for number in value)))


def _field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | _LENGTH]) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])
