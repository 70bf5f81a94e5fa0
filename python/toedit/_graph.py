"""From a Hugging Face causal language model to the ONNX graph of a prior (graph version 1).

Three steps, each a function on its own:

* :func:`trace` exports the model as it is, ``ids [B, T] -> logits [B, T, V]``. Attention goes through one attention function
  registered with transformers, so no architecture has code of its own here.
* :func:`pack_attention` folds the rotary embedding and the three projections in front of an attention node into that node,
  where the pattern is there; other graphs stay as they are.
* :func:`add_outputs` turns logits into what a prior answers: the log-probability of every next token and, at the positions
  that are asked for, the top k. Logits never leave the graph.

Each works on a :class:`Graph`: nodes as the ``onnx`` package has them and weights as NumPy arrays beside them, which are the
model's own memory where nothing changes them. torch, transformers and onnx are imported where they are used; they come with the
extra ``[export]``.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from toedit import _chunks, _experts

GRAPH_VERSION = 1
OPSET = 23
CONTRIB = "com.microsoft"

_INTERFACE = "toedit_export"
# In a file beside the model's: weights of a kilobyte or more, at multiples of a cache line.
_SMALL, _ALIGNMENT = 1024, 64


# ---------------------------------------------------------------------------------------------------------------------
# tracing


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Any = None,
    **_: Any,
) -> tuple[Any, None]:
    """Causal attention as one ONNX node; the signature is that of transformers' attention functions.

    query [B, N, T, H], key and value [B, N_kv, T, H or H_v]; returns [B, T, N, H_v]. There is no mask: a causal row that is
    padded on the right never sees its padding.
    """
    import torch

    batch, heads, length, size = query.shape
    kv_heads, value_size = key.shape[1], value.shape[3]
    scale = float(size**-0.5 if scaling is None else scaling)
    if getattr(module, "is_causal", True) is False:
        raise NotImplementedError("attention that is not causal")
    if value_size == size and size % 8 == 0:
        attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": scale}
        if sliding_window is not None:
            attributes["local_window_size"] = int(sliding_window)
        if softcap is not None:
            attributes["softcap"] = float(softcap)
        last = torch.zeros((batch,), dtype=torch.int32) + (length - 1)
        total = torch.scalar_tensor(length, dtype=torch.int32)
        inputs = [
            query.transpose(1, 2).reshape(batch, length, heads * size),
            key.transpose(1, 2).reshape(batch, length, kv_heads * size),
            value.transpose(1, 2).reshape(batch, length, kv_heads * size),
            *(None, None, last, total),
        ]
        if s_aux is not None:  # attention sinks: GroupQueryAttention's twelfth input
            inputs += [None, None, None, None, s_aux]
        # No present_key/present_value outputs: nothing reads a cache, and with them ONNX Runtime takes its tiled kernel, which
        # is slower for these shapes and need not give a row the same bits at another padded length.
        out = torch.onnx.ops.symbolic(
            f"{CONTRIB}::GroupQueryAttention",
            inputs,
            attributes,
            dtype=query.dtype,
            shape=(batch, length, heads * size),
            version=1,
        )
        return out.reshape(batch, length, heads, size), None
    if sliding_window is not None or s_aux is not None:
        raise NotImplementedError("a sliding window or attention sinks with heads of unequal sizes")
    out = torch.onnx.ops.symbolic(
        "Attention",
        [query, key, value],
        {"is_causal": 1, "scale": scale, "softcap": float(softcap or 0.0)},
        dtype=query.dtype,
        shape=(batch, heads, length, value_size),
        version=OPSET,
    )
    return out.transpose(1, 2), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The mask function that belongs to :func:`_attention`."""


@contextlib.contextmanager
def _own_functions(model: Any, fused: bool, choose: bool) -> Iterator[None]:
    """Inside the block *model* attends through :func:`_attention` (or, not *fused*, as it is written), and its experts go
    through a function of :mod:`toedit._experts`, where its architecture can."""
    from transformers import AttentionInterface
    from transformers.integrations.moe import ExpertsInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(_INTERFACE, _attention)
    AttentionMaskInterface.register(_INTERFACE, _no_mask)
    ExpertsInterface.register(_INTERFACE, _experts.of_chosen if choose else _experts.of_all)
    before = model.config._attn_implementation
    experts = getattr(model.config, "_experts_implementation", None)
    # Architectures that do not use the interface (ALiBi, GPT-J, Falcon) are traced with the attention written in them.
    fused = fused and getattr(model, "_supports_attention_backend", False)
    model.set_attn_implementation(_INTERFACE if fused else "eager")
    if not fused:
        model.config._attn_implementation = "eager"  # Falcon's own setter puts sdpa in its place
    mixed = model._can_set_experts_implementation()
    if mixed:
        model.set_experts_implementation(_INTERFACE)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.config._attn_implementation = before
        if mixed:
            model.set_experts_implementation(experts)


