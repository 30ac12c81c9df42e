"""A training run and its checkpoints: when one is written, what it holds, and going on from it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from tgeokd.core.metrics import best_index
from tgeokd.core.validation import check_count, check_positive
from tgeokd.core.wrapped import load_plain_state, plain_state
from tgeokd.data.batch import batch_digest
from tgeokd.data.loaders import load_state, order_of, state_of
from tgeokd.training.checkpoint import Checkpointer
from tgeokd.training.divergence import check_finite, slow_down
from tgeokd.training.fingerprint import accepted_changes, fingerprints_of
from tgeokd.training.restore import names_by_group, restore_optimizer, restore_trainable, trainable_names
from tgeokd.training.signals import HeldSignals
from tgeokd.training.state import RandomStates, TrainState
from tgeokd.utils.errors import InputError, one_line
from tgeokd.utils.run_folder import RunFolder

if TYPE_CHECKING:
    from tgeokd.training.loop import TrainingLoop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saving:
    """When checkpoints are written, and how many are kept.

    Attributes:
        every: epochs between two checkpoints.
        minutes: after a step, one is written where the last one is older than this; None for none.
        keep: of the newest ones. The newest one of the end of an epoch and the best one are kept in any case.
    """

    every: int = 1
    minutes: float | None = 5.0
    keep: int = 2

    def __post_init__(self) -> None:
        check_count(1, checkpoint_every=self.every, keep_checkpoints=self.keep)
        check_positive("checkpoint_minutes", self.minutes)


class SavedRun:
    """The checkpoints of one call of :meth:`Distiller.fit`.

    Attributes:
        folder: of the run, or None.
        signals: that ask for the end of the training.
        state: that the run was resumed from, or None.
        last: what the training loader yielded last.
    """

    def __init__(self, loop: TrainingLoop, saving: Saving) -> None:
        self.loop, self.saving = loop, saving
        self.folder: RunFolder | None = None
        self.signals = HeldSignals()
        self.state: TrainState | None = None
        self.last: Any = None
        self._fingerprints: dict[str, dict[str, Any]] = {}
        self._checkpointer: Checkpointer | None = None
        self._after_epoch = False  # a callback has asked for a checkpoint at the end of the epoch
        self._changed: set[str] = set()  # of the settings of a resumed run
        self._saved_at = time.monotonic()

    # ---- writing

    def save(self) -> None:
        """Write a checkpoint now, between two optimizer steps; at the end of an epoch after all callbacks."""
        if self.folder is None and self.loop.step.parallel.is_main:
            raise InputError("a checkpoint is written in the folder of a run: fit(..., out=...)")
        self._after_epoch = len(self.loop.history) > self.loop.epoch
        if not self._after_epoch:
            self._write(wait=True)

    def after_start(self) -> None:
        """Write the first checkpoint of a new run, so that it can be resumed from its first step on."""
        if self.folder is None:
            return
        if self.state is None:
            self._write()
        elif "trainable" not in self._changed:  # a callback may freeze at the start what it has unfrozen since
            restore_trainable(self.loop.step.student, self.state.trainable)

    def after_step(self) -> None:
        """Write a checkpoint where a signal asks for the end, or the time has come."""
        if self.signals.pending is not None:
            self.end_if_signalled()
        elif self.saving.minutes is not None and time.monotonic() - self._saved_at > 60 * self.saving.minutes:
            self._write()

    def after_epoch(self, record: dict[str, Any], *, last: bool) -> None:
        """Write a checkpoint where one is due, and then the line of ``metrics.jsonl``."""
        if self.folder is None:
            return
        best = self._is_best()
        if self._after_epoch or best or last or self.loop.epoch % self.saving.every == 0:
            self._write(best=best)
        self.folder.append_line("metrics.jsonl", record)
        self.end_if_signalled()

    def end_if_signalled(self) -> None:
        """Write a checkpoint and give a signal that was held back to its handler, which in general ends the run."""
        if self.signals.pending is not None:
            self._write(wait=True)
            self.signals.deliver()

    def after_error(self) -> None:
        """Leave a folder without a run where the error came before the second checkpoint: it can be used again."""
        if self._checkpointer is not None and self.state is None:
            self._checkpointer.forget_start()

    def close(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self._checkpointer is not None:
            self._checkpointer.wait()

    def _write(self, *, best: bool = False, wait: bool = False) -> None:
        self._after_epoch = False
        if self.folder is None:  # another process writes
            return
        assert self._checkpointer is not None
        check_finite(self.loop.step.student, self.loop.step.index)
        self._checkpointer.save(self._state(), best=best, wait=wait)
        self._saved_at = time.monotonic()

    def _is_best(self) -> bool:
        """Whether the last epoch is the best one by the validation set, where that is not trained on."""
        primary = self.loop.distiller.metrics.primary
        values = [record[f"val_{primary}"] for record in self.loop.history if f"val_{primary}" in record]
        if not values or self.loop.step.method.outer == "union":
            return False
        return best_index(values, primary) == len(values) - 1

    def _state(self) -> TrainState:
        """Everything that a resumed run needs."""
        loop, distiller, student = self.loop, self.loop.distiller, self.loop.step.student
        assert loop.survey is not None
        if loop.batch == 0:
            self.mark_epoch()
        return TrainState(
            epoch=loop.epoch,
            batch=loop.batch,
            student=plain_state(student),
            optimizer=distiller.optimizer.state_dict(),
            scheduler=None if distiller.scheduler is None else distiller.scheduler.state_dict(),
            step=loop.step.state_dict(),
            survey=vars(loop.survey),
            callbacks=[[type(c).__name__, c.state_dict()] for c in loop.callbacks if c.state_dict()],
            history=list(loop.history),
            should_stop=loop.should_stop,
            random=RandomStates.capture(loop.step.reader.device),
            random_at_epoch=self._random_at_epoch,
            order=self._order(),
            order_at_epoch=self._order_at_epoch,
            fingerprints=self._fingerprints,
            parameters=names_by_group(distiller.optimizer, student),
            trainable=trainable_names(student),
            # at the end of an epoch its state would be that of the next one, for which it draws random numbers
            loader=state_of(loop.train_loader) if loop.batch and not loop.batches_ended else None,
            last_batch=batch_digest(self.last) if loop.batch else None,
            divergence=[loop.divergence.skipped, loop.divergence.rollbacks],
        )

    def mark_epoch(self) -> None:
        """Keep the random states at the start of an epoch: from them the order of its batches can be repeated."""
        self._random_at_epoch = RandomStates.capture(self.loop.step.reader.device)
        self._order_at_epoch = self._order()

    def _order(self) -> Tensor | None:
        generator = order_of(self.loop.train_loader)
        return None if generator is None else generator.get_state()

    # ---- going on

    def open(self, out: Path, *, resume: bool | Literal["best"], accept: Sequence[str]) -> TrainState | None:
        """Note what is trained in the folder of the run; the checkpoint to resume, if it is of the same training.

        Raises:
            InputError: where there is none, and for a difference that the user does not accept.
        """
        self._fingerprints = fingerprints_of(self.loop, resume=bool(resume))
        self._checkpointer = Checkpointer(out, keep=self.saving.keep)
        if not resume:
            return None
        state = self._checkpointer.load("best" if resume == "best" else "last")
        self._changed = accepted_changes(state, self._fingerprints, accept)
        return state

    def load(self, state: TrainState) -> None:
        """Continue from a checkpoint; InputError where it is of another student, optimizer, scheduler or callbacks."""
        loop, step = self.loop, self.loop.step
        loop.epoch, loop.batch, loop.should_stop = state.epoch, state.batch, state.should_stop
        try:
            load_plain_state(step.student, state.student)
            restore_optimizer(loop.distiller, step.student, state, self._changed)
            step.epoch, step.epochs = loop.epoch, loop.epochs
            step.load_state_dict(state.step)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"the checkpoint does not fit this student, optimizer, scheduler and method: {one_line(error)}"
            ) from error
        self._load_callbacks(state.callbacks)
        loop.history[:] = state.history
        loop.divergence.skipped, loop.divergence.rollbacks = state.divergence
        self._random_at_epoch, self._order_at_epoch = state.random_at_epoch, state.order_at_epoch
        self.state = state
        self._restore_random(state.random, state.order)
        if self.folder is not None:
            self.folder.write_lines("metrics.jsonl", loop.history)

    def return_to(self, which: Literal["last", "epoch"]) -> None:
        """Go on from a checkpoint of this run, at the lower learning rate of a return after a divergence."""
        assert self._checkpointer is not None
        self._checkpointer.wait()
        divergence = self.loop.divergence
        count = divergence.rollbacks
        self.load(self._checkpointer.load(which))
        slow_down(self.loop.distiller.optimizer, self.loop.distiller.scheduler, count - divergence.rollbacks)
        divergence.rollbacks = count

    def rest_of_epoch(self) -> Iterator[Any]:
        """The batches of an interrupted epoch that were not used, from the state of the loader where it has one.

        Otherwise the order of the epoch is repeated. A loader that has another order the second time is recognised by the last
        batch that was used; the epoch then begins anew, from the checkpoint of its start.
        """
        state, loader = self.state, self.loop.train_loader
        assert state is not None
        self._restore_random(state.random_at_epoch, state.order_at_epoch)
        self.loop.start_epoch()
        if state.loader is not None and load_state(loader, state.loader):
            batches = iter(loader)
        else:
            batches = iter(loader)
            used = deque(enumerate(islice(batches, state.batch), start=1), maxlen=1)
            count, self.last = used[0] if used else (0, None)
            if count < state.batch:
                raise InputError(
                    f"the training loader yields {count} batches, and {state.batch} of the epoch were used"
                )
            found = batch_digest(self.last)
            if found != state.last_batch and None not in (found, state.last_batch):
                return self._epoch_anew()
        self.loop.step.load_state_dict(state.step)
        self._restore_random(state.random, state.order)
        return batches

    def _epoch_anew(self) -> Iterator[Any]:
        logger.warning(
            "the training loader does not repeat the order of epoch %d, which therefore begins anew; a loader with "
            "state_dict() and load_state_dict(), such as torchdata's StatefulDataLoader, goes on where it was",
            self.loop.epoch + 1,
        )
        self.return_to("epoch")
        self.mark_epoch()
        self.loop.start_epoch()
        return iter(self.loop.train_loader)

    def _load_callbacks(self, states: list[list[Any]]) -> None:
        waiting = list(self.loop.callbacks)
        for name, state in states:
            callback = next((c for c in waiting if type(c).__name__ == name), None)
            if callback is None:
                raise InputError(f"the run to resume had a callback {name}, and this one has none")
            waiting.remove(callback)
            callback.load_state_dict(state)

    def _restore_random(self, states: RandomStates, order: Tensor | None) -> None:
        generator = order_of(self.loop.train_loader)
        if generator is not None and order is not None:
            generator.set_state(order)
        states.restore(self.loop.step.reader.device)
