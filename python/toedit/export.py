"""Make a prior folder from a Hugging Face causal language model (``toedit export MODEL -o DIR``).

A prior folder is what :class:`toedit.Prior` opens: ``model.onnx`` (graph version 1), the tokenizer's files and
``prior.json``, which says what the model is and holds the hashes that scores are tied to. torch, transformers and onnx are
needed here and nowhere else in toedit's scoring and editing; they come with the extra ``[export]``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toedit import _blocks, _card, _chunks, _export_check, _graph, _int8
from toedit._errors import InputError, MissingDependencyError, PriorError
from toedit._export_check import FP32_TOLERANCE
from toedit._version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["FP32_TOLERANCE", "export", "main"]

FORMAT = 1
# protobuf refuses messages of 2 GiB; what is larger goes into a file of its own beside the model.
_INLINE_LIMIT = 2**31 - 2**24
_DATA = "model.onnx.data"
# The dtypes of priors for CUDA, as torch calls them.
_CUDA_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
_WEIGHTS_HASH = "weights.json"
_BYTES = {"fp32": 4, "int8": 1, "bf16": 2, "fp16": 2}
# The model in float32, and as much again where ONNX Runtime arranges it anew to check it; a model in one file with its graph is
# there twice more while it is written. Measured with 0.36 and 0.92 billion parameters.
_MEMORY_A_PARAMETER, _MEMORY_A_PARAMETER_INLINE = 10, 13
# About, on two cores: tracing, whatever the size of a layer (a slow processor); writing, and the check in torch and the graph.
_SECONDS_A_LAYER = {"fp32": 1, "int8": 1, "bf16": 2, "fp16": 2}
_SECONDS_A_PARAMETER = {"fp32": 1.5e-7, "int8": 2.5e-7, "bf16": 2.5e-7, "fp16": 2.5e-7}
_MAKERS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
# What transformers may write of where it found a tokenizer.
_TOKENIZER_PRIVATE = ("name_or_path", "is_local", "local_files_only")


def export(
    model: str | os.PathLike[str] | PreTrainedModel,
    out_dir: str | os.PathLike[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: Literal["fp32", "int8", "bf16", "fp16"] = "fp32",
    k: int = 64,
    max_length: int | None = None,
    bos: Literal["auto", "always", "never"] = "auto",
    name: str | None = None,
    source: dict[str, Any] | None = None,
    card: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    graph: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Export a causal language model as a prior; returns the path of the finished folder.

    Args:
        model: a local folder, a name on the Hugging Face hub, or a loaded model (then *tokenizer* is needed too; the model
            comes back as it was).
        out_dir: the folder to make. It appears whole or not at all.
        tokenizer: a fast tokenizer; by default the one that lies beside the model.
        dtype: for the CPU ``fp32``, or ``int8`` (row-wise: 3 to 4 times smaller, about twice as fast, ln P off by some
            hundredths); for CUDA ``bf16`` or ``fp16`` (with the last product and the softmax in float32).
        k: the largest top-k that may be asked of the prior (lowered to the vocabulary's size).
        max_length: the most positions of one row that the model is to read, the beginning-of-sequence token included; by
            default what its configuration allows. Longer documents are scored in windows of it.
        bos: whether a row is scored with the beginning-of-sequence token in front: ``always``, ``never``, or ``auto``, as the
            tokenizer does it.
        name: the prior's name; by default the last part of the model's.
        source: free text fields for ``prior.json`` (data, licence, ...).
        card: a model card, copied into the folder as README.md.
        overwrite: replace *out_dir* where it is a prior folder already.
        trust_remote_code: run the Python code that comes with the model.
        allow_pickle: load weights that are no safetensors, which can run code too.
        graph: False makes a folder without a graph, for models that do not convert: their scores are made with
            :func:`toedit.torch.score` or :func:`toedit.scores`, and edit as others do.
        progress: called with a line of text before each step.

    Raises:
        InputError: an argument cannot be used, model and tokenizer do not fit each other, the model is not causal, or there
            is not enough space on the disk.
        PriorError: the architecture does not convert, or the finished graph disagrees with torch.
        MissingDependencyError: the extra ``[export]`` is not installed.
    """
    torch = _require("torch")
    transformers = _require("transformers")
    for package in _MAKERS:
        _require(package)
    say = progress or (lambda _: None)
    out = Path(out_dir)
    _check_arguments(out, dtype, k, max_length, bos, overwrite)
    if card is not None and not Path(card).is_file():
        raise InputError(f"the model card {os.fspath(card)} is no file")

    with _quiet():
        if isinstance(model, (str, os.PathLike)):
            _tell(_outline(transformers, torch, os.fspath(model), trust_remote_code), dtype if graph else None, out, say)
            say("loading the model")
        network, words, label = _load(transformers, torch, model, tokenizer, trust_remote_code, allow_pickle)
    limit = _context_length(network, max_length)
    if not isinstance(model, (str, os.PathLike)):
        _tell(network, dtype if graph else None, out, say)
    with _borrowed(torch, network) as float_model, _whole(out, overwrite) as folder, _space(folder):
        vocab = int(float_model.get_output_embeddings().weight.shape[0])
        settings: dict[str, Any] = {
            "format": FORMAT,
            "name": name or label,
            "architecture": type(network).__name__,
            "device": ("cuda" if dtype in _CUDA_DTYPES else "cpu") if graph else "elsewhere",
            "dtype": dtype if graph else "none",
            "context_length": limit,
            "vocab_size": vocab,
            **_vocabulary(words, vocab, bos),
            "k": min(k, vocab),
        }
        rows = _export_check.sample(words, settings)
        if not _export_check.is_causal(torch, float_model, rows.rows[0]):
            raise InputError(
                f"{type(network).__name__} predicts a token from those to its right as well (an encoder?); a prior must be a "
                "causal language model"
            )
        check = None
        if graph:
            check = _write_graph(torch, float_model, folder, settings, rows, say)
        else:
            _write_weights_hash(network, folder, settings)
        say("writing the folder")
        _write_tokenizer(words, folder)
        if card is not None:
            shutil.copyfile(card, folder / "README.md")
        settings["files"] = {
            p.name: {"sha256": _sha256(p), "size": p.stat().st_size}
            for p in sorted(folder.iterdir())
            if p.name.startswith("model.onnx") or p.name in ("tokenizer.json", _WEIGHTS_HASH)
        }
        settings["source"] = {"model": label, **(source or {})}
        if check is not None:
            settings["check"] = check
        settings["made_with"] = {"toedit": __version__, **{package: metadata.version(package) for package in _MAKERS}}
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        (folder / "prior.json").write_text(text + "\n", encoding="utf-8")
    return out