def trace(model: Any, *, fused: bool = True, choose: bool = True) -> Graph:
    """Export *model* (a transformers causal LM, evaluation mode, on the CPU).

    Returns a graph with input ``context`` int64 [B, T] and output ``logits`` float32 [B, T, V], whose weights are the memory of
    the model's. *fused*: with one node for attention, where the architecture can; otherwise with the attention that is written
    in it. *choose*: with experts that compute the tokens that chose them; otherwise all.
    """
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, context: Any) -> Any:
            batch, length = context.shape
            # expanded to the batch: the rotary operator refuses position ids that broadcast
            positions = torch.arange(length).unsqueeze(0).expand(batch, length)
            return self.model(input_ids=context, position_ids=positions, use_cache=False).logits.float()

    dims = {"context": {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}}
    with _own_functions(model, fused, choose), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Logits().eval(),
            (torch.zeros(2, 9, dtype=torch.int64),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["context"],
            output_names=["logits"],
            dynamic_shapes=dims,
            verbose=False,
        )
    assert program is not None  # None is what the exporter of before returned
    # A protobuf with the weights in it would be a copy of them.
    initializers: Any = program.model.graph.initializers
    weights = {name: value.const_value.numpy() for name, value in initializers.items()}
    initializers.clear()
    return _experts.unroll(Graph(program.model_proto, weights))


# ---------------------------------------------------------------------------------------------------------------------
# a small view of a graph for rewriting


