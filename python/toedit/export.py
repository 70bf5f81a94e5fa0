"""Make a prior folder from a Hugging Face causal language model (``toedit export MODEL -o DIR``).

A prior folder is what :class:`toedit.Prior` opens: ``model.onnx`` (graph version 1), the tokenizer's files and
``prior.json``, which says what the model is and holds the hashes that scores are tied to. torch, transformers and onnx are
needed here and nowhere else in toedit's scoring and editing; they come with the extra ``[export]``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from toedit._errors import InputError, MissingDependencyError, PriorError
from toedit._version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["FP32_TOLERANCE", "export", "main"]

FORMAT = 1
FP32_TOLERANCE = 1e-4
"""Largest |ln P| difference from torch, in nats, with which a float32 export is accepted."""

# protobuf refuses messages of 2 GiB; what is larger goes into a file of its own beside the model.
_INLINE_LIMIT = 2**31 - 2**24
_MAKERS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
# What transformers may write of where it found a tokenizer.
_TOKENIZER_PRIVATE = ("name_or_path", "is_local", "local_files_only")

_Rows = list[list[int]]


def export(
    model: str | os.PathLike[str] | PreTrainedModel,
    out_dir: str | os.PathLike[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: Literal["fp32", "int8"] = "fp32",
    k: int = 64,
    max_length: int | None = None,
    bos: Literal["auto", "always", "never"] = "auto",
    name: str | None = None,
    source: dict[str, Any] | None = None,
    card: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Export a causal language model as a prior for the CPU; returns the path of the finished folder.

    Args:
        model: a local folder, a name on the Hugging Face hub, or a loaded model (then *tokenizer* is needed too; the model
            comes back as it was).
        out_dir: the folder to make. It appears whole or not at all.
        tokenizer: a fast tokenizer; by default the one that lies beside the model.
        dtype: ``fp32``, or ``int8`` (row-wise: 3 to 4 times smaller, about twice as fast, ln P off by some hundredths).
        k: the largest top-k that may be asked of the prior (lowered to the vocabulary's size).
        max_length: the most positions of one row that the model is to read, the beginning-of-sequence token included; by
            default what its configuration allows.
        bos: whether a row is scored with the beginning-of-sequence token in front: ``always``, ``never``, or ``auto``, as the
            tokenizer does it.
        name: the prior's name; by default the last part of the model's.
        source: free text fields for ``prior.json`` (data, licence, ...).
        card: a model card, copied into the folder as README.md.
        overwrite: replace *out_dir* where it is a prior folder already.

    Raises:
        InputError: an argument cannot be used, or model and tokenizer do not fit each other.
        PriorError: the architecture does not convert, or the finished graph disagrees with torch.
        MissingDependencyError: the extra ``[export]`` is not installed.
    """
    torch = _require("torch")
    transformers = _require("transformers")
    for package in _MAKERS:
        _require(package)
    out = Path(out_dir)
    _check_arguments(out, dtype, k, max_length, bos, overwrite)
    if card is not None and not Path(card).is_file():
        raise InputError(f"the model card {os.fspath(card)} is no file")

    with _quiet():
        network, words, label = _load(transformers, torch, model, tokenizer)
    limit = _context_length(network, max_length)
    with _borrowed(torch, network) as float_model:
        proto, attention, vocab = _build(float_model, dtype)
        settings = {
            "format": FORMAT,
            "name": name or label,
            "architecture": type(network).__name__,
            "device": "cpu",
            "dtype": dtype,
            "context_length": limit,
            "vocab_size": vocab,
            **_vocabulary(words, vocab, bos),
            "k": min(k, vocab),
            "graph": _graph_settings(proto, attention),
        }
        with _whole(out, overwrite) as folder:
            _write_model(proto, folder)
            del proto
            _write_tokenizer(words, folder)
            if card is not None:
                shutil.copyfile(card, folder / "README.md")
            settings["files"] = {
                p.name: {"sha256": _sha256(p), "size": p.stat().st_size}
                for p in sorted(folder.iterdir())
                if p.name.startswith("model.onnx") or p.name == "tokenizer.json"
            }
            settings["source"] = {"model": label, **(source or {})}
            settings["check"] = _check(torch, float_model, folder / "model.onnx", _sample(words, settings), dtype)
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
    if dtype not in ("fp32", "int8"):
        raise InputError(f"dtype is {dtype!r}, but must be 'fp32' or 'int8'")
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


def _load(transformers: Any, torch: Any, model: Any, tokenizer: Any) -> tuple[Any, Any, str]:
    """(model, fast tokenizer, name without any folder of this machine)"""
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        try:
            network = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            if tokenizer is None:
                tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InputError(f"{path} cannot be loaded as a causal language model with a tokenizer: {error}") from error
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


def _build(network: Any, dtype: str) -> tuple[Any, str, int]:
    """(ONNX model, names of its attention operators, rows of the output embedding)"""
    from toedit import _graph, _int8

    try:
        with _quiet():
            proto = _graph.trace(network)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise PriorError(f"{type(network).__name__} does not convert to ONNX: {reason}") from error
    proto = _graph.pack_attention(proto)
    if dtype == "int8":
        proto = _int8.to_int8(proto)
    vocab = int(proto.graph.output[0].type.tensor_type.shape.dim[2].dim_value)
    return _graph.add_outputs(proto), _graph.attention_of(proto), vocab


