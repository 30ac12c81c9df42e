"""The training loop: epochs of batches, validation, callbacks and checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import InitVar, dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from tgeokd.bilevel.functional import trainable
from tgeokd.data.datasets import set_view, views_of
from tgeokd.training.callbacks import Callback
from tgeokd.training.divergence import Divergence
from tgeokd.training.saving import SavedRun, Saving
from tgeokd.training.schedule import step_scheduler
from tgeokd.training.signals import Signalled
from tgeokd.training.step import DistillationStep
from tgeokd.training.survey import Survey
from tgeokd.utils.errors import DivergenceError, InputError

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
        saved: its folder and checkpoints.
        divergence: what is done about it.
        epoch: finished epochs.
        batch: batches read in the running epoch.
    """

    distiller: Distiller
    step: DistillationStep
    train_loader: Loader
    validation: Loader | None
    epochs: int
    callbacks: Sequence[Callback]
    saving: InitVar[Saving]
    divergence: Divergence
    survey: Survey | None = None
    history: History = field(default_factory=History)
    epoch: int = 0
    batch: int = 0
    batches_ended: bool = False  # whether the running epoch has used all batches
    should_stop: bool = False
    _warned: bool = False  # that the ratios have become one number

    def __post_init__(self, saving: Saving) -> None:
        self.saved = SavedRun(self, saving)

    def run(self) -> None:
        """Train until the last epoch or until a callback stops it."""
        saved = self.saved
        try:
            self._call(lambda callback: callback.on_fit_start(self.distiller))
            if self.divergence.how == "skip":
                self.step.statistics.check_now()
            saved.after_start()
            with saved.signals if saved.folder is not None else nullcontext():
                while self.epoch < self.epochs and not self.should_stop:
                    try:
                        self._take_epoch()
                    except DivergenceError as error:
                        self.divergence.roll_back(error)
                        saved.return_to("last")
            self._call(lambda callback: callback.on_fit_end(self.distiller))
        except (InputError, DivergenceError):
            saved.after_error()
            raise
        finally:
            self._call(lambda callback: callback.on_exit(self.distiller))
            saved.close()

    def _take_epoch(self) -> None:
        record = self._run_epoch()
        self.history.append(record)
        self._call(partial(self._end_epoch, record))
        self.epoch, self.batch = self.epoch + 1, 0
        self.saved.after_epoch(record, last=self.epoch == self.epochs or self.should_stop)

    def _call(self, hook: Callable[[Callback], None]) -> None:
        for callback in self.callbacks:
            hook(callback)

    def _end_epoch(self, record: dict[str, Any], callback: Callback) -> None:
        callback.on_epoch_end(self.distiller, record)

    def _run_epoch(self) -> dict[str, Any]:
        started = time.perf_counter()
        step, optimizer, self.batches_ended = self.step, self.distiller.optimizer, False
        held = {id(param) for group in optimizer.param_groups for param in group["params"]}
        outside = [param for param in trainable(step.student).values() if id(param) not in held]
        if self.batch == 0:
            self.saved.mark_epoch()
            self.start_epoch()
            batches = iter(self.train_loader)
        else:
            batches = self.saved.rest_of_epoch()
        for microbatches in _grouped(batches, self.distiller.accumulate):
            forget_gradients(optimizer)
            for param in outside:
                param.grad = None
            with self.divergence.step(step):
                self._take_step(microbatches)
            for item in microbatches:  # what is left of a step that was left out
                self.batch, self.saved.last = self.batch + 1, item
            if self.distiller.scheduler is not None and self.distiller.scheduler_every == "step":
                step_scheduler(self.distiller.scheduler, None)
            self._call(lambda callback: callback.on_step_end(self.distiller))
            self.saved.after_step()
        if self.batch and not step.statistics.count:
            raise DivergenceError(f"every step of epoch {self.epoch + 1} was skipped")
        if not step.statistics.count:
            again = " again: it can be read only once; give a list or a DataLoader" if self.epoch else ""
            raise InputError(f"the training loader is empty in epoch {self.epoch + 1}{again}")
        return self._finish_epoch(started)

    def _take_step(self, microbatches: Iterator[Any]) -> None:
        samples = 0
        for item in microbatches:
            self.batch, self.saved.last = self.batch + 1, item
            batch = self.step.reader.read(item, "training loader")
            loss = self.step.loss(batch)
            if self.distiller.accumulate == 1:
                loss.backward()
            else:  # the mean over all samples of the step, whose number is not known before the last microbatch
                (loss * len(batch)).backward()
                samples += len(batch)
        self.divergence.check_gradient(self.step)
        self._update(samples)

    def _update(self, samples: int) -> None:
        """Scale accumulated gradients, clip, and take the optimizer's step, whose hooks do the rest."""
        if samples or self.step.clip_norm is not None:
            params = [param for param in trainable(self.step.student).values() if param.grad is not None]
            if samples:
                torch._foreach_mul_([param.grad for param in params if param.grad is not None], 1 / samples)
            if self.step.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(params, self.step.clip_norm)
        self.distiller.optimizer.step()

    def start_epoch(self) -> None:
        """Set the view of the data, and tell the step."""
        views = views_of(self.train_loader)
        if views is not None:
            set_view(self.train_loader, self.epoch % views)
        self.step.start_epoch(self.epoch, self.epochs)

    def _finish_epoch(self, started: float) -> dict[str, Any]:
        self.batches_ended = True
        metrics = self._evaluate()
        statistics = self.step.statistics.summary()
        self._watch_ratios(statistics["alpha_saturated"])
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

    def _evaluate(self) -> dict[str, float]:
        """Metrics on the validation set; a signal does not wait for them."""
        while self.validation is not None:
            try:
                with self.saved.signals.at_once():
                    return self.distiller.evaluate(self.validation)
            except Signalled:
                self.saved.end_if_signalled()
        return {}

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
