"""The pipeline's promises. Fixtures that no file here defines come from toedit."""

from __future__ import annotations

from pydoc_data.topics import topics

import pytest
import torch
import train
from torch.utils.data import DataLoader


@pytest.fixture(scope="session")
def rows(toedit_editor):
    """Rows of real text, which every Python carries, with their scores."""
    texts = [topics[name] for name in ("if", "while", "for", "try", "with")]
    return train.score(train.encode(texts, toedit_editor.prior), toedit_editor)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_repeat_in_an_epoch_and_differ_between_epochs(rows, toedit_editor, workers, assert_deterministic):
    assert_deterministic(train.training_loader(rows, toedit_editor, workers))


def test_nothing_but_candidates_changes(rows, toedit_editor, assert_only_candidates_changed):
    collate = train.training_loader(rows, toedit_editor).collate_fn
    changed = assert_only_candidates_changed(rows, collate(rows))
    assert changed == collate.stats().changes > 0


def test_evaluation_data_is_not_edited(rows, assert_deterministic, assert_only_candidates_changed):
    loader = train.evaluation_loader(rows)
    assert_deterministic(loader, epochs=0)
    (batch,) = DataLoader(rows, batch_size=len(rows), collate_fn=loader.collate_fn)
    assert assert_only_candidates_changed(rows, batch) == 0


def test_loss_falls(rows, toedit_editor):
    torch.manual_seed(0)
    first, *_, last = train.train(rows, toedit_editor, epochs=3)
    assert last < first