def _graph_settings(proto: Any, attention: str) -> dict[str, Any]:
    from toedit import _graph

    opset = next(o.version for o in proto.opset_import if o.domain == "")
    return {"version": _graph.GRAPH_VERSION, "opset": opset, "attention": attention}


def _write_model(proto: Any, folder: Path) -> None:
    import onnx

    if proto.ByteSize() > _INLINE_LIMIT:
        onnx.save_model(
            proto, folder / "model.onnx", save_as_external_data=True, all_tensors_to_one_file=True, location="model.onnx.data"
        )
        return
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
# the check at the end


def _sample(tokenizer: Any, settings: dict[str, Any]) -> tuple[_Rows, _Rows]:
    """Rows of several lengths as the prior will see them: of real text (the help texts that every Python carries), and of
    random ids, for a tokenizer that finds few different ids in that text."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[key] for key in ("if", "assert", "import", "strings", "class", "numbers", "with", "lambda"))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [i for i in ids if i < settings["vocab_size"]] or [0]
    front = [settings["bos"]["id"]] if settings["bos"]["rule"] == "always" else []
    rows, start = [], 0
    for wanted in (256, 129, 65, 64, 33, 17, 9, 3):
        length = min(wanted, settings["context_length"]) - len(front)
        piece = [ids[(start + i) % len(ids)] for i in range(max(length, 2 - len(front)))]
        rows.append(front + piece)
        start += length
    random = np.random.default_rng(0).integers(0, settings["vocab_size"], size=(3, 256))
    lengths = (min(length, settings["context_length"]) for length in (129, 64, 8))
    return rows, [row[:length].tolist() for row, length in zip(random, lengths, strict=True)]


def _pad(rows: _Rows) -> npt.NDArray[np.int64]:
    """int64 [B, S], S - 1 a multiple of 8: smaller shapes would take other kernels and so other bits."""
    length = max(map(len, rows))
    out = np.zeros((len(rows), (length + 6) // 8 * 8 + 1), dtype=np.int64)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return out


def _check(torch: Any, network: Any, path: Path, sample: tuple[_Rows, _Rows], dtype: str) -> dict[str, Any]:
    """Score the sample with torch and with the finished graph; raises PriorError if they do not agree.

    Returns the differences on its first part, real text.
    """
    import onnxruntime

    rows = sample[0] + sample[1]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise PriorError(f"ONNX Runtime {onnxruntime.__version__} does not open the exported graph: {error}") from error

    def run(batch: _Rows) -> list[npt.NDArray[Any]]:
        ids = _pad(batch)
        feeds = {
            "input_ids": ids,
            "k": np.array([1]),
            "keep_low": np.array([-np.inf], np.float32),
            "keep_high": np.zeros(1, np.float32),
        }
        return list(session.run(None, feeds))

    try:
        together = run(rows)
        alone = [run([row])[0][0] for row in rows]
    except Exception as error:
        raise PriorError(f"ONNX Runtime {onnxruntime.__version__} does not run the exported graph: {error}") from error
    differences, best = [], []
    for index, row in enumerate(rows):
        with torch.inference_mode():
            ids = torch.tensor([row])
            logits = network(input_ids=ids[:, :-1], use_cache=False).logits.double()
            logprobs = torch.log_softmax(logits, dim=-1)[0].numpy()
        want = logprobs[np.arange(len(row) - 1), row[1:]]
        got = together[0][index, : len(row) - 1]
        if not np.isfinite(got).all():
            raise PriorError(
                f"the exported graph gives ln P that is not finite (row {index} of the check); are the weights whole?"
            )
        if got.tobytes() != alone[index][: len(row) - 1].tobytes():
            raise PriorError(
                "the exported graph's scores of a row depend on the rows that it is run with (ONNX Runtime does so for heads "
                "wider than 128, for instance); this architecture is not supported"
            )
        differences.append(np.abs(got - want))
        width = together[0].shape[1]
        top = together[3][index * width : index * width + len(row) - 1, 0]
        best.append(np.abs(top - logprobs.max(axis=-1)))
    largest = max(float(d.max()) for d in differences)
    if dtype == "fp32" and largest > FP32_TOLERANCE:
        raise PriorError(
            f"the exported graph differs from torch by up to {largest:.3g} nats, more than {FP32_TOLERANCE:g}; this "
            "architecture does not convert exactly"
        )
    # Half precision rounds the stored top-k by at most 2^-11 of its size.
    if dtype == "fp32" and np.concatenate(best).max() > FP32_TOLERANCE + 2**-11 * max(1.0, float(-together[3].min())):
        raise PriorError("the exported graph's top-k is not torch's; this architecture does not convert exactly")
    on_text = np.concatenate(differences[: len(sample[0])])
    return {
        "max_abs_dlogp": float(f"{on_text.max():.3g}"),
        "mean_abs_dlogp": float(f"{on_text.mean():.3g}"),
        "positions": int(on_text.size),
    }


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
    parser.add_argument("--dtype", choices=("fp32", "int8"), default="fp32", help="default: %(default)s")
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
    )
    settings = json.loads((path / "prior.json").read_text(encoding="utf-8"))
    size = sum(entry["size"] for entry in settings["files"].values())
    check = settings["check"]
    print(
        f"{path}: {settings['architecture']}, {settings['dtype']}, {size / 1e6:.1f} MB, context {settings['context_length']}, "
        f"|difference of ln P from torch| mean {check['mean_abs_dlogp']:.2g}, largest {check['max_abs_dlogp']:.2g}"
    )
    return 0