# ---------------------------------------------------------------------------------------------------------------------
# what goes in


def _require(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting a prior needs the package {package}, which cannot be imported ({error}); "
            "pip install 'toedit[export,cpu]'"
        ) from error


def _check_arguments(out: Path, dtype: str, k: int, max_length: int | None, bos: str, overwrite: bool) -> None:
    if dtype not in _BYTES:
        raise InputError(f"dtype is {dtype!r}, but must be 'fp32' or 'int8' (for the CPU), 'bf16' or 'fp16' (for CUDA)")
    if not 1 <= k <= 4096:
        raise InputError(f"k is {k}, but must be 1 to 4096")
    if max_length is not None and max_length < 2:
        raise InputError(f"max_length is {max_length}, but must be at least 2")
    if bos not in ("auto", "always", "never"):
        raise InputError(f"bos is {bos!r}, but must be 'auto', 'always' or 'never'")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists; choose another folder or pass overwrite=True (--overwrite)")
    if out.exists() and not (out.is_dir() and ((out / "prior.json").exists() or not any(out.iterdir()))):
        raise InputError(f"{out} exists and is no prior folder, so it is not overwritten; choose another folder")


def _outline(transformers: Any, torch: Any, path: str, trust_remote_code: bool) -> Any:
    """The model without its weights, for what can be said before they are loaded."""
    with _loading(path):
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


@contextlib.contextmanager
def _loading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:800]
        raise InputError(f"{path} cannot be loaded as a causal language model with a tokenizer: {reason}") from error