class Graph:
    """Who makes a value, who reads it, and what the constants are; rewriting through it keeps these tables true.

    *model* is an ``onnx.ModelProto``, which the graph keeps, without its nodes and weights. Those in it are taken out of it;
    *weights* holds others. :meth:`proto` puts all together again.
    """

    def __init__(self, model: Any, weights: dict[str, np.ndarray[Any, Any]] | None = None) -> None:
        from onnx import numpy_helper

        self.model = model
        self._nodes: list[Any] = list(model.graph.node)
        self.weights: dict[str, np.ndarray[Any, Any]] = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        self.weights |= weights or {}
        del model.graph.node[:]
        del model.graph.initializer[:]
        self._begin()
        self.index()

    def copy(self) -> Graph:
        """Nodes of its own, the same weights: a step that changes the one leaves the other."""
        model = type(self.model)()
        model.CopyFrom(self.model)
        model.graph.node.extend(self.nodes)
        return Graph(model, self.weights)

    def _begin(self) -> None:
        """Names that a step gives are its own: what it adds does not hang on which steps came before."""
        self._added: set[str] = set()
        self._fresh: Counter[str] = Counter()

    @property
    def nodes(self) -> list[Any]:
        """In an order in which each comes after all that it reads. After a change to the list itself call :meth:`index`."""
        if self._gone or self._before:
            self._nodes = [node for at in self._nodes for node in self._in_place_of(at)]
            self._gone.clear()
            self._before.clear()
        return self._nodes

    @nodes.setter
    def nodes(self, nodes: list[Any]) -> None:
        self._nodes = nodes
        self.index()

    def index(self) -> None:
        """Rebuild the tables from the list of nodes."""
        # What replace() has yet to do to the list: nodes that are no longer in it, and those that come before a node, by id. It
        # is done when somebody asks for the list: a mixture has thousands of nodes to replace and a list of a hundred thousand.
        self._gone: dict[int, Any] = {}
        self._before: dict[int, list[Any]] = {}
        self.maker: dict[str, Any] = {}
        self.readers: dict[str, list[Any]] = {}
        for node in self._nodes:
            self._enter(node)
        self.outputs = {o.name for o in self.model.graph.output}

    def _enter(self, node: Any) -> None:
        for name in filter(None, node.output):
            self.maker[name] = node
        for name in filter(None, node.input):
            self.readers.setdefault(name, []).append(node)

    def _in_place_of(self, node: Any) -> Iterator[Any]:
        for new in self._before.get(id(node), ()):
            yield from self._in_place_of(new)
        if id(node) not in self._gone:
            yield node

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """The value of *name* if it is constant, else None."""
        if name in self.weights:
            return self.weights[name]
        node = self.maker.get(name)
        if node is not None and node.op_type == "Constant":
            from onnx import numpy_helper

            for attribute in node.attribute:
                if attribute.name == "value":
                    value: np.ndarray[Any, Any] = numpy_helper.to_array(attribute.t)
                    return value
        return None

    def rows_of(self, name: str) -> int | None:
        """K of a constant matrix [K, N], through a transposition if need be, else None."""
        value = self.constant(name)
        if value is not None:
            return int(value.shape[0]) if value.ndim == 2 else None
        node = self.maker.get(name)
        if node is None or node.op_type != "Transpose":
            return None
        value = self.constant(node.input[0])
        return int(value.shape[1]) if value is not None and value.ndim == 2 else None

    def add_constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        """Add a weight; the name is made unique. Equal ones that a step adds by one name are shared."""
        if name in self._added:
            known = self.weights[name]
            if known.dtype == value.dtype and np.array_equal(known, value):
                return name
        while name in self.weights:
            name = self.fresh(name)
        self._added.add(name)
        self.weights[name] = value
        return name

    def ints(self, name: str, *values: int) -> str:
        """Add an int64 vector."""
        return self.add_constant(name, np.array(values, dtype=np.int64))

    def fresh(self, stem: str) -> str:
        """A value name that is not in use."""
        self._fresh[stem] += 1
        return f"{stem}.{self._fresh[stem]}"

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> Any:
        """Make a node (it is not put into the graph)."""
        from onnx import helper

        return helper.make_node(op, inputs, outputs, domain=domain, **attributes)

    def only_reader(self, name: str) -> Any:
        """The single reader of a value that is no output of the graph, or None."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def replace(self, old: Iterable[Any], new: Sequence[Any], before: Any) -> None:
        """Take nodes out and put others in the place of *before*, which must come after all that they read."""
        for node in old:
            self._gone[id(node)] = node
            for name in node.output:
                self.maker.pop(name, None)
            for name in set(node.input):
                if name:
                    self.readers[name] = [reader for reader in self.readers[name] if reader is not node]
        for node in new:
            self._enter(node)
        self._before.setdefault(id(before), []).extend(new)

    def prune(self) -> set[str]:
        """Drop the nodes that nothing reads; returns the names of the values that are left."""
        needed = {o.name for o in self.model.graph.output}
        kept: list[Any] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(_reads(node))
        self.nodes = kept[::-1]
        return needed

    def finish(self) -> Graph:
        """End a step: drop what nothing reads and every trace of where the graph was made; returns the graph."""
        needed = self.prune()
        _number(self.nodes)
        self.weights = {name: value for name, value in self.weights.items() if name in needed}
        self._begin()
        model, graph = self.model, self.model.graph
        del graph.value_info[:]
        del graph.metadata_props[:]
        graph.name = "prior"
        graph.doc_string = ""
        for value in [*graph.input, *graph.output]:
            value.doc_string = ""
            del value.metadata_props[:]
        del model.metadata_props[:]
        model.doc_string = ""
        model.producer_name = "toedit"
        model.producer_version = str(GRAPH_VERSION)
        model.domain = ""
        domains = {node.domain for node in _all_nodes(self.nodes)}
        versions = {o.domain: o.version for o in model.opset_import}
        del model.opset_import[:]
        for domain in sorted(domains | {""}):
            entry = model.opset_import.add()
            entry.domain, entry.version = domain, versions.get(domain, 1)
        return self

    def proto(self, outside: tuple[str, BinaryIO] | None = None) -> Any:
        """The graph as an ``onnx.ModelProto``, its weights by name.

        *outside* names a file beside the model's and is that file, open: what is not small is written there and left out here.
        """
        from onnx import TensorProto, helper, numpy_helper

        model = type(self.model)()
        model.CopyFrom(self.model)
        model.graph.node.extend(self.nodes)
        for name, value in sorted(self.weights.items()):
            value = np.ascontiguousarray(value).reshape(value.shape)  # it makes a vector of a scalar
            if outside is None or value.nbytes < _SMALL:
                tensor = numpy_helper.from_array(value, name)
                tensor.doc_string = ""  # there, though empty, as in files of before: their hashes stand in fingerprints
                model.graph.initializer.append(tensor)
                continue
            location, file = outside
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            tensor = model.graph.initializer.add(
                name=name,
                dims=value.shape,
                data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
                data_location=TensorProto.EXTERNAL,
            )
            for key, entry in (("location", location), ("offset", file.tell()), ("length", value.nbytes)):
                tensor.external_data.add(key=key, value=str(entry))
            file.write(value.reshape(-1).view(np.uint8).data)
        return model


def _bodies(node: Any) -> list[Any]:
    """The graphs inside a node (a loop's body)."""
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _all_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    """The nodes and those inside them."""
    for node in nodes:
        yield node
        for body in _bodies(node):
            yield from _all_nodes(body.node)


def _reads(node: Any) -> set[str]:
    """Every name that a node or something inside it reads."""
    return {name for inner in _all_nodes([node]) for name in inner.input if name}


def _number(nodes: Sequence[Any]) -> None:
    """Name nodes by operator and place, and drop what the exporter wrote of where they come from."""
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}_{index}"
        node.doc_string = ""
        del node.metadata_props[:]
        for body in _bodies(node):
            _number(body.node)


