"""Mixtures of experts in a prior's graph: an expert computes the tokens that chose it, and no others.

transformers hands a mixture over as one function of the router's choice, so no architecture has code of its own here.
:func:`of_chosen` and :func:`of_all` are such functions. Both trace one expert, with placeholders for what differs between
experts, because torch takes a second for each: a model has thousands. :func:`unroll` makes the others of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from toedit._graph import Graph

_DOMAIN = "toedit"
_NUMBER, _OF_EXPERT, _SO_FAR, _MIXTURE = "Number", "OfExpert", "SoFar", "Mixture"


def _node(op: str, inputs: list[Any], like: Any, shape: Any, **attributes: Any) -> Any:
    """An ONNX node while tracing, whose result has *shape* and the dtype of *like*."""
    import torch

    return torch.onnx.ops.symbolic(op, inputs, attributes, dtype=like.dtype, shape=tuple(shape), version=23)


def _placeholder(op: str, value: Any, shape: Any) -> Any:
    return _node(f"{_DOMAIN}::{op}", [value], value, shape)


def of_chosen(module: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
    """Each expert computed for the tokens that chose it; the signature is that of transformers' experts functions.

    hidden_states [T, H], top_k_index and top_k_weights [T, K], a token's experts all different; returns [T, H]. How many tokens
    an expert has hangs on the rows that are run together. No bit of a token does: it is a row of a product, and rows of
    products do not know each other as long as there are two. So every expert is given the first token beside those that chose
    it, and that result is dropped. A token's experts are added up in the order of their numbers.
    """
    import torch

    # While tracing all T tokens are chosen: no node asks.
    tokens, width = hidden_states.shape
    so_far = _placeholder(_SO_FAR, torch.zeros_like(hidden_states), hidden_states.shape)
    hit = top_k_index == _placeholder(_NUMBER, top_k_index, ())
    # the tokens that chose the expert, in their order, and in which of their K places
    places = _node("Transpose", [_node("NonZero", [hit], top_k_index, (2, tokens))], top_k_index, (tokens, 2), perm=[1, 0])
    with_first = _node("Concat", [places, torch.zeros((1, 2), dtype=torch.int64)], places, (tokens, 2), axis=0)
    rows = _node("Gather", [with_first, torch.tensor(0)], places, (tokens,), axis=1)
    out = _expert(module, _node("Gather", [hidden_states, rows], hidden_states, (tokens, width), axis=0))
    share = _node("GatherND", [top_k_weights, with_first], top_k_weights, (tokens,))
    out = out * share.unsqueeze(-1).to(out.dtype)
    begin, but_last, column = (torch.tensor([i], dtype=torch.int64) for i in (0, -1, 1))
    out = _node("Slice", [out, begin, but_last, begin], out, (tokens, width))
    chosen = _node("Slice", [places, begin, column, column], places, (tokens, 1))
    total = _node("ScatterND", [so_far, chosen, out], out, (tokens, width), reduction="add")
    return _node(f"{_DOMAIN}::{_MIXTURE}", [total], total, total.shape, experts=module.num_experts)


def of_all(module: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
    """Each expert computed for every token, whose share is 0 where it was not chosen; arguments as in :func:`of_chosen`.

    For a card, which would have the processor wait, expert by expert, to be told a number of rows. It costs the number of
    experts over K as much.
    """
    import torch

    so_far = _placeholder(_SO_FAR, torch.zeros_like(hidden_states), hidden_states.shape)
    hit = top_k_index == _placeholder(_NUMBER, top_k_index, ())
    out = _expert(module, hidden_states)
    total = so_far + out * (top_k_weights * hit).sum(-1, keepdim=True).to(out.dtype)
    return _node(f"{_DOMAIN}::{_MIXTURE}", [total], total, total.shape, experts=module.num_experts)


def _expert(module: Any, rows: Any) -> Any:
    """An expert's output [N, H] for rows [N, H]."""
    import torch

    def of_expert(name: str) -> Any:
        whole = getattr(module, name)
        return _placeholder(_OF_EXPERT, whole, whole.shape[1:])

    def linear(x: Any, name: str) -> Any:
        weight = of_expert(name)
        out = x @ weight if module.is_transposed else torch.nn.functional.linear(x, weight)
        return out + of_expert(f"{name}_bias") if module.has_bias else out

    inner = linear(rows, "gate_up_proj" if module.has_gate else "up_proj")
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    out = linear(inner, "down_proj")
    return module.post_expert_norm(out) if getattr(module, "has_post_expert_norm", False) else out


def unroll(graph: Graph) -> Graph:
    """Put all experts in the place of the one that was traced (changed in place and returned).

    What hangs on a placeholder is an expert's own, and is copied for each: its number and its matrices, which are views of the
    model's, are constants; what it adds to is what the one before left.
    """
    if not any(node.domain == _DOMAIN for node in graph.nodes):
        return graph
    nodes: list[Any] = []
    own: dict[str, Any] = {}  # value -> the node that makes it: a placeholder, or one that hangs on placeholders
    for node in graph.nodes:
        if node.op_type == _MIXTURE and node.domain == _DOMAIN:
            nodes += _copies(graph, own, node)
        elif node.domain == _DOMAIN or any(name in own for name in node.input):
            own.update(dict.fromkeys(node.output, node))
        else:
            nodes.append(node)
    graph.nodes = nodes
    return graph


def _copies(graph: Graph, own: dict[str, Any], mixture: Any) -> list[Any]:
    """The nodes of all experts of one mixture."""
    # The exporter makes equal nodes of two layers one, so that layers may share some.
    needed = set(mixture.input)
    for node in reversed(own.values()):
        if needed.intersection(node.output):
            needed.update(node.input)
    values = {value: node for value, node in own.items() if needed.intersection(node.output)}
    body = [node for value, node in values.items() if node.domain != _DOMAIN and value == node.output[0]]
    experts = next(a.i for a in mixture.attribute if a.name == "experts")
    result = mixture.output[0]
    last: str | None = None
    nodes = []
    for expert in range(experts):
        names = {}
        for value, node in values.items():
            if node.domain != _DOMAIN:
                names[value] = f"{result}.{expert}.{value}"
            elif node.op_type == _NUMBER:
                names[value] = graph.add_constant(f"expert.{expert}", np.array(expert))
            elif node.op_type == _SO_FAR:
                names[value] = last or node.input[0]
            else:
                (whole,) = node.input
                if whole not in graph.weights:
                    raise NotImplementedError(f"experts whose matrices are not parameters of the model ({whole})")
                names[value] = graph.add_constant(f"{whole}.{expert}", graph.weights[whole][expert])
        last = names[mixture.input[0]] if expert < experts - 1 else result
        names[mixture.input[0]] = last
        for node in body:
            copy = type(node)()
            copy.CopyFrom(node)
            copy.input[:] = [names.get(name, name) for name in node.input]
            copy.output[:] = [names.get(name, name) for name in node.output]
            nodes.append(copy)
    return nodes
