"""What of :mod:`toedit.hf` needs torch and transformers: editing as datasets are read, and Trainer's epochs and logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toedit._arrow import LABELS
from toedit._editing import FirstBatch, logged
from toedit._errors import InputError, MissingDependencyError
from toedit.editor import Editor
from toedit.torch import EditCollator, EditedDataset

try:
    from transformers import TrainerCallback
except ImportError as error:  # pragma: no cover - depends on the environment
    raise MissingDependencyError("toedit.hf.EpochCallback needs transformers: pip install 'toedit[hf]'") from error

__all__ = ["EditTransform", "EpochCallback"]


class EditTransform(EditCollator):
    """A transform for ``Dataset.set_transform`` and ``with_transform``, which edits rows as they are read.

    Scores, key and offset columns are removed, as :class:`toedit.torch.EditedDataset` does. ``set_epoch`` and ``stats`` are
    those of :class:`toedit.torch.EditCollator`, shared with DataLoader workers. Trainer removes columns behind a transform's
    back: there wrap the dataset in EditedDataset, or set ``remove_unused_columns=False``.

        transform = EditTransform(editor)
        dataset.set_transform(transform)

    Args:
        editor: what edits. Where its policy sets labels, rows must have ``labels``.
    """

    def __init__(self, editor: Editor) -> None:
        super().__init__(editor, _unchanged)

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        if self._sets_labels and LABELS not in batch:
            raise InputError(f"the policy sets labels, but the rows have no column {LABELS!r}; give them labels")
        return super().__call__(batch)


def _unchanged(batch: Any) -> Any:
    return batch


class EpochCallback(TrainerCallback):
    """Moves the epoch of what edits in transformers' Trainer, and puts its counts into Trainer's logs.

        train = EditedDataset(dataset, editor)
        Trainer(model, args, collator, train_dataset=train, eval_dataset=evaluation, callbacks=[EpochCallback(train)])

    Each pass over the training data is an epoch, also where Trainer knows no length (``max_steps`` over a stream); a run that
    is resumed goes on in the epoch of its checkpoint. The training logs get ``toedit/tokens``, ``toedit/candidates``,
    ``toedit/changes`` and ``toedit/expected_changes``: totals of this process so far. Callbacks see them that come later in
    Trainer's list; for those that ``report_to`` names, put this one first:
    ``trainer.callback_handler.callbacks.insert(0, EpochCallback(train))``.

    TRL's SFTTrainer takes nothing but ``datasets`` for its training data, which it prepares when it is made. There the dataset
    is wrapped afterwards:

        trainer.train_dataset = train = EditedDataset(trainer.train_dataset, editor)
        trainer.add_callback(EpochCallback(train))

    Args:
        editing: the EditedDataset, EditCollator or EditTransform that the training data goes through.

    Raises (while training):
        InputError: the evaluation data would be edited; the training data do not go through *editing*; the columns that a
            transform reads were removed before it.
    """

    def __init__(self, editing: EditCollator | EditedDataset) -> None:
        if not isinstance(editing, (EditCollator, EditedDataset)):
            raise InputError(
                f"editing is a {type(editing).__name__}; it must be the EditedDataset, EditCollator or EditTransform of the "
                "training data"
            )
        self.editing = editing
        self._next = 0
        self._first = FirstBatch(editing)

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        # Behind the decimal point are the steps of an epoch that a checkpoint was made in.
        self._next = int(state.epoch or 0)
        self._first.awaited()
        form = getattr(getattr(train_dataloader, "dataset", None), "format", None)
        transformed = isinstance(form, Mapping) and form.get("type") == "custom"
        if transformed and isinstance(self.editing, EditTransform) and args.remove_unused_columns:
            raise InputError(
                "Trainer has removed the columns that the transform reads (scores, key, offset) from the dataset under it; set "
                "remove_unused_columns=False, or wrap the dataset in an EditedDataset instead"
            )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.editing.set_epoch(self._next)
        self._next += 1

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A process to which another one hands its batches edits nothing itself.
        if state.is_world_process_zero:
            self._first.is_there(
                "Give it that dataset; where TRL's trainer does not take it, set trainer.train_dataset to it afterwards"
            )

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any) -> None:
        collate = getattr(eval_dataloader, "collate_fn", None)
        for part in (getattr(eval_dataloader, "dataset", None), collate, getattr(collate, "data_collator", None)):
            if isinstance(part, (EditCollator, EditedDataset)):
                raise InputError(
                    f"the evaluation data goes through an {type(part).__name__}, but is never edited; wrap "
                    "the training data in an EditedDataset, and give Trainer the collate function and other data as they are"
                )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs is None or not {"loss", "train_loss"} & logs.keys():
            return
        counts = logged(self.editing.stats())
        logs.update(counts)
        state.log_history[-1].update(counts)  # a copy, made before