# ---------------------------------------------------------------------------------------------------------------------
# attention


def attention_of(graph: Graph) -> str:
    """Names of the attention operators in the graph, joined with commas; ``decomposed`` if there is none."""
    found = {
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in _all_nodes(graph.nodes)
        if node.op_type in ("GroupQueryAttention", "Attention")
    }
    return ",".join(sorted(found)) or "decomposed"


def _through(graph: Graph, name: str, *ops: str) -> str | None:
    """Walk back from *name* over exactly these single-reader nodes; return the first one's main input."""
    for op in ops:
        node = graph.maker.get(name)
        if node is None or node.op_type != op or graph.only_reader(name) is None:
            return None
        name = node.input[0]
    return name


def _projection(graph: Graph, name: str) -> tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any] | None] | None:
    """(input, weight [K, N], bias [N] or None) if *name* is a linear projection, else None."""
    node, bias = graph.maker.get(name), None
    if graph.only_reader(name) is None or node is None:
        return None
    if node.op_type == "Add":
        sides = [(graph.constant(node.input[i]), node.input[1 - i]) for i in (0, 1)]
        found = [(c, other) for c, other in sides if c is not None and c.ndim == 1]
        if len(found) != 1:
            return None
        bias, product = found[0]
        node = graph.maker.get(product)
        if node is None or graph.only_reader(product) is None:
            return None
    if node.op_type != "MatMul":
        return None
    weight = graph.constant(node.input[1])
    if weight is None or weight.ndim != 2:
        return None
    return node.input[0], weight, bias


def pack_attention(graph: Graph, before: Callable[[Graph], None] | None = None) -> Graph:
    """Let GroupQueryAttention take one packed projection and rotate queries and keys itself, where it can.

    It applies to a node whose queries and keys come straight from a rotary embedding of a linear projection and whose values
    come from a projection of the same input; each saves two matrix products' worth of calls and six copies of q and k. Where
    there is no rotary embedding, three projections of one input become one, and one that was split is taken whole. *before*
    may rewrite the graph first. The graph is changed in place and returned, as by every step.
    """
    whole_rows = _values_by_position(graph.model)
    if before is not None:
        before(graph)
    for node in [n for n in graph.nodes if n.op_type == "GroupQueryAttention"]:
        if not _join_split(graph, node, whole_rows):
            _pack_one(graph, node)
    return graph.finish()


def _values_by_position(model: Any) -> set[str]:
    """Names of the values whose first two axes are those of the context, [B, T, ...]."""

    def front(value: Any) -> list[str]:
        return [d.dim_param for d in value.type.tensor_type.shape.dim[:2]]

    wanted = front(model.graph.input[0])
    return {value.name for value in model.graph.value_info if all(wanted) and front(value) == wanted}


