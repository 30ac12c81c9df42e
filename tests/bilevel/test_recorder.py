"""Recording a step of a training loop: the step is a plain one, and its estimate is that of the pure function before it."""

from __future__ import annotations

import copy

import pytest
import torch
from students import (
    FORWARD,
    OPTIMIZERS,
    backward_passes,
    call,
    clip_bound,
    clip_gradients,
    derivative,
    distillation_step,
    distilled_step,
    estimate,
    gt_of,
    hypergradient,
    loss_of,
    make_case,
    pieces,
    recorded_step,
    recorder_of,
    relative_error,
    terms_of,
)
from torch import nn
from torch.optim import SGD, RMSprop

from tgeokd.bilevel import ratio_gradient
from tgeokd.core.losses import fuse, gt_loss, kd_loss
from tgeokd.utils.errors import InputError

METHODS = ("forward", "finite_difference", "last_layer", "unrolled")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", ["none", "bites"])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_pure_function_before_the_step(method, optimizer, clip, accumulate):
    case = make_case("dropout", optimizer, steps=2)
    bound = clip_bound(case, clip)
    settings = {"method": method, "clip_norm": bound, "accumulate": accumulate}
    expected = ratio_gradient(case.student, case.optimizer, **case.data, **settings)
    tolerance = 1e-6 if method == "finite_difference" else 1e-10
    state = torch.get_rng_state()
    assert relative_error(hypergradient(case.copied(), **settings), expected) <= tolerance
    torch.set_rng_state(state)
    step = distillation_step(case, method, clip_norm=bound)
    assert relative_error(distilled_step(case, step, accumulate=accumulate), expected) <= tolerance


@pytest.mark.parametrize("student", FORWARD)
def test_equals_the_pure_function_for_every_student(student):
    case = make_case(student, "nesterov", steps=2)
    expected = ratio_gradient(case.student, case.optimizer, **case.data, accumulate=2)
    assert relative_error(hypergradient(case, accumulate=2), expected) <= 1e-10


def test_sparse_gradients():
    case = make_case("sparse", "sgd", steps=2)
    expected = ratio_gradient(case.student, case.optimizer, **case.data, accumulate=2)
    assert relative_error(hypergradient(case, accumulate=2), expected) <= 1e-10


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_first_step_with_a_new_optimizer(optimizer):
    case = make_case("mlp", optimizer)
    expected = ratio_gradient(case.student, case.optimizer, **case.data)
    assert relative_error(hypergradient(case), expected) <= 1e-10


def state_of(case):
    return copy.deepcopy(
        {
            "student": case.student.state_dict(),
            "gradients": [p.grad for p in case.student.parameters()],
            "optimizer": case.optimizer.state_dict(),
            "modes": [module.training for module in case.student.modules()],
            "random_state": torch.get_rng_state(),
        }
    )


@pytest.mark.parametrize(("clip", "accumulate"), [("none", 1), ("bites", 2)])
@pytest.mark.parametrize("student", ["batch_norm_cnn", "mixed", "stateful"])
@pytest.mark.parametrize("method", METHODS)
def test_training_is_exactly_that_of_a_plain_loop(method, student, clip, accumulate):
    """Parameters, running statistics, optimizer and the stream of random numbers, bit for bit, over several steps."""
    case = make_case(student, "adam")
    bound = clip_bound(case, clip)
    plain = case.copied()

    torch.manual_seed(5)
    step = distillation_step(case, method, clip_norm=bound)
    for _ in range(3):
        distilled_step(case, step, accumulate=accumulate)

    ours = state_of(case)
    torch.manual_seed(5)
    for _ in range(3):
        plain.optimizer.zero_grad()
        for index in pieces(len(plain.target), accumulate):
            logits = call(plain.student, plain.inputs[index])
            target, teacher = plain.target[index], plain.teacher_logits[index]
            loss = fuse(kd_loss(logits, teacher, plain.temperature), gt_loss(logits, target), plain.alpha[index])
            (loss.mean() / accumulate).backward()
        clip_gradients(plain, bound)
        plain.optimizer.step()
    torch.testing.assert_close(ours, state_of(plain), rtol=0, atol=0)


def test_two_estimates_of_one_record_are_equal():
    case = make_case("mixed", "adam", steps=1)
    recorder = recorder_of(case)
    record = recorded_step(case, recorder)
    assert torch.equal(estimate(case, recorder, record), estimate(case, recorder, record))


