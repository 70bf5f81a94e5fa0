"""Lightning: epochs of what edits, its counts in the logs, and evaluation data that is never edited."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from toedit._editing import Editing, FirstBatch, logged
from toedit._errors import InputError, MissingDependencyError

__all__ = ["EpochCallback"]

# The same code under two names. Which one a program uses can be seen from what it has imported.
_PACKAGES = ("lightning.pytorch", "pytorch_lightning")

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    for _name in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        try:
            Callback = importlib.import_module(_name).Callback
            break
        except ImportError as error:
            _error = error
    else:
        raise MissingDependencyError("toedit.lightning needs Lightning: pip install lightning") from _error


class EpochCallback(Callback):
    """Moves the epoch of what edits in Lightning's Trainer, and puts its counts into the logs.

        collator = EditCollator(editor, collate)
        trainer = Trainer(callbacks=[EpochCallback(collator)])
        trainer.fit(model, DataLoader(rows, collate_fn=collator), evaluation)

    The epoch is the trainer's, in a run that is resumed that of its checkpoint; Lightning itself hands it on to samplers only.
    Every ``log_every_n_steps`` steps and after each epoch the loggers get ``toedit/tokens``, ``toedit/candidates``,
    ``toedit/changes`` and ``toedit/expected_changes``: totals of this process so far.

    Args:
        editing: the EditCollator, EditedDataset or EditingLoader that the training data goes through.

    Raises (while training or evaluating):
        InputError: data for validation, tests or prediction would be edited; the training data do not go through *editing*.
    """

    def __init__(self, editing: Editing) -> None:
        if not isinstance(editing, Editing):
            raise InputError(
                f"editing is a {type(editing).__name__}; it must be the EditCollator, EditedDataset or EditingLoader of the "
                "training data"
            )
        self.editing = editing
        self._first = FirstBatch(editing)

    # Lightning makes the first epoch's iterator, from which workers start, before it calls on_train_epoch_start, and does not
    # call that for the epoch that a run resumes in. So the epoch is set as soon as it is known.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.editing.set_epoch(trainer.current_epoch)
            self._first.awaited()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.editing.set_epoch(_epoch_of(checkpoint))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.editing.set_epoch(trainer.current_epoch)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._first.is_there("Give it the loader of that one")
        every = trainer.log_every_n_steps
        if every and (trainer.global_step + 1) % every == 0:
            self._log(trainer, trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._log(trainer, max(trainer.global_step - 1, 0))

    def _log(self, trainer: Any, step: int) -> None:
        # To the loggers themselves: LightningModule.log makes 32-bit floats of counts.
        for logger in trainer.loggers:
            logger.log_metrics(logged(self.editing.stats()), step=step)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        _refuse_edits(trainer.val_dataloaders)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        _refuse_edits(trainer.test_dataloaders)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        _refuse_edits(trainer.predict_dataloaders)


def _epoch_of(checkpoint: Mapping[str, Any]) -> int:
    """The epoch that a run goes on in."""
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    # Behind the last batch an epoch is over, but not yet noted so.
    over = batches["is_last_batch"] and epochs["started"] > epochs["processed"]
    return int(epochs["processed"] + over)


def _refuse_edits(loaders: Any) -> None:
    for loader in _flat(loaders):
        part: Any
        for part in (*_inside(loader), getattr(loader, "collate_fn", None)):
            if isinstance(part, Editing):
                raise InputError(
                    f"the evaluation data goes through an {type(part).__name__}, but is never edited; give its loader the "
                    "dataset and the collate function as they are"
                )


def _flat(loaders: Any) -> Iterator[Any]:
    """Each of the loaders, of which Trainer takes several in lists and mappings."""
    if isinstance(loaders, (list, tuple, Mapping)):
        for each in loaders.values() if isinstance(loaders, Mapping) else loaders:
            yield from _flat(each)
    else:
        yield loaders


def _inside(loader: Any) -> Iterator[Any]:
    """A loader, its dataset, the dataset which that is a part of, ..."""
    while loader is not None:
        yield loader
        loader = getattr(loader, "dataset", None)