def _load(
    transformers: Any, torch: Any, model: Any, tokenizer: Any, trust_remote_code: bool, allow_pickle: bool
) -> tuple[Any, Any, str]:
    """(model, fast tokenizer, name without any folder of this machine)"""
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        names = {file.suffix for file in Path(path).iterdir()} if os.path.isdir(path) else set()
        if not allow_pickle and ".safetensors" not in names and names & {".bin", ".pt", ".pth", ".ckpt"}:
            raise InputError(
                f"{path} has its weights in another form than safetensors; such files can run code when they are loaded: "
                "convert them, or pass allow_pickle=True (--allow-pickle) if you trust them"
            )
        with _loading(path):
            network, found = transformers.AutoModelForCausalLM.from_pretrained(
                path,
                dtype=torch.float32,
                trust_remote_code=trust_remote_code,
                use_safetensors=None if allow_pickle else True,
                output_loading_info=True,
            )
            if tokenizer is None:
                tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        # transformers makes up what it does not find, and such a model agrees with its graph.
        missing = sorted(found["missing_keys"])
        if missing:
            raise InputError(
                f"{path} lacks {len(missing)} of the model's weights (the first is {missing[0]}): it is no complete causal "
                "language model (a model without its output head, say)"
            )
        label = Path(path).resolve().name if os.path.isdir(path) else path
    else:
        network = model
        if not hasattr(network, "config") or not hasattr(network, "get_output_embeddings"):
            raise InputError(
                f"model is a {type(model).__name__}, but must be a transformers causal language model, a folder or a name"
            )
        if tokenizer is None:
            raise InputError("a loaded model needs its tokenizer: pass tokenizer=AutoTokenizer.from_pretrained(...)")
        label = Path(getattr(network.config, "_name_or_path", "") or type(network).__name__).name
    if getattr(network.config, "is_encoder_decoder", False):
        raise InputError(f"{type(network).__name__} is an encoder-decoder; a prior must be a causal language model")
    if not getattr(tokenizer, "is_fast", False) or getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(
            f"{type(tokenizer).__name__} is not a fast tokenizer (it has no tokenizer.json), and a prior needs one; "
            "load it with AutoTokenizer.from_pretrained(..., use_fast=True) or convert it to the tokenizers library first"
        )
    return network, tokenizer, label


