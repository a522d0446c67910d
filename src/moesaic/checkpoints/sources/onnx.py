"""The weights of an ONNX file, without the onnx package: enough of protobuf's wire format to walk a graph."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GRAPH, NODE, INITIALIZER = 7, 1, 5
INPUT, NODE_NAME, OPERATION = 1, 3, 4
DIMS, DATA_TYPE, TENSOR_NAME, RAW_DATA = 1, 2, 8, 9
"""Field numbers of ModelProto, GraphProto, NodeProto and TensorProto."""
FLOAT = 1


@dataclass(frozen=True)
class Graph:
    """The stored arrays of a graph.

    Args:
        initializers: by name. weights: the second operand of each matrix multiplication, by the node's name.
    """

    initializers: dict[str, np.ndarray[Any, Any]]
    weights: dict[str, np.ndarray[Any, Any]]


def read_graph(path: Path) -> Graph:
    """Map the file and return its float32 arrays; none is copied."""
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    (graph,) = _all(data, GRAPH)
    initializers = {
        _text(tensor, TENSOR_NAME): _array(tensor)
        for tensor in _all(graph, INITIALIZER)
        if (DATA_TYPE, FLOAT) in _fields(tensor)
    }
    weights = {}
    for node in _all(graph, NODE):
        if _text(node, OPERATION) == "MatMul" and (operand := bytes(_all(node, INPUT)[1]).decode()) in initializers:
            weights[_text(node, NODE_NAME)] = initializers[operand]
    return Graph(initializers, weights)


def _array(tensor: memoryview) -> np.ndarray[Any, Any]:
    shape = [value for number, value in _fields(tensor) if number == DIMS and isinstance(value, int)]
    return np.frombuffer(_all(tensor, RAW_DATA)[0], dtype="<f4").reshape(shape)


def _all(message: memoryview, field: int) -> list[memoryview]:
    return [value for number, value in _fields(message) if number == field and not isinstance(value, int)]


def _text(message: memoryview, field: int) -> str:
    return b"".join(bytes(value) for value in _all(message, field)).decode()


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Walk one message: (field number, whole number or bytes)."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            size, position = _varint(message, position)
        yield key >> 3, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position
