"""A distillation step for any training loop."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from tgeokd.bilevel.optimizer_rules import unwrapped
from tgeokd.bilevel.record import MicroBatch, StepRecord
from tgeokd.bilevel.recorder import StepRecorder
from tgeokd.bilevel.step_vjp import student_slots
from tgeokd.core.compiling import forward_of, uncompiled
from tgeokd.core.model_call import as_logits, class_logits, eval_mode, module_device, random_state, replayed
from tgeokd.core.validation import check_positive, check_same_classes, check_same_length, validate_labels
from tgeokd.data.batch import Batch
from tgeokd.data.loaders import OuterStream, order_of
from tgeokd.methods.base import ForwardContext, LossInputs, Method, as_method
from tgeokd.teachers.base import Teacher
from tgeokd.teachers.network import as_teacher, check_independent
from tgeokd.training.batches import BatchReader
from tgeokd.training.hooks import add_step_hooks
from tgeokd.training.parallel import ParallelContext, current_context
from tgeokd.training.statistics import EpochStatistics
from tgeokd.training.survey import Survey, is_among, survey
from tgeokd.utils.errors import InputError


class DistillationStep:
    """Turns a training loop into a distillation loop: the loss of a batch, and learning from the step that follows.

    The loop keeps its backward pass, clipping, accumulation, ``GradScaler`` and ``optimizer.step()``. Hooks on the optimizer
    call :meth:`before_update` and :meth:`after_update`; a closure given to ``optimizer.step`` is supported.

    The hypergradient takes the loss of the step to be the sum of the returned losses times factors that sum to 1: one loss, or
    K losses each divided by K. A common factor (the scale of a ``GradScaler``) cancels.

    Args:
        student: the module being trained, also one returned by ``torch.compile``. Parameters are on their device already.
        optimizer: ``torch.optim.SGD``, ``Adam`` or ``AdamW`` over its parameters (also inside a Lightning Fabric or Accelerate
            wrapper). A method that does not learn from hypergradients works with any optimizer.
        method: a :class:`~tgeokd.methods.Method`, or its name for the default options.
        temperature: ``tau`` of the teacher term.
        validation: loader of validation batches, for a method with ``outer="holdout"`` or ``"union"``. Whether the student
            trains on these samples too is decided by the training loader of the loop.
        clip_norm: the loop clips the gradient of all trainable parameters to this norm before the step.
        assume_sgd: treat an optimizer other than SGD, Adam and AdamW as plain SGD (an approximation).
        seed: of the order of validation batches.
        reader: how batches are read; by default tensors are moved to the student's device.

    Attributes:
        index: optimizer steps taken.
        statistics: mean loss and fusion ratios since :meth:`start_epoch`.

    Example:
        >>> step = DistillationStep(student, optimizer, TGeoKD(), validation=val_loader)     # doctest: +SKIP
        >>> step.prepare(train_loader, teacher)                                             # doctest: +SKIP
        >>> for batch in train_loader:                                                      # doctest: +SKIP
        ...     loss = step.loss(batch, teacher)
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """

    def __init__(
        self,
        student: nn.Module,
        optimizer: Optimizer,
        method: Method | str,
        *,
        temperature: float = 4.0,
        validation: Iterable[Any] | None = None,
        clip_norm: float | None = None,
        assume_sgd: bool = False,
        seed: int = 0,
        reader: BatchReader | None = None,
    ) -> None:
        check_positive("temperature", temperature)
        check_positive("clip_norm", clip_norm)
        self.method = as_method(method)
        self.student = uncompiled(student)
        self._run = forward_of(student)
        self.optimizer = unwrapped(optimizer)
        self.temperature, self.clip_norm, self.assume_sgd = temperature, clip_norm, assume_sgd
        self.validation, self.seed = validation, seed
        # A method that does not learn from hypergradients works with any optimizer.
        student_slots(self.student, self.optimizer, assume_sgd=assume_sgd or not self.learns)
        self.parallel: ParallelContext = current_context()
        self.reader = reader or BatchReader(module_device(self.student))
        self.teacher: Teacher | None = None
        self.index = 0
        self.epoch, self.epochs = 0, 1
        self.statistics = EpochStatistics(self.reader.device, self.parallel)
        self._epoch_started = False
        self._outer: OuterStream | None = None
        self._outer_teacher: Teacher | None = None
        self._recorder: StepRecorder | None = None
        self._record: StepRecord | None = None
        self._validation_ids: Tensor | None = None
        self._begun = 0  # microbatches since the last update
        self._inputs: Any = None  # of the last forward pass, for messages
        self._ran_backward = False
        self._handles = add_step_hooks(self.optimizer, self)

    # ---- before training

    def prepare(
        self,
        train_loader: Iterable[Any],
        teacher: Any = None,
        *,
        survey_result: Survey | None = None,
        before_survey: Callable[[], Teacher | None] | None = None,
        allow_bad_teacher: bool = False,
    ) -> Survey:
        """Look at the data once, without changing the student, the random state or the order of the loader.

        Args:
            train_loader: batches that the student trains on.
            teacher: a module or callable from inputs to logits, or a :class:`~tgeokd.teachers.base.Teacher`.
            survey_result: of an earlier call on the same data, which are then not read again.
            before_survey: called after the first batch was checked; may return another teacher to query.
            allow_bad_teacher: warn instead where the teacher's agreement with the labels is absurd.

        Raises:
            InputError: for data that do not fit the method, the student or the teacher, and a teacher that shares parameters
                with the student or whose agreement with the labels is absurd (:mod:`tgeokd.teachers.agreement`).
        """
        method = self.method
        self.statistics = EpochStatistics(self.reader.device, self.parallel)
        self._set_teacher(teacher)
        uses_validation = method.outer in ("holdout", "union")
        if uses_validation and self.validation is None:
            raise InputError(f"method {method.name!r} with outer={method.outer!r} needs validation batches")
        generator = order_of(train_loader)
        order = generator.get_state() if generator is not None else None
        with replayed(random_state(self.reader.device)), torch.no_grad(), eval_mode(self.student):
            if survey_result is None:
                self.reader.num_classes = None
                self._check_first_batches(train_loader)
                if before_survey is not None:
                    self._set_teacher(before_survey())
                assert self.reader.num_classes is not None
                on_validation = (
                    self.teacher.of(self.validation) if self.teacher and self.validation is not None else None
                )
                survey_result = survey(
                    *(method, self.reader.num_classes, train_loader, self.validation),
                    *(self.teacher, self.reader, self.parallel),
                    validation_teacher=on_validation,
                    allow_bad_teacher=allow_bad_teacher,
                )
            else:
                self.reader.num_classes = survey_result.num_classes
                if before_survey is not None:
                    self._set_teacher(before_survey())
            further = {"label_noise": survey_result.noise} if method.needs_label_noise else {}
            method.prepare(survey_result.num_classes, survey_result.class_means, self.reader.device, **further)
        self._validation_ids = survey_result.validation_ids
        if generator is not None and order is not None:
            generator.set_state(order)
        self._new_recorder()
        if method.outer is not None:
            source = train_loader if method.outer == "train" else self.validation
            assert source is not None
            self._outer = OuterStream(source, method.outer_batch_size, self.seed, limit=method.outer_batch_limit)
            self._outer.start_epoch(self.epoch)
            self._outer_teacher = None if self.teacher is None else self.teacher.of(source)
        return survey_result

    def _set_teacher(self, teacher: Any) -> None:
        if teacher is None:
            if self.method.needs_teacher and self.teacher is None:
                raise InputError(f"method {self.method.name!r} needs a teacher, and None was given")
            return
        self.teacher = as_teacher(teacher, context=self.reader.autocast)
        check_independent(self.student, self.teacher)

    def _check_first_batches(self, train_loader: Iterable[Any]) -> None:
        first = next(self.reader.read_all(train_loader, "training loader"), None)
        if first is None:
            raise InputError("the training loader is empty")
        with self.reader.autocast():
            student_logits = class_logits(self.student, first.inputs)
        self.reader.num_classes = student_logits.shape[-1]
        validate_labels(first.target, self.reader.num_classes, "training loader")
        if self.teacher is not None:
            check_same_classes(student_logits, self.teacher.logits(first))
        if self.validation is not None and not any(self.reader.read_all(self.validation, "validation loader")):
            raise InputError("the validation loader is empty")

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Begin epoch ``epoch``, from 0, of ``epochs``: for methods whose loss depends on it, and for the statistics."""
        self.epoch, self.epochs, self._epoch_started = epoch, epochs, True
        self.statistics.reset()
        if self.teacher is not None:
            self.teacher.start_epoch(epoch)
        if self._outer is not None:
            self._outer.start_epoch(epoch)

    # ---- one step

    def loss(self, batch: Any, teacher: Any = None) -> Tensor:
        """Mean loss of a batch, shape (), to be backpropagated by the caller.

        Args:
            batch: what a loader yields (:meth:`tgeokd.data.batch.Batch.parse`); a ``Batch`` is on the device already.
            teacher: by default the one given to :meth:`prepare`.
        """
        if not isinstance(batch, Batch):
            batch = self.reader.read(batch, "training loader")
        if teacher is not None and teacher is not self.teacher and teacher is not getattr(self.teacher, "model", None):
            self._set_teacher(teacher)
        teacher_logits = None
        if self.teacher is not None and self.method.needs_teacher:
            teacher_logits = self.teacher.logits(batch)
        with self.forward_pass(batch.inputs, batch.target, teacher_logits):
            student_logits = class_logits(self._run, batch.inputs)
        return self.loss_from_logits(student_logits, batch.target, teacher_logits, batch.ids)

    @contextmanager
    def forward_pass(
        self, inputs: Any, target: Tensor | None = None, teacher_logits: Tensor | None = None
    ) -> Iterator[None]:
        """Run the student's forward pass in this block, for callers that run the student themselves.

        ``rw`` alone needs labels, shape (N,), and teacher logits, shape (N, C), before the pass.
        """
        self._forget_skipped_step()
        with self.reader.autocast():
            if self.method.looks_before_forward:
                self._before_forward(inputs, target, teacher_logits)
            if self._due:
                if self._recorder is None:
                    raise InputError(f"method {self.method.name!r} needs prepare(...) before the first step")
                with self._recorder.forward_pass(inputs):
                    yield
            else:
                yield
        self._begun += torch.is_grad_enabled()
        self._inputs = inputs

    def loss_from_logits(
        self, student_logits: Tensor, target: Tensor, teacher_logits: Tensor | None, ids: Tensor | None = None
    ) -> Tensor:
        """Mean loss of a batch whose forward pass ran in :meth:`forward_pass`, shape ().

        Args:
            student_logits: shape (N, C), attached to the student's graph.
            target: class indices, shape (N,).
            teacher_logits: shape (N, C); None for a method without a teacher.
            ids: sample ids, shape (N,), for methods that use them.
        """
        student_logits = as_logits(student_logits)
        teacher_logits = None if teacher_logits is None else as_logits(teacher_logits)
        check_same_length(student_logits, target)
        if self.method.needs_epochs and not self._epoch_started:
            raise InputError(f"the loss of {self.method.name!r} depends on the epoch: call start_epoch(epoch, epochs)")
        due = self._due
        if due and (self._recorder is None or not self._recorder.awaits_loss):
            raise InputError("the student's forward pass must run inside `with step.forward_pass(inputs):`")
        device = student_logits.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            inputs = self.loss_inputs(student_logits, teacher_logits, target, ids, learn=due)
            result = self.method.loss(inputs)
            loss = result.loss.mean()
        if not torch.is_grad_enabled():  # a loss that is only looked at
            return loss
        self.statistics.update(result, inputs, self.index, self._inputs)
        if due:
            assert self._recorder is not None
            weight = result.alpha if result.weight is None else result.weight
            assert weight is not None
            self._recorder.complete(student_logits, self.method.loss_terms(inputs), weight, loss)
        if due or self.method.looks_before_forward:
            loss.register_hook(self._note_backward)
        return loss

    def loss_inputs(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        target: Tensor,
        ids: Tensor | None = None,
        *,
        learn: bool = False,
    ) -> LossInputs:
        """What the method is given for a batch in the running epoch."""
        epoch = min(self.epoch, self.epochs - 1)  # a finished run stays in its last epoch
        known = None
        if self._validation_ids is not None and ids is not None:
            self._validation_ids = self._validation_ids.to(ids.device)  # a copy in the first step alone
            known = is_among(ids, self._validation_ids).to(target.device, non_blocking=True)
        return LossInputs(
            student_logits, teacher_logits, target, self.temperature, epoch, self.epochs, learn, ids, known
        )

    def before_update(self) -> None:
        """Record the coming step, after backward, unscaling and clipping. Called by a hook of the optimizer."""
        if self._record is None and self._recorder is not None and self._recorder.microbatches:
            self._record = self._recorder.finish()

    def after_update(self) -> None:
        """Learn from the step that was taken. Called by a hook of the optimizer."""
        record, self._record = self._record, None
        if record is not None:
            assert self._recorder is not None
            torch.clear_autocast_cache()  # it holds weights from before the step
            inputs, target = self._next_outer()[:2]
            gradient = self._recorder.estimator.estimate(record, (inputs, target))
            self.method.learn(record.alpha, gradient)
        self.index += bool(self._begun)
        self._begun, self._ran_backward = 0, False

    def forget(self) -> None:
        """Drop what a step that was not taken has left behind."""
        self._record, self._begun, self._ran_backward = None, 0, False
        if self._recorder is not None:
            self._recorder.forget()

    @property
    def learns(self) -> bool:
        """Whether the method learns from hypergradients."""
        return type(self.method).needs_hypergradient is not Method.needs_hypergradient

    @property
    def _due(self) -> bool:
        """Whether the running step must be recorded."""
        return self.learns and torch.is_grad_enabled() and self.method.needs_hypergradient(self.index)

    def _new_recorder(self) -> None:
        if not self.learns:
            return
        if self.parallel.world_size > 1:
            raise InputError(f"method {self.method.name!r} does not learn in several processes yet: start one process")
        if self.method.estimator is None:
            raise InputError(f"method {self.method.name!r} learns from hypergradients and has no estimator")
        self._recorder = StepRecorder(
            *(self.student, self.optimizer, self.method.estimator),
            clip_norm=self.clip_norm,
            assume_sgd=self.assume_sgd,
        )

    def _before_forward(self, inputs: Any, target: Tensor | None, teacher_logits: Tensor | None) -> None:
        if target is None or teacher_logits is None:
            raise InputError(f"method {self.method.name!r} needs labels and teacher logits before the forward pass")
        math_attention = self.method.estimator is not None and self.method.estimator.math_attention
        microbatch = MicroBatch.begin(self.student, inputs, math_attention=math_attention)
        context = (self.student, self.optimizer, self.temperature, microbatch, target, teacher_logits)
        self.method.before_forward(ForwardContext(*context, self._next_outer, first=not self._begun))

    def _next_outer(self) -> tuple[Any, Tensor, Tensor]:
        """Inputs and labels of the next outer batch, and the teacher's logits where the method needs them."""
        if self._outer is None:
            raise InputError(f"method {self.method.name!r} needs prepare(train_loader, teacher) before the first step")
        batch = self.reader.read(next(self._outer), "validation loader")
        logits = torch.empty(0)
        if self.method.needs_outer_teacher:
            assert self._outer_teacher is not None
            logits = self._outer_teacher.logits(batch)
        return batch.inputs, batch.target, logits

    def _note_backward(self, _: Tensor) -> None:
        self._ran_backward = True

    def _forget_skipped_step(self) -> None:
        """A ``GradScaler`` may skip a step; the gradients are then zeroed without an update."""
        params = (param for group in self.optimizer.param_groups for param in group["params"])
        if self._ran_backward and all(param.grad is None for param in params):
            self.forget()

    # ---- hooks, state

    def close(self) -> None:
        """Remove the hooks from the optimizer."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs beside student and optimizer."""
        return {
            "index": self.index,
            "method": {"name": self.method.name, "state": self.method.state_dict()},
            "outer": None if self._outer is None else self._outer.state_dict(),
            "statistics": self.statistics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, after :meth:`prepare` and :meth:`start_epoch`."""
        if state["method"]["name"] != self.method.name:
            raise InputError(f"the checkpoint is of method {state['method']['name']!r}, not {self.method.name!r}")
        state = move_data_to_device(state, self.reader.device)
        self.index = state["index"]
        self.method.load_state_dict(state["method"]["state"])
        if self._outer is not None:
            self._outer.load_state_dict(state["outer"])
        self.statistics.load_state_dict(state["statistics"])
