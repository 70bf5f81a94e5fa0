"""Two processes that train together (gloo): each document gets the edits that it gets in a single one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import helpers
import toedit

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, DistributedSampler  # noqa: E402

from toedit.torch import EditCollator, EditingLoader  # noqa: E402

RANKS = 2
EPOCHS = 4
POLICY = toedit.Policy(threshold=0.3, temperature=1.5)


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"input_ids": torch.stack([row["input_ids"] for row in rows]), "n": [row["n"] for row in rows]}


def with_key(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {**collate(rows), "doc": [row["n"] for row in rows]}


def train(rank: int, folder: str, data: list[dict[str, Any]]) -> None:
    """What torchrun starts once a rank: an epoch with a scores column and a collator in workers, one with EditingLoader, and
    two with a store that both ranks share."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    torch.set_num_threads(1)
    model: Any = torch.nn.Sequential(torch.nn.Embedding(4096, 8), torch.nn.Linear(8, 4096))
    model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sampler = DistributedSampler(data, RANKS, rank, shuffle=True)
    keyed = toedit.Editor(toedit.Prior.builtin(threads=1), POLICY, seed=3, key="doc")
    scored = [{**row, "doc": row["n"]} for row in data]
    fresh = [{"input_ids": row["input_ids"], "n": row["n"]} for row in data]
    with_keys = [{**row, "doc": row["n"]} for row in fresh]
    store = toedit.ScoreStore(Path(folder) / "store")
    collator = EditCollator(keyed, collate)
    looking_up = EditCollator(toedit.Editor(keyed.prior, POLICY, seed=3, key="doc", store=store), collate)
    from_column = DataLoader(scored, 4, sampler=sampler, collate_fn=collator, num_workers=1)
    editing = EditingLoader(DataLoader(fresh, 4, sampler=sampler, collate_fn=with_key), keyed)
    from_store = DataLoader(with_keys, 4, sampler=sampler, collate_fn=looking_up, num_workers=1)
    loaders: list[tuple[Any, tuple[Any, ...]]] = [
        (from_column, (sampler, collator)),
        (editing, (editing,)),
        (from_store, (sampler, looking_up)),
        (from_store, (sampler, looking_up)),
    ]
    seen: list[dict[int, list[int]]] = []
    for epoch, (loader, parts) in enumerate(loaders):
        for part in parts:
            part.set_epoch(epoch)
        seen.append({})
        for batch in loader:
            ids = batch["input_ids"]
            seen[-1] |= dict(zip(batch["n"], ids.tolist(), strict=True))
            loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.distributed.barrier()  # what the other rank had of its documents is in the store
    gathered: list[Any] = [None] * RANKS
    torch.distributed.all_gather_object(gathered, (seen, next(model.parameters()).sum().item(), looking_up.store_stats()))
    if rank == 0:
        torch.save(gathered, Path(folder) / "seen")
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")
def test_two_ranks(prior: toedit.Prior, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [i for row in helpers.text_rows(tokenizer, 40 * 16, seed=6) for i in row]
    rows = [ids[n : n + 16] for n in range(0, len(ids), 16)]
    scores = prior.score(rows, keep=POLICY).to_pylist()
    data = [{"input_ids": torch.tensor(row), "n": n, "scores": s} for n, (row, s) in enumerate(zip(rows, scores, strict=True))]
    # Spawned processes find this module.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))))
    torch.multiprocessing.spawn(train, (str(tmp_path), data), nprocs=RANKS)
    gathered = torch.load(tmp_path / "seen")
    assert gathered[0][1] == gathered[1][1]  # one model
    for epoch in range(EPOCHS):
        halves = [seen[epoch] for seen, _, _ in gathered]
        assert [len(half) for half in halves] == [20, 20]
        edited = toedit.Editor(prior, POLICY, seed=3, key="n")(data, epoch)
        assert halves[0] | halves[1] == {row["n"]: row["input_ids"].tolist() for row in edited.batch}
        assert edited.changes > 20
    # The second epoch with the store cost no prior, though the ranks had other halves of the documents.
    assert [counts for *_, counts in gathered] == [{"hits": 20, "misses": 20, "unstored": 0}] * RANKS
    assert gathered[0][0][2].keys() != gathered[0][0][3].keys()
