"""The training loop: one for all methods, on any device and in any precision that Lightning Fabric offers."""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tgeokd.bilevel import Lookahead
from tgeokd.bilevel.optimizer_rules import unwrapped
from tgeokd.core.compiling import check_compiler, compiled
from tgeokd.core.geometry import ClassMeans
from tgeokd.core.losses import logits_from_probs
from tgeokd.core.metrics import Metrics
from tgeokd.core.model_call import class_logits, class_probs, eval_mode, random_state, replayed
from tgeokd.core.ratio_statistics import RatioStatistics
from tgeokd.core.validation import FiniteGuard, check_classes_held_out, check_same_classes, check_target
from tgeokd.data.batch import Batch as Samples
from tgeokd.data.loaders import OuterStream, group, set_view, union_loader, views_of
from tgeokd.methods import Batch, Method, Signals, TrainingStep, build_method
from tgeokd.teachers import CachedTeacher, StoredPredictions, TeacherCacheOptions, as_teacher
from tgeokd.training.callbacks import Callback, EarlyStopping, ProgressBar
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import RunFolder

__all__ = ["Distiller", "History"]

logger = logging.getLogger(__name__)

Loader = Iterable[Any]


class History(list[dict[str, Any]]):
    """One record an epoch; ``history["val_loss"]`` is the list of a key over the epochs."""

    def __getitem__(self, key: Any) -> Any:
        return [record.get(key) for record in self] if isinstance(key, str) else super().__getitem__(key)