def _join_split(graph: Graph, node: Any, whole_rows: set[str]) -> bool:
    """Give a node whose queries, keys and values are one value, split, that value; False if they are not."""
    if len(node.input) < 3 or any(node.input[7:9]):
        return False
    parts = []
    for name in node.input[:3]:
        while (
            (maker := graph.maker.get(name)) is not None and maker.op_type == "Reshape" and graph.only_reader(name) is not None
        ):
            name = maker.input[0]
        parts.append(name)
    split = graph.maker.get(parts[0])
    if split is None or split.op_type != "Split" or list(split.output) != parts or split.input[0] not in whole_rows:
        return False
    # Along axis 2 of [B, T, ...] the parts lie one after the other in each position, as the packed form has them.
    if next((a.i for a in split.attribute if a.name == "axis"), 0) != 2:
        return False
    shape = graph.ints("packed.rows", 0, 0, -1)
    packed = f"{node.output[0]}.qkv"
    attention = type(node)()
    attention.CopyFrom(node)
    attention.input[0], attention.input[1], attention.input[2] = packed, "", ""
    graph.replace([node], [graph.node("Reshape", [split.input[0], shape], [packed]), attention], node)
    return True


def _pack_one(graph: Graph, node: Any) -> None:
    projections, tables, interleaved = [], [], set()
    for name in (node.input[0], node.input[1]):
        rotated = _through(graph, name, "Reshape", "Transpose")
        rotary = graph.maker.get(rotated or "")
        if rotary is None or rotary.op_type != "RotaryEmbedding" or len(rotary.input) != 3:
            return
        if graph.only_reader(rotary.output[0]) is None:
            return
        interleaved.add(next((a.i for a in rotary.attribute if a.name == "interleaved"), 0))
        if any(a.name == "rotary_embedding_dim" and a.i for a in rotary.attribute):
            return
        tables.append((rotary.input[1], rotary.input[2]))
        source = _through(graph, rotary.input[0], "Transpose", "Reshape")
        if source is None:
            return
        projections.append(_projection(graph, source))
    value = node.input[2]
    while (maker := graph.maker.get(value)) is not None and maker.op_type == "Reshape" and graph.only_reader(value):
        value = maker.input[0]
    projections.append(_projection(graph, value))
    found = [p for p in projections if p is not None]
    if len(found) != 3 or len({p[0] for p in found}) != 1 or len(interleaved) != 1:
        return
    if len({p[2] is None for p in found}) != 1 or not _same_table(graph, tables):
        return
    heads = next(a.i for a in node.attribute if a.name == "num_heads")
    if found[0][1].shape[1] // heads % 16:  # ONNX Runtime rotates no other heads inside the attention
        return
    stem = node.output[0]
    weight = graph.add_constant(f"{stem}.qkv.weight", np.concatenate([p[1] for p in found], axis=1))
    packed = f"{stem}.qkv"
    new = [graph.node("MatMul", [found[0][0], weight], [packed])]
    if found[0][2] is not None:
        bias = graph.add_constant(f"{stem}.qkv.bias", np.concatenate([p[2] for p in found if p[2] is not None]))
        new.append(graph.node("Add", [packed, bias], [f"{packed}.biased"]))
        packed += ".biased"
    caches = []
    # Positions are 0..T-1 in every row, so the first row's table serves all.
    zero = graph.add_constant("rotary.first_row", np.array(0, dtype=np.int64))
    for kind, table in zip(("cos", "sin"), tables[0], strict=True):
        cache = f"rotary.{_canonical(graph, table)}.{kind}_cache"
        if cache not in graph.maker:
            new.append(graph.node("Gather", [table, zero], [cache], axis=0))
        caches.append(cache)
    attributes = {a.name: a for a in node.attribute}
    attention = graph.node(
        "GroupQueryAttention",
        [packed, "", "", "", "", node.input[5], node.input[6], *caches, *list(node.input)[9:]],
        list(node.output),
        CONTRIB,
    )
    attention.attribute.extend(a for name, a in attributes.items() if name not in ("do_rotary", "rotary_interleaved"))
    attention.attribute.extend(graph.node("_", [], [], do_rotary=1, rotary_interleaved=int(next(iter(interleaved)))).attribute)
    graph.replace([node], [*new, attention], node)


def _canonical(graph: Graph, name: str) -> str:
    """A name that is equal for tables made alike (the exporter repeats Cos and Sin for each layer)."""
    node = graph.maker.get(name)
    if node is not None and node.op_type in ("Cos", "Sin") and len(node.input) == 1:
        return f"{node.op_type}({node.input[0]})"
    return name


def _same_table(graph: Graph, tables: list[tuple[str, str]]) -> bool:
    return len({(_canonical(graph, c), _canonical(graph, s)) for c, s in tables}) == 1


# ---------------------------------------------------------------------------------------------------------------------
# outputs


