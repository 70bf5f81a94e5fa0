"""Causal attention over a long row, a block of queries at a time.

Half of what causal attention multiplies is thrown away: ONNX Runtime's kernel makes all T x T scores of a head and keeps those
that lie before their query. With the queries in n blocks, the i-th against the keys up to its own end, the kernel makes
(n + 1) / 2n of them, and holds one block's at a time. Every row of scores goes through the same kernel and is normalised over
the same keys in the same order, so no bit changes.

A block is a GroupQueryAttention of its own that has the blocks before it as past keys and values, and hands on its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toedit._graph import CONTRIB, Graph

BLOCKS = 8
LONGEST_WHOLE = 256
"""Rows of more positions are cut. Measured on a Zen 4, heads of 64, a layer's attention with 8 blocks against one: 128
positions 0.92 ms and 0.76, 256 2.5 and 2.9, 512 7.0 and 10.4, 1,024 25 and 38, 2,048 91 and 159."""
# With a sink ONNX Runtime takes the kernel that it takes for a whole row, not the tiled one, whose sums follow the tiles. This
# one is so low that it adds exp(-1e30 - max) = 0 to every sum.
_NO_SINK = np.float32(-1e30)
_WANTED = "blocks.wanted"
_SINK = 11  # its place among GroupQueryAttention's inputs


def cut(graph: Graph) -> Graph:
    """Let every GroupQueryAttention of *graph* (changed in place and returned) cut rows that are long and alone in their batch.

    *graph* is a finished one for the CPU, with the value ``context`` int64 [B, T]. The operator takes past keys and values
    of one row only, so runs of several rows stay whole; on the CPU long rows run alone.
    """
    nodes = [n for n in graph.nodes if n.op_type == "GroupQueryAttention" and not any(n.input[3:5]) and len(n.output) == 1]
    if not nodes:
        return graph
    graph.replace([], _shared(graph), nodes[0])
    for node in nodes:
        condition = graph.node(
            "If",
            [_WANTED],
            list(node.output),
            then_branch=_in_blocks(graph, node),
            else_branch=_whole(graph, node),
        )
        graph.replace([node], [condition], node)
    return graph.finish()


def are_in(graph: Graph) -> bool:
    """Whether the attention of a finished graph is cut."""
    return any(output == _WANTED for node in graph.nodes for output in node.output)


def _shared(graph: Graph) -> list[Any]:
    """The nodes whose values all layers read: where blocks end, how long they are and whether they are wanted."""
    from onnx import TensorProto

    node, ints = graph.node, graph.ints
    zero, one, two = ints("i0", 0), ints("i1", 1), ints("i2", 2)
    count, many = ints("blocks.number", BLOCKS), ints("blocks.but_last", BLOCKS - 1)
    nodes = [
        node("Shape", ["context"], ["blocks.shape"]),
        node("Slice", ["blocks.shape", one, two], ["blocks.positions"]),
        node("Slice", ["blocks.shape", zero, one], ["blocks.batch"]),
        node("Greater", ["blocks.positions", ints("blocks.longest_whole", LONGEST_WHOLE)], ["blocks.long"]),
        node("Equal", ["blocks.batch", one], ["blocks.alone"]),
        node("And", ["blocks.long", "blocks.alone"], ["blocks.both"]),
        node("Squeeze", ["blocks.both", zero], [_WANTED]),
        # all of one size, and the last takes the remainder
        node("Div", ["blocks.positions", count], ["blocks.size"]),
        node("Mul", ["blocks.size", many], ["blocks.last_begins"]),
        node("Sub", ["blocks.positions", "blocks.last_begins"], ["blocks.last_size"]),
        node("Expand", ["blocks.size", many], ["blocks.first_sizes"]),
        node("Concat", ["blocks.first_sizes", "blocks.last_size"], ["blocks.sizes"], axis=0),
    ]
    for i in range(BLOCKS):
        end = f"blocks.end_{i}"
        if i < BLOCKS - 1:
            nodes.append(node("Mul", ["blocks.size", ints(f"blocks.times_{i + 1}", i + 1)], [end]))
        else:
            nodes.append(node("Identity", ["blocks.positions"], [end]))
        nodes += [
            node("Squeeze", [end, zero], [f"{end}.scalar"]),
            node("Cast", [f"{end}.scalar"], [f"{end}.total"], to=TensorProto.INT32),
            node("Sub", [end, one], [f"{end}.last"]),
            node("Cast", [f"{end}.last"], [f"{end}.place"], to=TensorProto.INT32),
        ]
    return nodes


def _in_blocks(graph: Graph, node: Any) -> Any:
    """The body for a row that is cut: T queries, keys and values split, attended in turn and put together."""
    stem = node.output[0]
    nodes: list[Any] = []
    parts: list[list[str]] = []
    for source in list(node.input)[:3]:
        pieces = [f"{stem}.{len(parts)}.of_block_{i}" if source else "" for i in range(BLOCKS)]
        if source:
            nodes.append(graph.node("Split", [source, "blocks.sizes"], pieces, axis=1))
        parts.append(pieces)
    more = list(node.input)[7:]
    more += [""] * (_SINK - 7 + 1 - len(more))
    if not more[-1]:
        heads = next(a.i for a in node.attribute if a.name == "num_heads")
        more[-1] = graph.add_constant(f"blocks.no_sink_{heads}", np.full(heads, _NO_SINK))
    past = ["", ""]
    outputs = []
    for i in range(BLOCKS):
        outputs.append(f"{stem}.block_{i}")
        present = [f"{stem}.keys_{i}", f"{stem}.values_{i}"]
        inputs = [*(pieces[i] for pieces in parts), *past, f"blocks.end_{i}.place", f"blocks.end_{i}.total", *more]
        block = graph.node(node.op_type, inputs, [outputs[-1], *present], CONTRIB)
        block.attribute.extend(node.attribute)
        nodes.append(block)
        past = present
    whole = f"{stem}.of_blocks"
    nodes.append(graph.node("Concat", outputs, [whole], axis=1))
    return _body(nodes, whole)


def _whole(graph: Graph, node: Any) -> Any:
    """The body for everything else: *node* as it was."""
    copy = type(node)()
    copy.CopyFrom(node)
    copy.output[0] = f"{node.output[0]}.whole"
    return _body([copy], copy.output[0])


def _body(nodes: list[Any], output: str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_graph(nodes, "attention", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])
