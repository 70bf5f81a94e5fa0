"""Fixtures that several test files share, and the promise that every test leaves the native library as it found it."""

from __future__ import annotations

import gc
import hashlib
import signal
import subprocess
import sys
import tarfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

import helpers
import oracle
import toedit

# A repository of its own: test_example_repository.py runs its tests as its users would.
collect_ignore = ["example_repository"]

_PASSED = pytest.StashKey[bool]()


def pytest_configure() -> None:
    # A shell's jobs in the background ignore Ctrl-C, and so would what tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bytes, Arrow structures and handles of the native library are back where they were before the test.

    Fixtures of a wider scope are made before this one, so what they hold counts as "before".
    """
    before = helpers.usage()
    yield
    # A test that failed still holds everything in its traceback.
    if not request.node.stash.get(_PASSED, False):
        return
    request.node.funcargs.clear()  # pytest keeps the fixtures' values longer than the fixtures
    # Less than before is no fault: a traceback or a cycle of an earlier test went away.
    if any(now > then for now, then in zip(helpers.usage(), before, strict=True)):
        gc.collect()  # only now: with torch loaded it takes half a second
        left = [now - then for now, then in zip(helpers.usage(), before, strict=True)]
        assert max(left) <= 0, f"left behind: {left[0]} bytes, {left[1]} Arrow structures, {left[2]} handles"


@pytest.fixture(scope="session")
def prior() -> toedit.Prior:
    """The bundled prior, opened for editing and for scoring."""
    prior = toedit.Prior.builtin(threads=2)
    prior.score([[1, 2, 3]])
    return prior


@pytest.fixture(scope="session")
def tokenizer(prior: toedit.Prior) -> Tokenizer:
    """The bundled prior's tokenizer."""
    return Tokenizer.from_file(str(prior.tokenizer_file))


@pytest.fixture(scope="session")
def rows(tokenizer: Tokenizer) -> list[list[int]]:
    """8,000 tokens of real text in rows of mixed lengths, and the rows that are special: empty, one token, two, one that
    begins with the BOS id, and one that is longer than the prior's context."""
    text = helpers.text_rows(tokenizer, 8000)
    long = [token for row in text for token in row][:560]
    return [*text[:10], [], text[0][:1], text[1][:2], [0, *text[2][:40]], long, *text[10:]]


@pytest.fixture(scope="session")
def scores(prior: toedit.Prior, rows: list[list[int]]) -> pa.StructArray:
    """The bundled prior's scores of `rows`, top-16 where P >= 0.3."""
    return prior.score(rows, k=16, keep=[(0.3, 1.0)])


@pytest.fixture(scope="session")
def fp32_prior(tmp_path_factory: pytest.TempPathFactory) -> toedit.Prior:
    """The bundled prior's weights exported in float32."""
    helpers.need_exporter()
    from toedit.export import export

    folder = tmp_path_factory.mktemp("priors") / "fp32"
    weights = Path(__file__).parents[1] / "python" / "prior"
    export(weights, folder, dtype="fp32", bos="always", max_length=512)
    prior = toedit.Prior(folder, threads=2)
    prior.score([[1, 2, 3]])
    return prior


@pytest.fixture(scope="session")
def traces() -> dict[str, Any]:
    return {}


@pytest.fixture
def traced_once(traces: dict[str, Any]) -> Iterator[pytest.MonkeyPatch]:
    """Exports of equal small models share what torch traced, which takes most of their time; ``undo()`` ends that."""
    from toedit import _graph

    really = _graph.trace

    def trace(model: Any, **form: Any) -> Any:
        state = {name: value.detach() for name, value in model.state_dict().items()}
        if sum(value.nbytes for value in state.values()) > 10 << 20:
            return really(model, **form)
        digest = hashlib.sha256(f"{model} {model.config} {form}".encode())
        for name, value in sorted(state.items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.float().numpy().tobytes())
        key = digest.hexdigest()
        if key not in traces:
            traces[key] = really(model, **form)
            traces[key].weights = {name: value.copy() for name, value in traces[key].weights.items()}  # tests change models
        return traces[key].copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_graph, "trace", trace)
        yield patch


@pytest.fixture(scope="session")
def shared_data(request: pytest.FixtureRequest) -> Path:
    """The development data, unpacked once into pytest's cache. For tests that are marked so."""
    unpack = Path(__file__).parents[2] / "shared" / "data" / "unpack"
    if not unpack.exists():
        pytest.skip("the data folder shared/data is not beside this checkout")
    if not hasattr(tarfile, "data_filter"):
        pytest.skip("unpacking the data folder needs tarfile's filters, which this Python lacks (3.11.4 has them)")
    target = request.config.cache.mkdir("shared_data")
    subprocess.run([sys.executable, str(unpack), "--to", str(target), "dev"], check=True, stdout=subprocess.DEVNULL)
    return target


@pytest.fixture(scope="session")
def small_prior(tmp_path_factory: pytest.TempPathFactory) -> toedit.Prior:
    """A prior of 512 ids for editing alone: three are special, and the tokenizer never makes the last four."""
    prior = helpers.editing_prior(tmp_path_factory.mktemp("priors") / "small")
    prior.describe()
    return prior


@pytest.fixture(scope="session")
def small_batch(small_prior: toedit.Prior) -> tuple[list[list[int]], list[oracle.Scores]]:
    """Random rows of `small_prior`'s ids with random scores of the reference's, top-8 where P >= 0.5."""
    rng = np.random.default_rng(99)
    rows = [rng.integers(0, 512, size=n).tolist() for n in (40, 1, 0, 25, 64)]
    return rows, [oracle.make_scores(rng, row, 512, 8, 0.5, small_prior.fingerprint) for row in rows]


@pytest.fixture
def small_columns(small_batch: tuple[list[list[int]], list[oracle.Scores]]) -> dict[str, Any]:
    """The same as Arrow columns."""
    rows, scores = small_batch
    return {"input_ids": pa.array(rows, pa.list_(pa.int64())), "scores": oracle.scores_to_arrow(scores)}
