"""The head of a prior's graph, worked in chunks of rows, for vocabularies that are large.

Logits are the largest thing that a language model makes: 8,192 tokens with a vocabulary of 152,000 are 5 GB, and their
log-softmax as much again. A ``Loop`` takes as many rows as fit a limit, multiplies them with the output embedding and keeps
of the product what a prior answers: ln P of the next token and the top k where somebody wants it. Chunks are as equal in rows
as can be, so that no last chunk of a few rows reads the whole embedding for nothing. On the CPU a loop inside that one works
the product in parts that its cache holds. No bit depends on either: all but the product is made row by row, and the product's
rows do not know each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from toedit._graph import Graph

LARGE_VOCAB = 16_384
"""From this size on the head is worked in chunks. Below it, the runs that :class:`toedit.Prior` makes are one chunk."""
LOGITS_BYTES = 128 << 20
"""The most bytes of logits at a time. Every chunk reads the output embedding anew."""
PART_BYTES = 2 << 20
"""The most bytes of logits that what follows the product works on at a time, on the CPU: the row factors of int8 and
the log-softmax read and write each logit six times, and these stay in the processor's cache meanwhile.

Measured on a Zen 5, two threads with a row of 513 tokens each, against chunks of 64 MB without parts: GPT-2 1.04 times as fast
in int8, 1.02 in fp32; one layer and a vocabulary of 152,000 1.11 and 1.11. Parts of 1 to 4 MB differ little, 8 MB gain half.
"""
_ROWS = 8  # chunks are multiples of this: products of fewer rows are slow

# What a loop collects, with element types and numbers of axes: each trip appends its own, which are few beside its logits; how
# many they are is known there only.
_ANSWERS = {"logp": ("FLOAT", 1), "row": ("INT64", 1), "ids": ("INT32", 2), "top": ("FLOAT", 2)}
_NOTHING = ("chunk.empty", "chunk.no_row", "chunk.no_ids", "chunk.no_logp")  # with which it begins
_UNARY = frozenset({"Cast", "Identity", "Tanh"})
_BINARY = frozenset({"Add", "Div", "Mul", "Sub"})


@dataclass
class Head:
    """What lies between the hidden states and the logits."""

    nodes: list[Any] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)
    """The values [B, T, width] that it reads, and their widths."""


def find(graph: Graph) -> Head | None:
    """The head of a graph whose output is ``logits``, or None if something in it is not known to work row by row.

    Known are one product with a constant matrix, biases, scales and soft caps after it, and an int8 product's row factors.
    """
    head, name = Head(), graph.model.graph.output[0].name
    while True:
        node = graph.maker.get(name)
        if node is None or (head.nodes and graph.only_reader(name) is None):
            return None
        head.nodes.insert(0, node)
        if node.op_type in ("MatMul", "MatMulIntegerToFloat"):
            height = graph.rows_of(node.input[1])
            if height is None:
                return None
            head.cuts[node.input[0]] = height
            return head
        if node.op_type in _UNARY:
            name = node.input[0]
            continue
        if node.op_type not in _BINARY:
            return None
        constants = [graph.constant(side) for side in node.input]
        plain = [i for i in (0, 1) if constants[i] is not None and _broadcasts(constants[i])]
        if len(plain) == 1:
            name = node.input[1 - plain[0]]
            continue
        products = [i for i in (0, 1) if getattr(graph.maker.get(node.input[i]), "op_type", "") == "MatMulIntegerToFloat"]
        if plain or node.op_type != "Mul" or len(products) != 1:
            return None
        head.cuts[node.input[1 - products[0]]] = 1
        name = node.input[products[0]]


def _broadcasts(value: Any) -> bool:
    """Whether a constant means the same to rows [R, V] as to [B, T, V]."""
    return bool(value.size == 1 or value.ndim == 1)


def build(graph: Graph, head: Head, vocab: int, logits_bytes: int, part_bytes: int | None) -> list[Any]:
    """The nodes that take the place of *head* and make the outputs ``logp``, ``topk_row``, ``topk_ids`` and ``topk_logp``.

    They read ``targets`` int64 [B, T], ``k``, ``keep_low`` and ``keep_high``. A chunk's logits take *logits_bytes* at most, or
    what 8 rows take, whatever B and T. With *part_bytes* what follows a chunk's product is worked in parts of so many bytes
    at most, or of one row; None is for a card, which has no cache that a part could stay in.
    """
    from onnx import TensorProto

    node, ints = graph.node, graph.ints
    limit = max(_ROWS, logits_bytes // (4 * vocab) // _ROWS * _ROWS)
    zero, last = ints("i0", 0), ints("im1", -1)
    outside = [
        node("Reshape", ["targets", last], ["targets.flat"]),
        *_count(graph, "chunk.all", limit),
        node("Squeeze", ["chunk.all.count", zero], ["chunk.trips"]),
        # [0, k], of no rows: no shape is computed, which a card's kernels would do, and the run wait for it
        node("TopK", ["chunk.no_logprobs", "k"], ["chunk.no_logp", "chunk.no_indices"], axis=-1),
        node("Cast", ["chunk.no_indices"], ["chunk.no_ids"], to=TensorProto.INT32),
    ]
    graph.add_constant("chunk.no_logprobs", np.zeros((0, vocab), dtype=np.float32))
    graph.add_constant(_NOTHING[0], np.zeros(0, dtype=np.float32))
    graph.add_constant(_NOTHING[1], np.zeros(0, dtype=np.int64))
    flat = {"targets": "targets.flat"}
    for name, width in head.cuts.items():
        flat[name] = f"{name}.rows"
        outside.append(node("Reshape", [name, ints(f"chunk.rows_of_{width}", -1, width)], [flat[name]]))
    of_chunk, multiple = {name: f"{name}.chunk" for name in flat}, ints("chunk.multiple", _ROWS)
    inside = [
        # As few chunks as the limit allows, and all of one size. That is reckoned anew in each: what CUDA's provider gets from
        # outside the body it takes for a value on the card, and would compute with there.
        *_count(graph, "chunk", limit),
        node("Add", ["chunk.total", "chunk.count"], ["chunk.share"]),
        node("Sub", ["chunk.share", ints("i1", 1)], ["chunk.share.up"]),
        node("Div", ["chunk.share.up", "chunk.count"], ["chunk.least"]),
        node("Add", ["chunk.least", ints("chunk.below", _ROWS - 1)], ["chunk.least.up"]),
        node("Div", ["chunk.least.up", multiple], ["chunk.multiples"]),
        node("Mul", ["chunk.multiples", multiple], ["chunk.rows"]),
        *_span(graph, "chunk", "chunk.rows"),
        *(node("Slice", [flat[name], "chunk.start", "chunk.end", zero], [of_chunk[name]]) for name in flat),
    ]
    if part_bytes is None:
        inside += renamed(head.nodes, of_chunk)
        inside += [
            *_answers(graph, head.nodes[-1].output[0], of_chunk["targets"], "chunk.start", on_card=True),
            *_append(graph, "chunk", "new"),
        ]
    else:
        inside += _in_parts(graph, head, of_chunk, max(1, part_bytes // (4 * vocab)))
    return [
        *outside,
        _loop(graph, "chunk", inside, ["logp.flat", "topk_row", "topk_ids", "topk.all"]),
        node("Shape", ["targets"], ["targets.shape"]),
        node("Reshape", ["logp.flat", "targets.shape"], ["logp"]),
        node("Cast", ["topk.all"], ["topk.half"], to=TensorProto.FLOAT16),
        node("Cast", ["topk.half"], ["topk_logp"], to=TensorProto.FLOAT),
    ]


def _in_parts(graph: Graph, head: Head, of_chunk: dict[str, str], rows: int) -> list[Any]:
    """The nodes of a chunk's body whose product is whole and the rest of *head* a loop over parts of *rows* rows.

    *of_chunk* names what the body has of the values that *head* reads, and of the targets.
    """
    node, zero = graph.node, graph.ints("i0", 0)
    product, *after = head.nodes
    cut = {name: value for name, value in of_chunk.items() if name != product.input[0]}
    cut[product.output[0]] = product.output[0]
    of_part = {name: f"{name}.part" for name in cut}
    logits = head.nodes[-1].output[0]
    size, below = graph.ints("part.rows", rows), graph.ints("part.below", rows - 1)
    body = [
        *_span(graph, "part", size),
        node("Add", ["part.start", "chunk.start"], ["part.first"]),
        *(node("Slice", [value, "part.start", "part.end", zero], [of_part[name]]) for name, value in cut.items()),
        *renamed(after, of_part),
        *_answers(graph, of_part.get(logits, logits), of_part["targets"], "part.first", on_card=False),
        *_append(graph, "part", "new"),
    ]
    return [
        *renamed([product], of_chunk),
        node("Shape", [of_chunk["targets"]], ["part.total"]),
        node("Add", ["part.total", below], ["part.total.up"]),
        node("Div", ["part.total.up", size], ["part.count"]),
        node("Squeeze", ["part.count", zero], ["part.trips"]),
        _loop(graph, "part", body, [f"part.{name}" for name in _ANSWERS]),
        *_append(graph, "chunk", "part"),
    ]


def _count(graph: Graph, stem: str, limit: int) -> list[Any]:
    """The nodes that make ``<stem>.total``, the rows of ``targets.flat``, and ``<stem>.count``, how many chunks they make."""
    return [
        graph.node("Shape", ["targets.flat"], [f"{stem}.total"]),
        graph.node("Add", [f"{stem}.total", graph.ints("chunk.limit_below", limit - 1)], [f"{stem}.total.up"]),
        graph.node("Div", [f"{stem}.total.up", graph.ints("chunk.limit", limit)], [f"{stem}.count"]),
    ]


def _span(graph: Graph, level: str, rows: str) -> list[Any]:
    """The nodes that make ``<level>.start`` and ``.end``, of a trip that takes *rows* rows behind those answered before.

    Not of the trip's index: CUDA's provider would compute with it on the card, and wait for what comes of it. Shapes it knows.
    """
    return [
        graph.node("Shape", [f"{level}.logp.before"], [f"{level}.start"]),
        graph.node("Add", [f"{level}.start", rows], [f"{level}.end"]),
    ]


def renamed(nodes: list[Any], names: dict[str, str]) -> list[Any]:
    """Copies of *nodes* that read values by other names."""
    copies = []
    for node in nodes:
        copy = type(node)()
        copy.CopyFrom(node)
        for i, name in enumerate(copy.input):
            copy.input[i] = names.get(name, name)
        copies.append(copy)
    return copies


def inside_any(graph: Graph, *, on_card: bool) -> list[Any]:
    """The nodes that make ``wanted`` [R] of ``inside`` [R, ranges]."""
    from onnx import TensorProto

    # CUDA's provider asks cuDNN for the largest of whole numbers; sums of float32 it makes itself, and counts are exact in it.
    element, reduction = (TensorProto.FLOAT, "ReduceSum") if on_card else (TensorProto.INT32, "ReduceMax")
    return [
        graph.node("Cast", ["inside"], ["inside.number"], to=element),
        graph.node(reduction, ["inside.number", graph.ints("im1", -1)], ["wanted.number"], keepdims=0),
        graph.node("Cast", ["wanted.number"], ["wanted"], to=TensorProto.BOOL),
    ]


def _answers(graph: Graph, logits: str, targets: str, first: str, *, on_card: bool) -> list[Any]:
    """The nodes that make ``new.<answer>`` of *logits* [R, V] and *targets* [R]; the first row is the run's row *first*."""
    from onnx import TensorProto

    node, zero, last = graph.node, graph.ints("i0", 0), graph.ints("im1", -1)
    return [
        node("LogSoftmax", [logits], ["logprobs"], axis=-1),
        node("Unsqueeze", [targets, last], ["targets.column"]),
        node("GatherElements", ["logprobs", "targets.column"], ["logp.column"], axis=1),
        node("GreaterOrEqual", ["logp.column", "keep_low"], ["above"]),
        node("LessOrEqual", ["logp.column", "keep_high"], ["below"]),
        node("And", ["above", "below"], ["inside"]),
        *inside_any(graph, on_card=on_card),
        node("NonZero", ["wanted"], ["wanted.rows"]),
        node("Squeeze", ["wanted.rows", zero], ["wanted.row"]),
        # TopK of the wanted rows alone, though they are copied for it: with a quarter of the rows wanted that is 3 times as
        # fast as TopK of all, with half 1.5 times, with nine tenths as fast. All wanted, the copy adds an eighth in a part,
        # which the cache holds: at most 1 % of a run (GPT-2's head and one of 151,936 ids, k = 64), too little for a choice.
        node("Gather", ["logprobs", "wanted.row"], ["logprobs.wanted"], axis=0),
        node("TopK", ["logprobs.wanted", "k"], ["new.top", "topk.indices"], axis=-1, largest=1, sorted=1),
        node("Cast", ["topk.indices"], ["new.ids"], to=TensorProto.INT32),
        node("Squeeze", ["logp.column", last], ["new.logp"]),
        node("Add", ["wanted.row", first], ["new.row"]),
    ]


def _append(graph: Graph, level: str, source: str) -> list[Any]:
    """The nodes that end a trip of a loop: *source*'s answers behind those of the trips before."""
    return [
        graph.node("Concat", [f"{level}.{name}.before", f"{source}.{name}"], [f"{level}.{name}.after"], axis=0)
        for name in _ANSWERS
    ]


def _loop(graph: Graph, level: str, nodes: list[Any], outputs: list[str]) -> Any:
    """A loop of ``<level>.trips`` trips over *nodes*, which append to the answers; *outputs* name them at the end."""
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info

    def answers(when: str) -> list[Any]:
        return [
            value(f"{level}.{name}.{when}", getattr(TensorProto, kind), [None] * axes)
            for name, (kind, axes) in _ANSWERS.items()
        ]

    body = helper.make_graph(
        [*nodes, graph.node("Identity", [f"{level}.go"], [f"{level}.go_on"])],
        level,
        [value(f"{level}.index", TensorProto.INT64, []), value(f"{level}.go", TensorProto.BOOL, []), *answers("before")],
        [value(f"{level}.go_on", TensorProto.BOOL, []), *answers("after")],
    )
    return graph.node("Loop", [f"{level}.trips", "", *_NOTHING], outputs, body=body)