class Distiller:
    """Train a student on a teacher's predictions and on labels, with a method that says how much of each.

    Loaders yield ``(inputs, target)`` or ``(inputs, target, ids)``. ``inputs`` may be a tensor, a mapping (passed to the
    models as keywords) or a tuple (passed as positional arguments); ``target`` holds class indices, int64, shape (N,);
    ``ids``, int64, shape (N,), name the samples for a teacher of stored predictions. A model returns logits of shape (N, C),
    or an object that holds them in ``.logits``; one logit a sample stands for the two-class logits ``(0, z)``.

    Args:
        student: any module.
        teacher: any module, or any callable from inputs to logits; it is put in eval mode and gets no gradient. Or
            :class:`~tgeokd.teachers.StoredPredictions`, asked by sample id. None for a method that needs no teacher.
        method: a :class:`~tgeokd.methods.Method`, or its name for the default options.
        optimizer: over the student's parameters.
        temperature: ``tau`` of the teacher term.
        teacher_probs: the teacher returns class probabilities rather than logits. The two cannot be told apart by looking at
            them, so this is never guessed.
        cache_teacher: ask the teacher once about every training sample and train on what it said: faster wherever the teacher
            is the larger one. Loaders must yield ids. A training set that augments at random (:class:`ArrayDataset` with a
            transform that has ``view``) then has a fixed number of augmented views of each sample, one an epoch in turn, so
            that the teacher speaks of the very pixels the student sees. :class:`~tgeokd.teachers.TeacherCacheOptions` say how
            many, how they are stored and where; ``True`` takes the defaults.
        scheduler: learning-rate scheduler of ``optimizer``. ``ReduceLROnPlateau`` watches the held-out loss.
        scheduler_every: step it once an ``"epoch"`` or once a ``"step"``.
        clip_norm: clip the gradient to this norm before each step.
        accumulate: batches of the loader that make one optimizer step. The loss is the mean over all their samples.
        assume_sgd: let a bilevel method treat an optimizer other than SGD, Adam and AdamW as plain SGD.
        metrics: what :meth:`evaluate` gives; must have ``accuracy`` and ``nll``. The record of each epoch holds these and the
            primary metric of the held-out set.
        callbacks: see :class:`~tgeokd.training.callbacks.Callback`.
        accelerator: as in Lightning Fabric: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        precision: as in Lightning Fabric: ``"32-true"``, ``"bf16-mixed"``, ``"64-true"``, ...; not ``"16-mixed"``.
        compile: compile the training pass of the student, and a teacher that is a module, with ``torch.compile``. The first
            steps take a minute or so longer; evaluation and the hypergradient's extra passes stay as they are.
        progress: show a progress bar.

    Attributes:
        device: where training runs.

    Raises:
        ValueError: for a temperature that is not positive, an unknown method, a missing teacher, or an optimizer that the
            method cannot look ahead through.

    Example:
        >>> distiller = Distiller(student, teacher, TGeoKD(), torch.optim.SGD(student.parameters(), 0.1))  # doctest: +SKIP
        >>> history = distiller.fit(train_loader, val_loader, epochs=100, out="runs/mine")                 # doctest: +SKIP
        >>> distiller.evaluate(test_loader)                                                                # doctest: +SKIP
        {'accuracy': 0.953, 'nll': 0.161}
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        method: Method | str,
        optimizer: Optimizer,
        *,
        temperature: float = 4.0,
        teacher_probs: bool = False,
        cache_teacher: bool | TeacherCacheOptions = False,
        scheduler: LRScheduler | ReduceLROnPlateau | None = None,
        scheduler_every: Literal["epoch", "step"] = "epoch",
        clip_norm: float | None = None,
        accumulate: int = 1,
        assume_sgd: bool = False,
        metrics: Metrics | None = None,
        callbacks: Sequence[Callback] = (),
        accelerator: str = "auto",
        precision: Any = "32-true",
        compile: bool = False,
        progress: bool = True,
    ) -> None:
        if accumulate < 1:
            raise InputError(f"accumulate must be >= 1, not {accumulate}")
        if scheduler_every not in ("epoch", "step"):
            raise InputError(f"scheduler_every must be 'epoch' or 'step', not {scheduler_every!r}")
        if isinstance(scheduler, ReduceLROnPlateau) and scheduler_every == "step":
            raise InputError("ReduceLROnPlateau watches the held-out loss of an epoch: scheduler_every must be 'epoch'")
        if str(precision) in ("16-mixed", "16"):
            raise InputError(
                "precision '16-mixed' scales the loss, which the lookahead cannot follow; use 'bf16-mixed'"
            )
        self.method = build_method(method) if isinstance(method, str) else method
        if teacher is None and self.method.needs_teacher:
            raise InputError(f"method {self.method.name!r} needs a teacher, and None was given")
        self.temperature = temperature
        self.teacher_probs = teacher_probs
        self.scheduler, self.scheduler_every = scheduler, scheduler_every
        self.accumulate = accumulate
        self.metrics = metrics or Metrics()
        if not {"accuracy", "nll"} <= set(self.metrics.names):
            given = ", ".join(self.metrics.names)
            raise InputError(f"metrics must have accuracy and nll, which every epoch records, not only {given}")
        self.callbacks = [*callbacks, *([ProgressBar()] if progress else [])]

        self.student, self.optimizer = student, unwrapped(optimizer)
        try:
            self.fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"accelerator={accelerator!r}, precision={precision!r}: {error}") from error
        self.device: torch.device = self.fabric.device
        self._precision: str = self.fabric.strategy.precision.precision
        # Fabric puts modules on the device and into the precision, in place. Its wrapper around them is not used: it insists
        # on `fabric.backward`, and the lookahead takes gradients with `torch.autograd.grad`.
        self.fabric.setup(student, optimizer)
        self._teacher = teacher
        self.cache_teacher = TeacherCacheOptions() if cache_teacher is True else cache_teacher or None
        self._cached: CachedTeacher | None = None
        if self.cache_teacher is not None and isinstance(teacher, StoredPredictions):
            logger.info("the teacher is stored predictions already: cache_teacher changes nothing")
            self.cache_teacher = None
        if compile:
            check_compiler(self.device)
        self._run_teacher = teacher
        if isinstance(teacher, nn.Module):
            self.fabric.setup_module(teacher)
            teacher.eval()
            self._run_teacher = compiled(teacher) if compile else teacher
        self._lookahead = Lookahead(
            self.student,
            self.optimizer,
            temperature=temperature,
            method=self.method.hypergradient,
            clip_norm=clip_norm,
            assume_sgd=assume_sgd or not self.method.looks_ahead,
            compile=compile,
        )
        self._same_shares: tuple[Any, Tensor] | None = None
        self.history = History()
        self.resumed_at = 0
        self.epoch = 0
        self.epochs = 0
        self.step = 0
        self.steps_per_epoch: int | None = None
        self.should_stop = False
        self._num_classes: int | None = None

    def fit(
        self,
        train_loader: Loader,
        val_loader: Loader | None = None,
        *,
        epochs: int,
        seed: int = 0,
        patience: int | None = None,
        checkpoint_every: int = 1,
        out: str | Path | None = None,
        resume: bool = False,
    ) -> History:
        """Train.

        Args:
            train_loader: training batches.
            val_loader: held-out batches: for the metrics of each epoch, for early stopping, and for the outer problem of a
                bilevel method (``outer="holdout"`` or ``"union"``).
            epochs: passes over the training data.
            seed: of everything random from here on; the student's initial weights are the caller's.
            patience: stop when the held-out loss has not fallen for this many epochs, and go back to the best weights.
            checkpoint_every: epochs between two checkpoints in ``out``; the first and the last epoch always write one.
            out: folder for ``metrics.jsonl`` (a line an epoch), ``last.ckpt/`` and ``student.safetensors``; with
                ``cache_teacher``, also for ``teacher-cache/``.
            resume: continue the run in ``out``, with the same arguments, as if it had not been interrupted.

        Returns:
            The history, one record an epoch.

        Raises:
            ValueError: for data that does not fit (an empty loader, labels out of range, student and teacher of different
                class counts, a held-out set without one of the training classes), logits that are NaN or infinite, a stale
                teacher cache, and a folder that holds a run already or cannot be written. Data is checked before anything but
                a teacher cache is written.
        """
        if epochs < 1:
            raise InputError(f"epochs must be >= 1, not {epochs}")
        watches_held_out = patience is not None or isinstance(self.scheduler, ReduceLROnPlateau)
        if val_loader is None and watches_held_out:
            raise InputError("early stopping and ReduceLROnPlateau watch the held-out loss and need a val_loader")
        if self.method.outer == "union" and watches_held_out:
            raise InputError(
                "early stopping and ReduceLROnPlateau watch the held-out loss, and outer='union' trains on the held-out "
                f"samples: give method {self.method.name!r} outer='holdout'"
            )
        if checkpoint_every < 1:
            raise InputError(f"checkpoint_every must be >= 1, not {checkpoint_every}")
        if resume and out is None:
            raise InputError("resume needs the folder of the run: out=...")
        callbacks = [*self.callbacks, *([EarlyStopping(patience)] if patience is not None else [])]
        self.fabric.seed_everything(seed, verbose=False)
        if isinstance(self._teacher, nn.Module):
            self._teacher.eval()
        if not self.student.training:  # otherwise leave layers that the user froze in eval mode as they are
            self.student.train()
        self._lookahead.forget()
        self.epoch, self.epochs, self.step, self.should_stop = 0, epochs, 0, False
        self.resumed_at = 0
        self.history = History()

        if self.cache_teacher is not None and self._uses_teacher:
            self._cached = self._new_cache(Path(out) / "teacher-cache" if out is not None else None)
            train_loader = self._cached.viewed(train_loader, epochs)
        try:
            return self._fit(train_loader, val_loader, epochs, seed, callbacks, checkpoint_every, out, resume)
        finally:
            if self._cached is not None:
                self._cached.close()

    def _fit(
        self,
        train_loader: Loader,
        val_loader: Loader | None,
        epochs: int,
        seed: int,
        callbacks: Sequence[Callback],
        checkpoint_every: int,
        out: str | Path | None,
        resume: bool,
    ) -> History:
        train_loader = self._training_loader(train_loader, val_loader)
        if out is not None and self._cached is not None:
            RunFolder(out, resume=resume)  # refuses a folder before the teacher is asked for its sake
        set_view(train_loader, 0)
        self._prepare(train_loader, val_loader)
        outer = self._outer_stream(train_loader, val_loader, seed)
        folder = RunFolder(out, resume=resume) if out is not None else None
        if folder is not None and resume:
            self._load(folder.read_checkpoint(), train_loader, callbacks)
            folder.write_lines("metrics.jsonl", self.history)
        length = _length(train_loader)
        self.steps_per_epoch = -(-length // self.accumulate) if length is not None else None

        guard = FiniteGuard(self.device)
        try:
            for callback in callbacks:
                callback.on_fit_start(self)
            while self.epoch < epochs and not self.should_stop:
                record = self._train_epoch(train_loader, val_loader, outer, guard, callbacks)
                self.history.append(record)
                for callback in callbacks:
                    callback.on_epoch_end(self, record)
                self.epoch += 1
                if folder is not None:
                    # Checkpoint first, also after the first epoch: a folder with metrics can always be resumed.
                    if self.epoch in (1, epochs) or self.epoch % checkpoint_every == 0 or self.should_stop:
                        folder.write_checkpoint(self._state(train_loader, callbacks))
                    folder.append_line("metrics.jsonl", record)
            for callback in callbacks:
                callback.on_fit_end(self)
        finally:
            for callback in callbacks:
                callback.on_exit(self)
        if folder is not None:
            folder.write_weights(self.student)
        return self.history

    def store_teacher(
        self, train_loader: Loader, val_loader: Loader | None = None, *, folder: str | Path, epochs: int
    ) -> None:
        """Ask the teacher now and keep what it says, for trainings with ``cache_teacher`` that name the same folder.

        Args:
            train_loader: all samples that one of them will train on, held-out ones too where it does.
            val_loader: held-out batches, for a method that asks the teacher about these (``rw``).
            folder: of the cache.
            epochs: of these trainings; no more views are made, unless ``cache_teacher`` says how many.

        Raises:
            ValueError: where ``cache_teacher`` is off, what cannot be recognised later, and a stale cache in the folder.
        """
        if self.cache_teacher is None:
            raise InputError(
                "to store what the teacher says, the Distiller needs cache_teacher, and a teacher that is asked"
            )
        self.cache_teacher = dataclasses.replace(self.cache_teacher, folder=str(folder))
        if isinstance(self._teacher, nn.Module):
            self._teacher.eval()
        cached = self._new_cache(None)
        loaders = [cached.viewed(train_loader, epochs), *([] if val_loader is None else [val_loader])]
        for split, loader in zip(("train", "validation"), loaders, strict=False):
            first = next(self._batches(loader, "loader", check=False), None)
            if first is None:
                raise InputError("the loader is empty")
            cached.store(split, loader, self._asked(first.inputs).shape[-1])

    def evaluate(self, loader: Loader) -> dict[str, float]:
        """Metrics of the student in eval mode.

        Returns:
            By default ``accuracy`` in [0, 1] and ``nll``, the mean cross-entropy with the label in nats; see ``metrics``.
        """
        return self.metrics(*self.predict(loader))

    def predict(self, loader: Loader) -> tuple[Tensor, Tensor]:
        """Logits of the student in eval mode, shape (N, C), and the labels, shape (N,), in the loader's order, on the CPU."""
        logits, targets = [], []
        with replayed(random_state(self.device)), torch.no_grad(), eval_mode(self.student):
            for batch in self._batches(loader, "evaluation loader"):
                logits.append(self._student_logits(batch.inputs))
                if self._num_classes is None and batch.target.device.type == "cpu":
                    check_target(batch.target, logits[-1].shape[-1], "evaluation loader")
                targets.append(batch.target)
        if not targets:
            raise InputError("the loader to evaluate on is empty")
        return torch.cat(logits).cpu(), torch.cat(targets).cpu()

    def fusion_ratios(self, loader: Loader) -> Tensor:
        """Fusion ratio the method gives each sample now, the student in eval mode.

        Args:
            loader: batches in the order wanted.

        Returns:
            Shape (N,), on the CPU.

        Raises:
            NotImplementedError: for a method whose ratios are not a function of student, teacher and label.
        """
        ratios = []
        with replayed(random_state(self.device)), torch.no_grad(), eval_mode(self.student):
            if self._cached is not None:
                loader = self._cached.adopt(loader)
            batches = self._batches(loader, "loader")
            for batch in self._with_teacher(batches, loader) if self._uses_teacher else batches:
                logits = self._student_logits(batch.inputs)
                ratios.append(self.method.alpha(self._signals(batch, logits)).detach().cpu())
        if not ratios:
            raise InputError("the loader is empty")
        return torch.cat(ratios)

    # ---- before training

    def _training_loader(self, train_loader: Loader, val_loader: Loader | None) -> Loader:
        if _length(train_loader) == 0:
            raise InputError("the training loader is empty")
        if self.method.outer not in ("holdout", "union"):
            return train_loader
        if val_loader is None:
            raise InputError(f"method {self.method.name!r} with outer={self.method.outer!r} needs a val_loader")
        if self.method.outer == "holdout":
            return train_loader
        logger.info(
            "outer='union': the student trains on the held-out samples too, so what it scores on them says nothing"
        )
        return union_loader(train_loader, val_loader)

    def _outer_source(self, train_loader: Loader, val_loader: Loader | None) -> Loader | None:
        return train_loader if self.method.outer == "train" else val_loader

    def _outer_stream(self, train_loader: Loader, val_loader: Loader | None, seed: int) -> OuterStream | None:
        if self.method.outer is None:
            return None
        source = self._outer_source(train_loader, val_loader)
        assert source is not None
        return OuterStream(source, self.method.outer_batch_size, seed, most=self.method.outer_batch_most)

    def _prepare(self, train_loader: Loader, val_loader: Loader | None) -> None:
        """Look at the data once, before anything is written or trained, leaving the random state as it was."""
        generator = _generator(train_loader)
        order = generator.get_state() if generator is not None else None
        with replayed(random_state(self.device)), torch.no_grad(), eval_mode(self.student):
            first = next(self._batches(train_loader, "training loader", check=False), None)
            if first is None:
                raise InputError("the training loader is empty")
            student_logits = self._student_logits(first.inputs)
            self._num_classes = student_logits.shape[-1]
            check_target(first.target, self._num_classes, "training loader")
            if self._teacher is not None:
                check_same_classes(student_logits, self._teacher_logits(first))
            if val_loader is not None and next(self._batches(val_loader, "held-out loader"), None) is None:
                raise InputError("the held-out loader is empty")
            if self._cached is not None:
                self._store(self._cached, train_loader, val_loader)
            means = self._survey(train_loader, val_loader)
            self.method.prepare(self._num_classes, means, self.device)
        if generator is not None and order is not None:
            generator.set_state(order)

    def _store(self, cached: CachedTeacher, train_loader: Loader, val_loader: Loader | None) -> None:
        """Ask the teacher about all samples whose logits the training will need."""
        assert self._num_classes is not None
        cached.store("train", train_loader, self._num_classes)
        if self.method.outer_needs_teacher and self.method.outer in ("holdout", "union"):
            assert val_loader is not None
            cached.store("validation", val_loader, self._num_classes)

    def _new_cache(self, folder: Path | None) -> CachedTeacher:
        assert self.cache_teacher is not None

        def move(batch: Samples) -> Samples:
            moved = self._on_device(batch.inputs, batch.target, batch.ids)
            return Samples(moved.inputs, moved.target, moved.ids)

        teacher = as_teacher(self._teacher, probs=self.teacher_probs, context=self._autocast)
        return CachedTeacher(teacher, self.cache_teacher, folder, precision=self._precision, move=move)

    def _survey(self, train_loader: Loader, val_loader: Loader | None) -> Tensor | None:
        """One pass for the teacher's class means and the class counts, as far as the method needs them."""
        assert self._num_classes is not None
        held_out = self.method.outer in ("holdout", "union")
        if not (held_out or self.method.needs_class_means):
            return None
        means = ClassMeans(self._num_classes)
        train_counts = torch.zeros(self._num_classes, dtype=torch.int64)
        for batch in self._batches(train_loader, "training loader"):
            if self.method.needs_class_means:
                logits = self._teacher_logits(batch, train_loader)
                if not bool(torch.isfinite(logits).all()):
                    raise InputError("the teacher's logits are NaN or infinite on the training set (before step 0)")
                means.update(logits.softmax(dim=-1), batch.target)
            train_counts += batch.target.bincount(minlength=self._num_classes).cpu()
        if held_out:
            assert val_loader is not None
            counts = torch.zeros_like(train_counts)
            for batch in self._batches(val_loader, "held-out loader"):
                counts += batch.target.bincount(minlength=self._num_classes).cpu()
            check_classes_held_out(train_counts, counts)
        return means.compute() if self.method.needs_class_means else None

    # ---- one epoch, one step

    def _train_epoch(
        self,
        train_loader: Loader,
        val_loader: Loader | None,
        outer: OuterStream | None,
        guard: FiniteGuard,
        callbacks: Sequence[Callback],
    ) -> dict[str, Any]:
        started = time.perf_counter()
        ratios = RatioStatistics(self.device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        count = 0
        views = views_of(train_loader)
        if views is not None:
            set_view(train_loader, self.epoch % views)
        if self._cached is not None:
            self._cached.start_epoch(self.epoch)
        if outer is not None:
            outer.start_epoch(self.epoch)
        outer_source = self._outer_source(train_loader, val_loader)

        def draw() -> Batch:
            assert outer is not None
            batch = self._on_device(*next(outer))
            if self.method.outer_needs_teacher:
                batch.teacher_logits = self._teacher_logits(batch, outer_source)
            return batch

        batches = self._batches(train_loader, "training loader")
        if self._uses_teacher:
            batches = self._with_teacher(batches, train_loader)
        for parts in group(batches, self.accumulate):
            step = TrainingStep(self.step, self._lookahead, list(parts), draw)
            loss_sum += self._train_step(step, ratios, guard)
            count += sum(len(part.target) for part in parts)
            if self.scheduler is not None and self.scheduler_every == "step":
                _step_scheduler(self.scheduler, None)
            self.step += 1
            for callback in callbacks:
                callback.on_step_end(self)
        guard.read()
        if not count:
            raise InputError("the training loader is empty")

        held_out = self.evaluate(val_loader) if val_loader is not None else {}
        rate = self.optimizer.param_groups[0]["lr"]
        if self.scheduler is not None and self.scheduler_every == "epoch":
            _step_scheduler(self.scheduler, held_out.get("nll"))
        self.method.after_epoch(self.epoch, self.epochs, self.student, self.optimizer, held_out)
        record: dict[str, Any] = {"epoch": self.epoch, "train_loss": float(loss_sum) / count, "lr": float(rate)}
        if held_out:
            record |= {"val_loss": held_out["nll"], "val_accuracy": held_out["accuracy"]}
            record[f"val_{self.metrics.primary}"] = held_out[self.metrics.primary]
        record |= {"alpha_mean": ratios.mean(), "alpha": ratios.summary()}
        return record | {"seconds": round(time.perf_counter() - started, 4)}

    def _train_step(self, step: TrainingStep, ratios: RatioStatistics, guard: FiniteGuard) -> Tensor:
        """One optimizer step of any method; returns the sum of the samples' losses."""
        method = self.method
        with self._autocast():
            method.before_forward(step)
        _forget_gradients(self.optimizer)
        total = sum(len(batch.target) for batch in step.batches)
        record = method.records(step.index)
        sums: list[Tensor] = []
        for batch in step.batches:
            if batch.teacher_logits is None:
                with self._autocast():
                    logits = class_logits(self._lookahead.run, batch.inputs)
            else:
                with self._autocast():
                    logits = self._lookahead.forward(batch.inputs, batch.target, batch.teacher_logits, record=record)
            result = method.loss(self._signals(batch, logits))
            result.loss.backward(self._shares(result.loss, total))
            sums.append(result.loss.detach().sum())
            guard.see_step(sums[-1], logits, batch.teacher_logits, self.step)
            step.losses.append(result)
            if result.alpha is not None and batch.teacher_logits is not None:
                ratios.add(result.alpha, logits, batch.teacher_logits, batch.target)
        self._lookahead.step()
        method.after_update(step)
        return sums[0] if len(sums) == 1 else torch.stack(sums).sum()

    def _shares(self, losses: Tensor, total: int) -> Tensor:
        """What each sample's loss counts for in the mean over a step of ``total`` samples; kept from one step to the next."""
        if self._same_shares is None or self._same_shares[0] != (losses.shape, losses.dtype, total):
            self._same_shares = (losses.shape, losses.dtype, total), torch.full_like(losses, 1 / total)
        return self._same_shares[1]

    def _signals(self, batch: Batch, logits: Tensor) -> Signals:
        epochs = max(self.epochs, 1)
        epoch = min(self.epoch, epochs - 1)  # a finished run stays in its last epoch
        return Signals(logits, batch.teacher_logits, batch.target, self.temperature, epoch, epochs)

    # ---- batches and the teacher

    @property
    def _uses_teacher(self) -> bool:
        return self._teacher is not None and self.method.needs_teacher

    def _batches(self, loader: Loader, where: str, *, check: bool = True) -> Iterator[Batch]:
        for item in loader:
            if not isinstance(item, tuple | list) or len(item) not in (2, 3):
                raise InputError(
                    f"the {where} must yield (inputs, target) or (inputs, target, ids), not {type(item).__name__}"
                )
            target = item[1]
            # Reading labels that already are on an accelerator would stall every step.
            on_accelerator = isinstance(target, Tensor) and target.device.type != "cpu"
            if check and self._num_classes is not None and not on_accelerator:
                check_target(target, self._num_classes, where)
            yield self._on_device(*item)

    def _on_device(self, inputs: Any, target: Any, ids: Any = None) -> Batch:
        # Ids stay where the loader has them: a teacher's stored logits are found by them on the CPU.
        if not (self._is_ready(inputs) and self._is_ready(target)):
            inputs, target = self.fabric.to_device((inputs, target))
            # under autocast the inputs stay in full precision: autocast casts them where that is safe
            if not self._precision.endswith("mixed"):
                inputs = self.fabric.strategy.precision.convert_input(inputs)
        return Batch(inputs, target, ids=ids)

    def _is_ready(self, value: Any) -> bool:
        """Whether nothing is left to move or to convert: finding that out the general way costs a small student's forward."""
        if isinstance(value, Tensor):
            fits = self._precision == "32-true" and value.dtype in (torch.float32, torch.int64)
            return fits and value.device == self.device
        return isinstance(value, tuple | list) and all(map(self._is_ready, value))

    def _autocast(self) -> AbstractContextManager[None]:
        return nullcontext() if self._precision == "32-true" else self.fabric.autocast()

    def _with_teacher(self, batches: Iterator[Batch], loader: Loader) -> Iterator[Batch]:
        for batch in batches:
            batch.teacher_logits = self._teacher_logits(batch, loader)
            yield batch

    def _teacher_logits(self, batch: Batch, loader: Loader | None = None) -> Tensor:
        """What the teacher says, or said already, of a batch of a loader."""
        samples = Samples(batch.inputs, batch.target, batch.ids)
        if self._cached is not None and loader is not None:
            stored = self._cached.of(loader)
            if stored is not self._cached.teacher:
                return stored.logits(samples)
        if isinstance(self._teacher, StoredPredictions):
            return self._teacher.logits(samples)
        return self._asked(batch.inputs)

    def _asked(self, inputs: Any) -> Tensor:
        with torch.no_grad():
            with self._autocast():
                outputs = (class_probs if self.teacher_probs else class_logits)(self._run_teacher, inputs)
            return logits_from_probs(outputs) if self.teacher_probs else outputs

    def _student_logits(self, inputs: Any) -> Tensor:
        with self._autocast():
            return class_logits(self.student, inputs)

    # ---- resuming

    def _state(self, train_loader: Loader, callbacks: Sequence[Callback]) -> dict[str, Any]:
        generator = _generator(train_loader)
        return {
            "epoch": self.epoch,
            "step": self.step,
            "should_stop": self.should_stop,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
            "method": {"name": self.method.name, "state": self.method.state_dict()},
            "callbacks": [[type(c).__name__, c.state_dict()] for c in callbacks if c.state_dict()],
            "python_random": random.getstate(),
            "random_state": list(random_state(self.device)[:2]),
            "loader_generator": generator.get_state() if generator is not None else None,
            "history": list(self.history),
        }

    def _load(self, state: dict[str, Any], train_loader: Loader, callbacks: Sequence[Callback]) -> None:
        if state["method"]["name"] != self.method.name:
            raise InputError(f"the run to resume used method {state['method']['name']!r}, not {self.method.name!r}")
        self.epoch, self.step, self.should_stop = state["epoch"], state["step"], state["should_stop"]
        try:
            self.student.load_state_dict(state["student"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            self.method.load_state_dict(self.fabric.to_device(state["method"]["state"]))
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"the checkpoint does not fit this student, optimizer, scheduler and method: {reason}"
            ) from error
        waiting = list(callbacks)
        for name, callback_state in state["callbacks"]:
            callback = next((c for c in waiting if type(c).__name__ == name), None)
            if callback is None:
                raise InputError(f"the run to resume had a callback {name}, and this one has none")
            waiting.remove(callback)
            callback.load_state_dict(callback_state)
        self.history.extend(state["history"])
        self.resumed_at = self.epoch
        generator = _generator(train_loader)
        if generator is not None:
            generator.set_state(state["loader_generator"])
        cpu, on_device = state["random_state"]
        torch.set_rng_state(cpu)
        version, words, gauss = state["python_random"]
        random.setstate((version, tuple(words), gauss))
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, self.device)


def _forget_gradients(optimizer: Optimizer) -> None:
    """The optimizer's ``zero_grad``, without the profiler's bookkeeping around torch's own."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for settings in optimizer.param_groups:
        for param in settings["params"]:
            param.grad = None


def _length(loader: Loader) -> int | None:
    try:
        return len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader over an iterable data set
        return None


def _generator(loader: Loader) -> torch.Generator | None:
    """The generator a loader draws its order from, where it has its own."""
    own = getattr(loader, "generator", None)
    return own if own is not None else getattr(getattr(loader, "sampler", None), "generator", None)


def _step_scheduler(scheduler: LRScheduler | ReduceLROnPlateau, held_out_loss: float | None) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        if held_out_loss is None:
            raise InputError("ReduceLROnPlateau watches the held-out loss: give a val_loader and step it every epoch")
        scheduler.step(held_out_loss)
    else:
        scheduler.step()
