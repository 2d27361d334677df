"""What a `.tflite` holds, counted: operators, and in which numbers its matrix products are computed. Standard library only.

In: the bytes of a file. Out: counts of one signature, as all signatures of a file hold the same products.

| a product is | when |
|---|---|
| `int8` | both factors and the result are 8-bit integers |
| `dynamic` | one factor is stored in int8 and the other float: LiteRT quantizes it while running and multiplies in int8 |
| `float` | anything else |
"""

from __future__ import annotations

from dataclasses import dataclass

from tfpipeline.edge import flat

_PRODUCTS = {9: "FULLY_CONNECTED", 126: "BATCH_MATMUL"}
_NAMES = {
    0: "ADD", 2: "CONCATENATION", 6: "DEQUANTIZE", 7: "EMBEDDING_LOOKUP", 9: "FULLY_CONNECTED", 18: "MUL", 22: "RESHAPE", 25: "SOFTMAX", 32: "CUSTOM",
    36: "GATHER", 39: "TRANSPOSE", 40: "MEAN", 41: "SUB", 45: "STRIDED_SLICE", 47: "EXP", 49: "SPLIT", 53: "CAST", 65: "SLICE", 76: "RSQRT",
    77: "SHAPE", 83: "PACK", 92: "SQUARE", 99: "SQUARED_DIFFERENCE", 114: "QUANTIZE", 126: "BATCH_MATMUL", 128: "CUMSUM", 150: "GELU",
}  # fmt: skip
_FLOAT, _INT8 = 0, 9
_SIGNATURES, _SUBGRAPHS, _CODES = 7, 2, 1


@dataclass(frozen=True)
class Product:
    """One matrix product.

    Attributes:
        kind: `int8`, `dynamic` or `float`.
        operator: FULLY_CONNECTED or BATCH_MATMUL.
        output: name of its result in the graph.
    """

    kind: str
    operator: str
    output: str


def signatures(data: bytes) -> dict[str, int]:
    """Subgraph of each signature, in the order of the file."""
    return {signature.text(2): signature.number(4) for signature in flat.root(data).tables(_SIGNATURES)}


def inputs(data: bytes, subgraph: int = 0) -> list[str]:
    """Names that signatures give to the inputs of a subgraph, in the subgraph's order."""
    model = flat.root(data)
    order = model.tables(_SUBGRAPHS)[subgraph].numbers(1)
    for signature in model.tables(_SIGNATURES):
        if signature.number(4) == subgraph:
            names = {item.number(1): item.text(0) for item in signature.tables(0)}
            return [names[tensor] for tensor in order]
    return []


def operators(data: bytes, subgraph: int = 0) -> dict[str, int]:
    """How often each operator occurs in one subgraph, most frequent first; custom ones by their own name."""
    model = flat.root(data)
    names = [_operator_name(code) for code in model.tables(_CODES)]
    counts: dict[str, int] = {}
    for operator in model.tables(_SUBGRAPHS)[subgraph].tables(3):
        name = names[operator.number(0)]
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def products(data: bytes, subgraph: int = 0) -> list[Product]:
    """The matrix products of one subgraph, in the order in which they run."""
    model = flat.root(data)
    codes = [_code(code) for code in model.tables(_CODES)]
    graph = model.tables(_SUBGRAPHS)[subgraph]
    tensors = graph.tables(0)
    found = []
    for operator in graph.tables(3):
        code = codes[operator.number(0)]
        if code in _PRODUCTS:
            result = tensors[operator.numbers(2)[0]]
            first, second = (tensors[index].number(1, "b") for index in operator.numbers(1)[:2])
            integers = [tensor == _INT8 for tensor in (first, second, result.number(1, "b"))]
            kind = "int8" if all(integers) else "dynamic" if any(integers[:2]) else "float"
            found.append(Product(kind, _PRODUCTS[code], result.text(3)))
    return found


def count_products(data: bytes, subgraph: int = 0) -> dict[str, int]:
    """`{"int8": n, "dynamic": n, "float": n}`."""
    kinds = [product.kind for product in products(data, subgraph)]
    return {kind: kinds.count(kind) for kind in ("int8", "dynamic", "float")}


def _code(code: flat.Table) -> int:
    # Codes up to 127 were a byte once; both fields are still written.
    return max(code.number(0, "b"), code.number(3, "i"))


def _operator_name(code: flat.Table) -> str:
    return code.text(1) or _NAMES.get(_code(code), f"operator {_code(code)}")