@pytest.mark.parametrize("method", METHODS)
def test_the_record_does_not_depend_on_what_happens_to_the_gradients(method):
    case = make_case("mixed", "adam", steps=1)
    recorder = recorder_of(case, method, clip_norm=clip_bound(case, "bites"))
    record = recorded_step(case, recorder)
    expected = estimate(case, recorder, record)
    case.optimizer.zero_grad(set_to_none=False)
    assert torch.equal(estimate(case, recorder, record), expected)


def test_an_optimizer_that_changes_the_gradients_in_its_step():
    case = make_case("mlp", lambda p: SGD(p, lr=0.2, momentum=0.9, nesterov=True, foreach=True), steps=3)
    bound = clip_bound(case, "bites")
    expected = ratio_gradient(case.student, case.optimizer, **case.data, clip_norm=bound)
    assert relative_error(hypergradient(case, clip_norm=bound), expected) <= 1e-10


def test_each_record_is_of_the_latest_step():
    case = make_case("mlp", "momentum")
    recorder = recorder_of(case)
    for _ in range(3):
        expected = ratio_gradient(case.student, case.optimizer, **case.data)
        assert relative_error(estimate(case, recorder, recorded_step(case, recorder)), expected) <= 1e-10


@pytest.mark.parametrize("method", ["forward", "unrolled"])
def test_a_common_factor_of_the_losses_does_not_matter(method):
    """As with a GradScaler, which divides it out of the gradients before they are clipped."""
    case = make_case("mlp", "momentum", steps=2)
    bound = clip_bound(case, "bites")
    settings = {"clip_norm": bound, "accumulate": 2}
    expected = ratio_gradient(case.student, case.optimizer, **case.data, **settings)
    recorder = recorder_of(case, method, clip_norm=bound)
    case.optimizer.zero_grad()
    backward_passes(case, recorder, [512.0, 512.0])
    for param in case.student.parameters():
        param.grad /= 1024.0
    clip_gradients(case, bound)
    record = recorder.finish()
    case.optimizer.step()
    assert relative_error(estimate(case, recorder, record), expected) <= 1e-10


@pytest.mark.parametrize("method", ["forward", "unrolled"])
def test_microbatches_with_other_factors(method):
    """The loss of the step is the sum of the losses times any factors that sum to 1."""
    case = make_case("mlp", "momentum", steps=2)
    factors = (0.6, 0.3, 0.1)

    def loss_after_step(i, shift):
        trial = case.copied()
        trial.alpha = case.alpha.clone()
        trial.alpha[i] += shift
        trial.optimizer.zero_grad()
        for index, factor in zip(pieces(len(case.target), 3), factors, strict=True):
            (factor * loss_of(trial, call(trial.student, case.inputs[index]), index)).backward()
        trial.optimizer.step()
        return gt_of(call(trial.student, case.val_inputs), case.val_target).mean().item()

    expected = [derivative(lambda s, i=i: loss_after_step(i, s), 3e-5) for i in range(len(case.target))]
    recorder = recorder_of(case, method)
    case.optimizer.zero_grad()
    backward_passes(case, recorder, factors)
    record = recorder.finish()
    case.optimizer.step()
    found = estimate(case, recorder, record)
    assert relative_error(found, torch.tensor(expected, dtype=torch.float64)) <= 1e-6


def test_one_backward_pass_of_several_losses():
    case = make_case("mlp", "momentum", steps=2)
    bound = clip_bound(case, "bites")
    expected = ratio_gradient(case.student, case.optimizer, **case.data, clip_norm=bound, accumulate=3)
    recorder = recorder_of(case, clip_norm=bound)
    losses = []
    for index in pieces(len(case.target), 3):
        with recorder.forward_pass(case.inputs[index]):
            z = call(case.student, case.inputs[index])
        losses.append(loss_of(case, z, index))
        recorder.complete(z, terms_of(case, index), case.alpha[index], losses[-1])
    case.optimizer.zero_grad()
    (sum(losses) / 3).backward()
    clip_gradients(case, bound)
    record = recorder.finish()
    case.optimizer.step()
    assert relative_error(estimate(case, recorder, record), expected) <= 1e-10


