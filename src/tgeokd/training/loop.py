"""The training loop: epochs of batches, validation, callbacks and checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tgeokd.bilevel.functional import trainable
from tgeokd.core.wrapped import load_plain_state, plain_state
from tgeokd.data.datasets import set_view, views_of
from tgeokd.data.loaders import order_of
from tgeokd.training.callbacks import Callback
from tgeokd.training.checkpoint import Checkpointer
from tgeokd.training.fingerprint import accepted_changes, fingerprints_of
from tgeokd.training.restore import names_by_group, restore_optimizer, restore_trainable, trainable_names
from tgeokd.training.schedule import step_scheduler
from tgeokd.training.state import RandomStates, TrainState
from tgeokd.training.step import DistillationStep
from tgeokd.training.survey import Survey
from tgeokd.utils.errors import InputError, one_line
from tgeokd.utils.files import RunFolder

if TYPE_CHECKING:
    from tgeokd.training.distiller import Distiller


logger = logging.getLogger(__name__)

Loader = Iterable[Any]
DISAGREEMENT = 0.02  # share of samples on which teacher and label disagree from which one ratio for all is a collapse


class History(list[dict[str, Any]]):
    """One record per epoch; ``history["val_loss"]`` is the list of a key over the epochs."""

    def __getitem__(self, key: Any) -> Any:
        return [record.get(key) for record in self] if isinstance(key, str) else super().__getitem__(key)


@dataclass
class TrainingLoop:
    """One call of :meth:`Distiller.fit`.

    Attributes:
        distiller: holds optimizer, scheduler and metrics; callbacks are given it.
        survey: what was found in the data; set before training.
        folder: of the run, or None.
        epoch: finished epochs.
        batch: batches read in the running epoch.
    """

    distiller: Distiller
    step: DistillationStep
    train_loader: Loader
    validation: Loader | None
    epochs: int
    callbacks: Sequence[Callback]
    checkpoint_every: int
    survey: Survey | None = None
    _warned: bool = False  # that the ratios have become one number
    folder: RunFolder | None = None
    history: History = field(default_factory=History)
    epoch: int = 0
    batch: int = 0
    should_stop: bool = False
    fingerprints: dict[str, dict[str, Any]] = field(default_factory=dict)
    _checkpointer: Checkpointer | None = None
    _save_after_epoch: bool = False
    _changed: set[str] = field(default_factory=set)  # of the settings of a resumed run
    _state: TrainState | None = None  # that the run was resumed from

    def run(self) -> None:
        """Train until the last epoch or until a callback stops it."""
        try:
            self._call(lambda callback: callback.on_fit_start(self.distiller))
            if (
                self._state is not None and "trainable" not in self._changed
            ):  # a callback may freeze at the start what it has unfrozen since
                restore_trainable(self.step.student, self._state.trainable)
            while self.epoch < self.epochs and not self.should_stop:
                record = self._run_epoch()
                self.history.append(record)
                self._call(partial(self._end_epoch, record))
                self.epoch, self.batch = self.epoch + 1, 0
                if self.folder is not None:
                    # The checkpoint comes first, also after the first epoch: a folder with metrics can always be resumed.
                    due = self._save_after_epoch or self.epoch in (1, self.epochs) or self.should_stop
                    if due or self.epoch % self.checkpoint_every == 0:
                        self.save()
                    self.folder.append_line("metrics.jsonl", record)
            self._call(lambda callback: callback.on_fit_end(self.distiller))
        finally:
            self._call(lambda callback: callback.on_exit(self.distiller))

    def _call(self, hook: Callable[[Callback], None]) -> None:
        for callback in self.callbacks:
            hook(callback)

    def _end_epoch(self, record: dict[str, Any], callback: Callback) -> None:
        callback.on_epoch_end(self.distiller, record)

    def _mark_epoch(self) -> None:
        """Keep the random states at the start of an epoch: from them the order of its batches can be repeated."""
        self._random_at_epoch = RandomStates.capture(self.step.reader.device)
        self._order_at_epoch = self._order()

    def _run_epoch(self) -> dict[str, Any]:
        started = time.perf_counter()
        step, optimizer = self.step, self.distiller.optimizer
        held = {id(param) for group in optimizer.param_groups for param in group["params"]}
        outside = [param for param in trainable(step.student).values() if id(param) not in held]
        if self.batch == 0:
            self._mark_epoch()
            self._start_epoch()
            batches = iter(self.train_loader)
        else:
            batches = self._resumed_batches()
        for microbatches in _grouped(batches, self.distiller.accumulate):
            forget_gradients(optimizer)
            for param in outside:
                param.grad = None
            samples = 0
            for item in microbatches:
                batch = step.reader.read(item, "training loader")
                loss = step.loss(batch)
                if self.distiller.accumulate == 1:
                    loss.backward()
                else:  # the mean over all samples of the step, whose number is not known before the last microbatch
                    (loss * len(batch)).backward()
                    samples += len(batch)
                self.batch += 1
            self._update(samples)
            if self.distiller.scheduler is not None and self.distiller.scheduler_every == "step":
                step_scheduler(self.distiller.scheduler, None)
            self._call(lambda callback: callback.on_step_end(self.distiller))
        if not step.statistics.count:
            again = " again: it can be read only once; give a list or a DataLoader" if self.epoch else ""
            raise InputError(f"the training loader is empty in epoch {self.epoch + 1}{again}")
        return self._finish_epoch(started)

    def _update(self, samples: int) -> None:
        """Scale accumulated gradients, clip, and take the optimizer's step, whose hooks do the rest."""
        if samples or self.step.clip_norm is not None:
            params = [param for param in trainable(self.step.student).values() if param.grad is not None]
            if samples:
                torch._foreach_mul_([param.grad for param in params if param.grad is not None], 1 / samples)
            if self.step.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(params, self.step.clip_norm)
        self.distiller.optimizer.step()

    def _start_epoch(self) -> None:
        views = views_of(self.train_loader)
        if views is not None:
            set_view(self.train_loader, self.epoch % views)
        self.step.start_epoch(self.epoch, self.epochs)

    def _finish_epoch(self, started: float) -> dict[str, Any]:
        statistics = self.step.statistics.summary()
        self._watch_ratios(statistics["alpha_saturated"])
        metrics = self.distiller.evaluate(self.validation) if self.validation is not None else {}
        optimizer = self.distiller.optimizer
        rate = optimizer.param_groups[0]["lr"]
        if self.distiller.scheduler is not None and self.distiller.scheduler_every == "epoch":
            step_scheduler(self.distiller.scheduler, metrics.get("nll"))
        self.step.method.after_epoch(self.epoch, self.epochs, self.step.student, optimizer, metrics)
        record: dict[str, Any] = {"epoch": self.epoch, "train_loss": statistics.pop("train_loss"), "lr": float(rate)}
        if metrics:
            primary = self.distiller.metrics.primary
            record |= {"val_loss": metrics["nll"], "val_accuracy": metrics["accuracy"]}
            record[f"val_{primary}"] = metrics[primary]
        return record | statistics | {"seconds": round(time.perf_counter() - started, 4)}

    def _watch_ratios(self, saturated: float | None) -> None:
        """Warn, once, where a learned ratio has become the same end of [0, 1] for all samples."""
        disagreement = self.step.statistics.ratios.disagreement()
        if self._warned or not self.step.learns or saturated != 1.0 or disagreement < DISAGREEMENT:
            return
        self._warned = True
        end = "0 (labels alone)" if (self.step.statistics.ratios.mean() or 0) < 0.5 else "1 (teacher alone)"
        logger.warning(
            "epoch %d: every fusion ratio is within 0.02 of %s, although teacher and label disagree on %.0f %% of the "
            "samples: the ratio no longer learns. A penalty > 0 or a smaller lr of the method prevents this",
            *(self.epoch + 1, end, 100 * disagreement),
        )

    # ---- checkpoints

    def save(self) -> None:
        """Write a checkpoint now, between two optimizer steps; at the end of an epoch after all callbacks."""
        if not self.step.parallel.is_main:
            return
        if self.folder is None:
            raise InputError("a checkpoint is written in the folder of a run: fit(..., out=...)")
        self._save_after_epoch = len(self.history) > self.epoch
        if self._save_after_epoch:
            return
        if self._checkpointer is None:
            self._checkpointer = Checkpointer(self.folder.path)
        self._checkpointer.save(self.state())

    def state(self) -> TrainState:
        """Everything that a resumed run needs."""
        assert self.survey is not None
        if self.batch == 0:
            self._mark_epoch()
        return TrainState(
            epoch=self.epoch,
            batch=self.batch,
            student=plain_state(self.step.student),
            optimizer=self.distiller.optimizer.state_dict(),
            scheduler=None if self.distiller.scheduler is None else self.distiller.scheduler.state_dict(),
            step=self.step.state_dict(),
            survey=vars(self.survey),
            callbacks=[[type(c).__name__, c.state_dict()] for c in self.callbacks if c.state_dict()],
            history=list(self.history),
            should_stop=self.should_stop,
            random=RandomStates.capture(self.step.reader.device),
            random_at_epoch=self._random_at_epoch,
            order=self._order(),
            order_at_epoch=self._order_at_epoch,
            fingerprints=self.fingerprints,
            parameters=names_by_group(self.distiller.optimizer, self.step.student),
            trainable=trainable_names(self.step.student),
        )

    def open(self, out: Path, *, resume: bool, accept: Sequence[str]) -> TrainState | None:
        """Note what is trained in the folder of the run; the checkpoint to resume, if it is of the same training.

        Raises:
            InputError: where there is none, and for a difference that the user does not accept.
        """
        self.fingerprints = fingerprints_of(self, resume=resume)
        if not resume:
            return None
        state = Checkpointer(out).load()
        self._changed = accepted_changes(state, self.fingerprints, accept)
        return state

    def load(self, state: TrainState) -> None:
        """Continue from a checkpoint; InputError where it is of another student, optimizer, scheduler or callbacks."""
        self.epoch, self.batch, self.should_stop = state.epoch, state.batch, state.should_stop
        try:
            load_plain_state(self.step.student, state.student)
            restore_optimizer(self.distiller, self.step.student, state, self._changed)
            self.step.epoch, self.step.epochs = self.epoch, self.epochs
            self.step.load_state_dict(state.step)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"the checkpoint does not fit this student, optimizer, scheduler and method: {one_line(error)}"
            ) from error
        self._load_callbacks(state.callbacks)
        self.history.extend(state.history)
        self._random_at_epoch, self._order_at_epoch = state.random_at_epoch, state.order_at_epoch
        self._state = state
        self._restore_random(state.random, state.order)
        if self.folder is not None:
            self.folder.write_lines("metrics.jsonl", self.history)

    def _load_callbacks(self, states: list[list[Any]]) -> None:
        waiting = list(self.callbacks)
        for name, state in states:
            callback = next((c for c in waiting if type(c).__name__ == name), None)
            if callback is None:
                raise InputError(f"the run to resume had a callback {name}, and this one has none")
            waiting.remove(callback)
            callback.load_state_dict(state)

    def _resumed_batches(self) -> Iterator[Any]:
        """The rest of an epoch that was interrupted: its order is repeated, and the batches that were used are skipped."""
        state = self._state
        assert state is not None
        self._restore_random(state.random_at_epoch, state.order_at_epoch)
        self._start_epoch()
        batches = iter(self.train_loader)
        skipped = sum(1 for _ in islice(batches, self.batch))
        if skipped < self.batch:
            raise InputError(f"the training loader yields {skipped} batches, and {self.batch} of the epoch were used")
        self.step.load_state_dict(state.step)
        self._restore_random(state.random, state.order)
        return batches

    def _restore_random(self, states: RandomStates, order: Tensor | None) -> None:
        generator = order_of(self.train_loader)
        if generator is not None and order is not None:
            generator.set_state(order)
        states.restore(self.step.reader.device)

    def _order(self) -> Tensor | None:
        generator = order_of(self.train_loader)
        return None if generator is None else generator.get_state()


def _grouped(batches: Iterator[Any], size: int) -> Iterator[Iterator[Any]]:
    """Iterators over ``size`` batches each; the last may have fewer. No batch is held back."""
    for first in batches:
        yield _chain(first, batches, size - 1)


def _chain(first: Any, rest: Iterator[Any], count: int) -> Iterator[Any]:
    yield first
    yield from islice(rest, count)


def forget_gradients(optimizer: Optimizer) -> None:
    """The optimizer's ``zero_grad``, without the profiler's bookkeeping around torch's own."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = None