def add_outputs(
    graph: Graph, *, logits_bytes: int = _chunks.LOGITS_BYTES, part_bytes: int | None = _chunks.PART_BYTES
) -> Graph:
    """Turn ``context -> logits`` into graph version 1.

    Inputs: ``input_ids`` int64 [B, S], S >= 2; ``k`` int64 [1]; ``keep_low``, ``keep_high`` float32 [R]. Outputs: ``logp``
    float32 [B, S-1]; ``topk_row`` int64 [M]; ``topk_ids`` int32 [M, k]; ``topk_logp`` float32 [M, k], each value rounded to
    the nearest float16. A position is wanted iff keep_low[r] <= logp <= keep_high[r] for some r.

    A vocabulary of :data:`toedit._chunks.LARGE_VOCAB` ids or more is worked in chunks of rows whose logits take *logits_bytes*
    at most, if what lies behind the hidden states is known to work row by row; :func:`chunked` tells. What follows the
    product is worked in parts of *part_bytes*; where that is None, for a card, a chunk at a time.
    """
    from onnx import TensorProto, helper

    proto = graph.model.graph
    vocab = int(proto.output[0].type.tensor_type.shape.dim[2].dim_value)

    ints = graph.ints
    zero, one, last, end = ints("i0", 0), ints("i1", 1), ints("im1", -1), ints("imax", np.iinfo(np.int64).max)
    node = graph.node
    # The last position predicts nothing that is asked for: it never enters the model.
    head = [node("Slice", ["input_ids", zero, last, one], ["context"])]
    behind = _chunks.find(graph) if vocab >= _chunks.LARGE_VOCAB else None
    targets = node("Slice", ["input_ids", one, end, one], ["targets"])
    tail = [
        node("LogSoftmax", ["logits"], ["logprobs"], axis=-1),
        targets,
        node("Unsqueeze", ["targets", last], ["targets.column"]),
        node("GatherElements", ["logprobs", "targets.column"], ["logp.column"], axis=2),
        node("Squeeze", ["logp.column", last], ["logp"]),
        node("Reshape", ["logp", ints("column", -1, 1)], ["logp.flat"]),
        node("GreaterOrEqual", ["logp.flat", "keep_low"], ["above"]),
        node("LessOrEqual", ["logp.flat", "keep_high"], ["below"]),
        node("And", ["above", "below"], ["inside"]),
        *_chunks.inside_any(graph, on_card=part_bytes is None),
        node("NonZero", ["wanted"], ["wanted.rows"]),
        node("Squeeze", ["wanted.rows", zero], ["topk_row"]),
        node("Reshape", ["logprobs", ints("rows", -1, vocab)], ["logprobs.rows"]),
        node("Gather", ["logprobs.rows", "topk_row"], ["logprobs.wanted"], axis=0),
        node("TopK", ["logprobs.wanted", "k"], ["topk.values", "topk.indices"], axis=-1, largest=1, sorted=1),
        node("Cast", ["topk.indices"], ["topk_ids"], to=TensorProto.INT32),
        node("Cast", ["topk.values"], ["topk.half"], to=TensorProto.FLOAT16),
        node("Cast", ["topk.half"], ["topk_logp"], to=TensorProto.FLOAT),
    ]
    if behind is not None:
        inside = {id(n) for n in behind.nodes}
        graph.nodes = [n for n in graph.nodes if id(n) not in inside]
        tail = [targets, *_chunks.build(graph, behind, vocab, logits_bytes, part_bytes)]
    graph.nodes = [*head, *graph.nodes, *tail]
    value = helper.make_tensor_value_info
    del proto.input[:]
    proto.input.extend(
        [
            value("input_ids", TensorProto.INT64, ["B", "S"]),
            value("k", TensorProto.INT64, [1]),
            value("keep_low", TensorProto.FLOAT, ["R"]),
            value("keep_high", TensorProto.FLOAT, ["R"]),
        ]
    )
    del proto.output[:]
    proto.output.extend(
        [
            value("logp", TensorProto.FLOAT, ["B", "T"]),
            value("topk_row", TensorProto.INT64, ["M"]),
            value("topk_ids", TensorProto.INT32, ["M", "K"]),
            value("topk_logp", TensorProto.FLOAT, ["M", "K"]),
        ]
    )
    return graph.finish()


def chunked(graph: Graph) -> bool:
    """Whether the head of a finished graph is worked in chunks, so that its memory is bounded."""
    return any(node.op_type == "Loop" for node in graph.nodes)