@pytest.mark.parametrize("zero_grad", ["before_forward", "after_forward"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_was_skipped_is_dropped(accumulate, zero_grad):
    """A GradScaler skips a step without a word; the next backward pass begins without gradients."""
    case = make_case("mlp", "momentum", steps=1)
    bound = clip_bound(case, "bites")
    recorder = recorder_of(case, clip_norm=bound)
    factors = [1 / accumulate] * accumulate
    case.optimizer.zero_grad()
    backward_passes(case, recorder, factors)
    settings = {"clip_norm": bound, "accumulate": accumulate}
    expected = ratio_gradient(case.student, case.optimizer, **case.data, **settings)
    if zero_grad == "before_forward":
        case.optimizer.zero_grad()
    backward_passes(case, recorder, factors, zero_grad=zero_grad == "after_forward")
    clip_gradients(case, bound)
    record = recorder.finish()
    case.optimizer.step()
    assert record.size == len(case.target)
    assert relative_error(estimate(case, recorder, record), expected) <= 1e-10


def test_a_step_can_be_forgotten():
    case = make_case("mlp", "momentum", steps=1)
    recorder = recorder_of(case)
    with recorder.forward_pass(case.inputs):
        case.student(case.inputs)
    recorder.forget()
    expected = ratio_gradient(case.student, case.optimizer, **case.data)
    assert relative_error(estimate(case, recorder, recorded_step(case, recorder)), expected) <= 1e-10


def test_the_norm_is_that_after_everything_that_happens_at_the_end_of_the_backward_pass():
    """Data-parallel training reduces the gradients in such a callback, queued when the last gradient is there."""
    case = make_case("mlp", "sgd", steps=1)
    first = next(case.student.parameters())  # gets its gradient last
    queue = torch.autograd.Variable._execution_engine.queue_callback
    handle = first.register_post_accumulate_grad_hook(lambda p: queue(lambda: p.grad.mul_(5.0)))
    recorder = recorder_of(case, clip_norm=0.1)
    case.optimizer.zero_grad()
    backward_passes(case, recorder)
    handle.remove()
    expected = torch.nn.utils.get_total_norm([p.grad for p in case.student.parameters()])
    torch.testing.assert_close(recorder.finish().vjp.clip.norm, expected)


def test_clip_norm_needs_the_backward_pass_of_the_recorded_loss():
    case = make_case("mlp", "sgd")
    recorder = recorder_of(case, clip_norm=1.0)
    with recorder.forward_pass(case.inputs):
        logits = case.student(case.inputs)
    recorder.complete(logits, terms_of(case), case.alpha, logits.square().mean())
    gt_loss(logits, case.target).mean().backward()  # another loss
    with pytest.raises(InputError, match="clip_norm"):
        recorder.finish()


def test_modes_changed_between_step_and_estimate_do_not_matter():
    case = make_case("dropout", "sgd")
    recorder = recorder_of(case)
    record = recorded_step(case, recorder)
    expected = estimate(case, recorder, record)
    case.student.eval()  # the caller has evaluated the student
    assert torch.equal(estimate(case, recorder, record), expected)


def test_a_parameter_replaced_between_two_steps_is_noticed():
    case = make_case("mlp", "sgd")
    recorder = recorder_of(case)
    estimate(case, recorder, recorded_step(case, recorder))
    head = next(m for m in reversed(list(case.student.modules())) if isinstance(m, nn.Linear))
    head.weight = nn.Parameter(head.weight.detach() * 0.5)
    case.optimizer.add_param_group({**case.optimizer.param_groups[0], "params": [head.weight]})
    expected = ratio_gradient(case.student, case.optimizer, **case.data)
    assert relative_error(estimate(case, recorder, recorded_step(case, recorder)), expected) < 1e-10


def test_assume_sgd_takes_the_validation_gradient_where_the_optimizer_went():
    # D = lr as for SGD, but the validation gradient is taken after RMSprop's step
    case = make_case("mlp", lambda params: RMSprop(params, lr=1e-6))
    before = [p.detach().clone() for p in case.student.parameters()]
    found = hypergradient(case, assume_sgd=True)
    assert any(not torch.equal(a, b) for a, b in zip(before, case.student.parameters(), strict=True))
    # with so small a step all optimizers agree on that place
    other = make_case("mlp", lambda params: SGD(params, lr=1e-6))
    expected = ratio_gradient(other.student, other.optimizer, **other.data)
    assert relative_error(found * 1e6, expected * 1e6) <= 1e-4