def _context_length(network: Any, max_length: int | None) -> int:
    config = network.config.get_text_config()
    known = (getattr(config, key, None) for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"))
    allowed = next((int(value) for value in known if isinstance(value, int) and value > 0), None)
    if max_length is None:
        if allowed is None:
            raise InputError("the model's configuration names no largest length; pass max_length (--max-length)")
        return allowed
    if allowed is not None and max_length > allowed:
        raise InputError(f"max_length is {max_length}, but the model has {allowed} positions")
    return max_length


def _tell(network: Any, dtype: str | None, out: Path, say: Callable[[str], None]) -> None:
    """Say how large the prior will be, what making it takes, and refuse where the disk has no room for it."""
    parameters = sum(p.numel() for p in network.parameters())
    if dtype is None:
        say(f"{parameters / 1e6:,.1f} million parameters; no graph is made")
        return
    size = parameters * _BYTES[dtype]
    # Graphs that are written to be checked are float32.
    need = max(size, 4 * parameters)
    memory = parameters * (_MEMORY_A_PARAMETER if size > _INLINE_LIMIT else _MEMORY_A_PARAMETER_INLINE)
    layers = getattr(network.config.get_text_config(), "num_hidden_layers", None) or 0
    seconds = 10 + layers * _SECONDS_A_LAYER[dtype] + parameters * _SECONDS_A_PARAMETER[dtype]
    say(
        f"{parameters / 1e6:,.1f} million parameters: about {size / 1e6:,.0f} MB as {dtype}, about {need / 1e6:,.0f} MB of "
        f"disk and {memory / 1e6:,.0f} MB of memory on the way, about {seconds:,.0f} seconds"
    )
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory > installed:
        say(f"this machine has {installed / 1e6:,.0f} MB of memory: the export may be killed; a larger one may be needed")
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < need:
        raise InputError(
            f"{folder} has {free / 1e6:,.0f} MB of free space, but exporting needs about {need / 1e6:,.0f} MB; make room or "
            "choose another folder"
        )


@contextlib.contextmanager
def _space(folder: Path) -> Iterator[None]:
    """What went wrong with the disk, said with the folder that it is about."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise InputError(
            f"no space left for the prior in {folder.parent}: {error}; make room or choose another folder"
        ) from error


@contextlib.contextmanager
def _borrowed(torch: Any, network: Any) -> Iterator[Any]:
    """The model in float32 on the CPU in evaluation mode; the caller's own object is given back as it was."""
    if all(p.dtype == torch.float32 and p.device.type == "cpu" for p in network.parameters()):
        training = network.training
        network.eval()
        try:
            yield network
        finally:
            network.train(training)
    else:
        yield copy.deepcopy(network).to(device="cpu", dtype=torch.float32).eval()


def _vocabulary(tokenizer: Any, vocab: int, bos: str) -> dict[str, Any]:
    added = {int(i) for i in tokenizer.added_tokens_decoder}
    special = added | {int(i) for i in tokenizer.all_special_ids}
    ids = {int(i) for i in tokenizer.get_vocab().values()}
    outside = sorted(i for i in ids - added if i >= vocab)
    if outside:
        raise InputError(
            f"the tokenizer makes {len(outside)} ordinary ids that the model does not have (the first is {outside[0]}, the "
            f"model's output has {vocab} rows): they belong to different models"
        )
    bos_id = tokenizer.bos_token_id
    if bos == "auto":
        first = tokenizer("a")["input_ids"][:1]
        bos = "always" if bos_id is not None and first == [bos_id] else "never"
    if bos == "always" and (bos_id is None or bos_id >= vocab):
        raise InputError(
            "bos is 'always', but the tokenizer has no beginning-of-sequence token that the model knows; use 'never'"
        )
    return {
        "tokenizer_size": min(max(ids) + 1, vocab),
        "special_ids": sorted(i for i in special if i < vocab),
        "bos": {"rule": bos, "id": bos_id if bos_id is not None and bos_id < vocab else None},
    }


# ---------------------------------------------------------------------------------------------------------------------
# the graph


def _write_graph(
    torch: Any, float_model: Any, folder: Path, settings: dict[str, Any], rows: _export_check.Sample, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write model.onnx in the fastest form that is exact, and what is to be known of it into settings; returns the check."""
    dtype, limit, tf32 = settings["dtype"], settings["context_length"], False
    mixed = float_model._can_set_experts_implementation()
    attends = getattr(float_model, "_supports_attention_backend", False)
    # experts that compute what chose them and fused attention, where the architecture has a choice of them
    forms = list(itertools.product((True, False)[: 1 + mixed], (True, False)[: 1 + attends]))
    for choose, fused in forms:
        try:
            slower = ("" if fused else ", attention as it is written") + ("" if choose else ", every expert for every token")
            say(f"converting{slower}")
            traced = _trace(float_model, fused, choose)
            # every step rewrites the graph in place
            graph = _blocks.cut(_graph.add_outputs(traced.copy() if dtype == "int8" else traced))
            say("checking against torch in float32")
            check, least = _checked(torch, float_model, graph, folder, rows, limit, exact=True)
            break
        except PriorError as error:
            if (choose, fused) == forms[-1]:
                raise PriorError(
                    f"{error}. Where nothing converts exactly: export with graph=False (--no-graph) and score with "
                    "toedit.torch.score, which is exact for every architecture"
                ) from error
            say(f"not in this form: {error}")
    if dtype == "int8":
        say("quantising, and measuring what that does")
        graph = _blocks.cut(_graph.add_outputs(_int8.to_int8(traced)))
        check, least = _checked(torch, float_model, graph, folder, rows, limit, exact=False)
    elif dtype in _CUDA_DTYPES:
        say(f"converting in {_CUDA_DTYPES[dtype]}")
        half = _card.half_precision(float_model, _CUDA_DTYPES[dtype])
        choose = False
        prepared, tf32 = _card.prepare(_trace(half, fused, choose, before=_card.fuse_rotary))
        graph = _graph.add_outputs(prepared, logits_bytes=_card.LOGITS_BYTES, part_bytes=None)
        least = 0
        check = _check_on_card(torch, float_model, graph, folder, rows, limit, tf32)
    attention = _graph.attention_of(graph)
    if attention == "decomposed":
        say("attention is the model's own, in several operators: exact, and slower than a fused one")
    if mixed and not choose:
        say("every expert is computed for every token: exact, and slower than a choice of them")
    settings["graph"] = _graph_settings(graph, attention, least, tf32)
    settings["memory"] = _memory(float_model, graph, settings["vocab_size"], on_card=dtype in _CUDA_DTYPES)
    return check


def _trace(network: Any, fused: bool, choose: bool, *, before: Callable[[_graph.Graph], None] | None = None) -> _graph.Graph:
    try:
        with _quiet():
            return _graph.pack_attention(_graph.trace(network, fused=fused, choose=choose), before)
    except Exception as error:
        cause: BaseException = error
        while (inner := cause.__cause__ or cause.__context__) is not None:
            cause = inner
        reason = str(cause).strip().splitlines()[0][:300] if str(cause).strip() else type(cause).__name__
        raise PriorError(f"{type(network).__name__} does not convert to ONNX: {reason}") from error


def _checked(
    torch: Any, network: Any, graph: _graph.Graph, folder: Path, rows: _export_check.Sample, limit: int, *, exact: bool
) -> tuple[dict[str, Any], int]:
    """Write the graph and check what was written."""
    _write_model(graph, folder)
    return _export_check.check(torch, network, folder / "model.onnx", rows, context=limit, exact=exact)


def _check_on_card(
    torch: Any, network: Any, graph: _graph.Graph, folder: Path, rows: _export_check.Sample, limit: int, tf32: bool
) -> dict[str, Any]:
    """Write the graph for a card, and check it where there is one."""
    import onnxruntime

    _write_model(graph, folder)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or not torch.cuda.is_available():
        return {"not_run": "there was no CUDA device where this was exported; `make gpu-check` measures such priors on one"}
    card = {"use_tf32": str(int(tf32)), "sdpa_kernel": "19"}  # as editor/scorer/device.go has them
    return _export_check.check(torch, network, folder / "model.onnx", rows, context=limit, exact=False, card=card)[0]


def _graph_settings(graph: _graph.Graph, attention: str, least: int, tf32: bool) -> dict[str, Any]:
    opset = next(o.version for o in graph.model.opset_import if o.domain == "")
    settings: dict[str, Any] = {"version": _graph.GRAPH_VERSION, "opset": opset, "attention": attention}
    if least:
        settings["min_positions"] = least
    if tf32:
        settings["tf32"] = True
    return settings


def _memory(network: Any, graph: _graph.Graph, vocab: int, *, on_card: bool) -> dict[str, int]:
    """About what a run takes beside the weights, in bytes: of a layer's values in float32 and the logits with their softmax."""
    config = network.config.get_text_config()
    width = int(getattr(config, "hidden_size", 0) or 0)
    inner = int(getattr(config, "intermediate_size", 0) or 4 * width)
    heads = int(getattr(config, "num_attention_heads", 0) or 1)
    chunked = _graph.chunked(graph)
    # Logits in chunks: on a card their log-softmax takes as much again, on the CPU a few parts' worth.
    head = 2 * _card.LOGITS_BYTES if on_card else _chunks.LOGITS_BYTES + 4 * _chunks.PART_BYTES
    # Runs that stay whole have 512 positions at most, and little for each pair of them.
    blocks = _blocks.BLOCKS if _blocks.are_in(graph) else 1
    return {
        "position": 4 * (8 * width + 3 * inner) + (0 if chunked else 8 * vocab),
        "pair": -(-4 * heads // blocks),
        "fixed": head if chunked else 0,
    }


def _write_weights_hash(network: Any, folder: Path, settings: dict[str, Any]) -> None:
    """In place of a graph: what ties scores to the weights, and the settings that a graph would have."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        # in float32, so that a model has one hash whatever it was loaded in
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    (folder / _WEIGHTS_HASH).write_text(json.dumps({"sha256": digest.hexdigest()}) + "\n", encoding="utf-8")
    settings["graph"] = {"version": _graph.GRAPH_VERSION, "opset": 0, "attention": "none"}


def _write_model(graph: _graph.Graph, folder: Path) -> None:
    for old in folder.glob("model.onnx*"):  # one that was written to be checked
        old.unlink()
    if sum(value.nbytes for value in graph.weights.values()) > _INLINE_LIMIT:
        with (folder / _DATA).open("wb") as file:
            proto = graph.proto((_DATA, file))
    else:
        proto = graph.proto()
    # deterministic: the same model gives the same bytes
    (folder / "model.onnx").write_bytes(proto.SerializeToString(deterministic=True))


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    from tokenizers import Tokenizer

    # Truncation and padding belong to whoever calls the tokenizer, not to the prior.
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        config = json.loads((Path(scratch) / "tokenizer_config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in _TOKENIZER_PRIVATE}
    (folder / "tokenizer.json").write_text(plain.to_str(pretty=True) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# folders, hashes, versions


@contextlib.contextmanager
def _whole(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside *out* that takes its place at the end of the block and is removed if the block fails."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
        umask = os.umask(0)
        os.umask(umask)
        folder.chmod(0o777 & ~umask)  # mkdtemp makes folders that only their owner may read
        if overwrite and out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
            os.replace(out, old)
            os.replace(folder, out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# ---------------------------------------------------------------------------------------------------------------------
# the command line


def main(argv: Sequence[str] | None = None) -> int:
    """``toedit export``; returns the exit status. Raises what :func:`export` raises."""
    parser = argparse.ArgumentParser(
        prog="toedit export",
        description="Make a prior folder from a Hugging Face causal language model.",
    )
    parser.add_argument("model", metavar="MODEL", help="a local folder or a name on the Hugging Face hub")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="the prior folder to make")
    parser.add_argument(
        "--dtype",
        choices=tuple(_BYTES),
        default="fp32",
        help="fp32 or int8 for the CPU, bf16 or fp16 for CUDA (default: %(default)s)",
    )
    parser.add_argument("--k", type=int, default=64, help="largest top-k that may be asked for (default: %(default)s)")
    parser.add_argument("--max-length", type=int, help="most positions of a row that the model reads (default: the model's)")
    parser.add_argument(
        "--bos",
        choices=("auto", "always", "never"),
        default="auto",
        help="score rows with the beginning-of-sequence token in front",
    )
    parser.add_argument("--name", help="the prior's name (default: the model's)")
    parser.add_argument("--card", metavar="FILE", help="a model card to copy into DIR as README.md")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR where it is a prior folder already")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the Python code that comes with the model")
    parser.add_argument("--allow-pickle", action="store_true", help="load weights that are no safetensors")
    parser.add_argument("--no-graph", action="store_true", help="for models that are scored elsewhere (toedit.torch.score)")
    args = parser.parse_args(argv)
    path = export(
        args.model,
        args.out,
        dtype=args.dtype,
        k=args.k,
        max_length=args.max_length,
        bos=args.bos,
        name=args.name,
        card=args.card,
        overwrite=args.overwrite,
        trust_remote_code=args.trust_remote_code,
        allow_pickle=args.allow_pickle,
        graph=not args.no_graph,
        progress=lambda line: print(f"toedit export: {line}", file=sys.stderr, flush=True),
    )
    settings = json.loads((path / "prior.json").read_text(encoding="utf-8"))
    size = sum(entry["size"] for entry in settings["files"].values())
    print(
        f"{path}: {settings['architecture']}, {settings['dtype']}, {size / 1e6:.1f} MB, context {settings['context_length']}, ",
        end="",
    )
    print(_of_check(settings.get("check")))
    return 0


def _of_check(check: dict[str, Any] | None) -> str:
    if check is None:
        return "no graph"
    if "not_run" in check:
        return f"not checked: {check['not_run']}"
    flips = ", ".join(f"{100 * share:.2g} % at {threshold}" for threshold, share in check["decisions_that_differ"].items())
    positions = f"{check['positions']} positions of text"
    if "decided_by_rounding" in check:
        positions += f", at {check['decided_by_rounding']} of which rounding decides what experts a token has"
    return (
        f"|difference of ln P from torch| mean {check['mean_abs_dlogp']:.2g}, largest {check['max_abs_dlogp']:.2g}, "
        f"decisions that differ: {flips} (of {positions})"
    )
