"""The form for a training loop: the step is a plain one, and what it says afterwards is what the pure function says before."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from students import FORWARD, OPTIMIZERS, call, clip_bound, make_case, pieces, plain_step, relative_error, rows

from tgeokd.bilevel import Lookahead, ratio_gradient
from tgeokd.core.losses import fuse, gt_loss, kd_loss
from tgeokd.utils.errors import InputError

METHODS = ("forward", "finite_difference", "last_layer", "unrolled")
LOGGER = "tgeokd.bilevel.lookahead"


def lookahead_of(case, method="forward", clip_norm=None, **options):
    return Lookahead(
        case.student, case.optimizer, temperature=case.temperature, method=method, clip_norm=clip_norm, **options
    )


def take_step(case, lookahead, *, accumulate=1, record=True):
    """One step of a hand-written loop."""
    case.optimizer.zero_grad()
    for part in pieces(len(case.target), accumulate):
        target, teacher = case.target[part], case.teacher_logits[part]
        logits = lookahead.forward(rows(case.inputs, part), target, teacher, record=record)
        kd, gt = kd_loss(logits, teacher, case.temperature), gt_loss(logits, target)
        (fuse(kd, gt, case.alpha[part]).sum() / len(case.target)).backward()
    lookahead.step()


def ask(case, lookahead):
    return lookahead.ratio_gradient(case.val_inputs, case.val_target, case.alpha)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", ["none", "bites"])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_pure_function_before_the_step(method, optimizer, clip, accumulate):
    case = make_case("dropout", optimizer, steps=2)
    bound = clip_bound(case, clip)
    expected = ratio_gradient(
        case.student, case.optimizer, **case.data, method=method, clip_norm=bound, accumulate=accumulate
    )
    lookahead = lookahead_of(case, method, bound)
    take_step(case, lookahead, accumulate=accumulate)
    found = ask(case, lookahead)
    assert relative_error(found, expected) <= (1e-6 if method == "finite_difference" else 1e-10)


@pytest.mark.parametrize("student", FORWARD)
def test_equals_the_pure_function_for_every_student(student):
    case = make_case(student, "nesterov", steps=2)
    expected = ratio_gradient(case.student, case.optimizer, **case.data, accumulate=2)
    lookahead = lookahead_of(case, "exact")
    take_step(case, lookahead, accumulate=2)
    assert relative_error(ask(case, lookahead), expected) <= 1e-10


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_first_step_with_a_fresh_optimizer(optimizer):
    case = make_case("mlp", optimizer)
    expected = ratio_gradient(case.student, case.optimizer, **case.data)
    lookahead = lookahead_of(case)
    take_step(case, lookahead)
    assert relative_error(ask(case, lookahead), expected) <= 1e-10


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
@pytest.mark.parametrize("student", ["mlp", "batch_norm_cnn", "mixed", "stateful"])
@pytest.mark.parametrize("method", METHODS)
def test_training_goes_exactly_as_in_a_plain_loop(method, student, clip, accumulate):
    """Parameters, running statistics, optimizer and the stream of random numbers, bit for bit, over several steps."""
    case = make_case(student, "adam")
    bound = clip_bound(case, clip)
    plain = case.copied()

    torch.manual_seed(5)
    lookahead = lookahead_of(case, method, bound)
    for _ in range(3):
        take_step(case, lookahead, accumulate=accumulate)
        ask(case, lookahead)
    ours = state_of(case)

    torch.manual_seed(5)
    for _ in range(3):
        plain.optimizer.zero_grad()
        for part in pieces(len(plain.target), accumulate):
            logits = call(plain.student, plain.inputs[part])
            target, teacher = plain.target[part], plain.teacher_logits[part]
            loss = fuse(kd_loss(logits, teacher, plain.temperature), gt_loss(logits, target), plain.alpha[part])
            (loss.sum() / len(plain.target)).backward()
        if bound is not None:
            torch.nn.utils.clip_grad_norm_([p for p in plain.student.parameters() if p.requires_grad], bound)
        plain.optimizer.step()
    theirs = state_of(plain)

    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_the_answer_can_be_had_twice():
    case = make_case("mixed", "adam", steps=1)
    lookahead = lookahead_of(case)
    take_step(case, lookahead)
    assert torch.equal(ask(case, lookahead), ask(case, lookahead))


@pytest.mark.parametrize("method", METHODS)
def test_zeroing_the_gradients_in_place_before_the_question_does_not_matter(method):
    case = make_case("mixed", "adam", steps=1)
    lookahead = lookahead_of(case, method, clip_bound(case, "bites"))
    take_step(case, lookahead)
    expected = ask(case, lookahead)
    case.optimizer.zero_grad(set_to_none=False)
    assert torch.equal(ask(case, lookahead), expected)


def test_a_step_that_is_not_recorded_is_a_plain_step():
    case = make_case("mixed", "momentum", steps=1)
    plain, bound = case.copied(), clip_bound(case, "bites")
    state = torch.get_rng_state()
    lookahead = lookahead_of(case, clip_norm=bound)
    take_step(case, lookahead, record=False)
    torch.set_rng_state(state)
    plain_step(plain, clip_norm=bound)
    for name, value in plain.student.state_dict().items():
        torch.testing.assert_close(case.student.state_dict()[name], value, rtol=1e-12, atol=1e-14)
    with pytest.raises(RuntimeError, match="needs a finished step"):
        ask(case, lookahead)


def test_each_answer_is_of_the_latest_step():
    case = make_case("mlp", "momentum")
    lookahead = lookahead_of(case)
    for _ in range(3):
        expected = ratio_gradient(case.student, case.optimizer, **case.data)
        take_step(case, lookahead)
        assert relative_error(ask(case, lookahead), expected) <= 1e-10


def test_needs_a_finished_step():
    case = make_case("mlp", "sgd")
    lookahead = lookahead_of(case)
    with pytest.raises(RuntimeError, match=r"forward\(\.\.\.\), backward\(\) and step\(\) come first"):
        ask(case, lookahead)
    take_step(case, lookahead)
    ask(case, lookahead)
    lookahead.forward(case.inputs, case.target, case.teacher_logits)  # the next step has begun
    with pytest.raises(RuntimeError, match="needs a finished step"):
        ask(case, lookahead)


def test_a_step_broken_off_can_be_forgotten():
    case = make_case("mlp", "momentum", steps=1)
    lookahead = lookahead_of(case)
    lookahead.forward(case.inputs, case.target, case.teacher_logits)  # and then, say, an interrupt
    lookahead.forget()
    expected = ratio_gradient(case.student, case.optimizer, **case.data)
    take_step(case, lookahead)
    assert relative_error(ask(case, lookahead), expected) <= 1e-10
    lookahead.forget()
    with pytest.raises(RuntimeError, match="needs a finished step"):
        ask(case, lookahead)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [1, 3, 7])
def test_alpha_must_have_the_steps_length(method, length):
    case = make_case("mlp", "sgd")
    lookahead = lookahead_of(case, method)
    take_step(case, lookahead)
    with pytest.raises(InputError, match=rf"alpha must have shape \(6,\).*\({length},\)"):
        lookahead.ratio_gradient(case.val_inputs, case.val_target, torch.full((length,), 0.5))


def test_evaluating_between_step_and_question_does_not_matter():
    case = make_case("dropout", "sgd")
    lookahead = lookahead_of(case)
    take_step(case, lookahead)
    expected = ask(case, lookahead)
    case.student.eval()  # a user evaluates, and has not yet switched back
    assert torch.equal(ask(case, lookahead), expected)


# ---- exact, auto


@pytest.mark.parametrize("student", ["mlp", "encoder_layer", "direct_attention", "mixed", "recurrent"])
def test_exact_takes_forward_mode_where_it_can(student, caplog):
    case = make_case(student, "momentum")
    lookahead = lookahead_of(case, "exact")
    with caplog.at_level(logging.INFO, logger=LOGGER):
        for _ in range(3):
            take_step(case, lookahead)
            ask(case, lookahead)
    assert lookahead.method == "forward"
    assert [record.levelno for record in caplog.records if record.name == LOGGER] == [logging.INFO]


@pytest.mark.parametrize("student", ["embedding_bag", "custom_function", "weight_norm"])
def test_exact_falls_back_to_finite_differences_and_says_so_once(student, caplog):
    case = make_case(student, "momentum")
    lookahead = lookahead_of(case, "exact")
    with caplog.at_level(logging.INFO, logger=LOGGER):
        for _ in range(3):
            expected = ratio_gradient(case.student, case.optimizer, **case.data, method="finite_difference")
            take_step(case, lookahead)
            assert relative_error(ask(case, lookahead), expected) <= 1e-6
    assert lookahead.method == "finite_difference"
    records = [record for record in caplog.records if record.name == LOGGER]
    assert [record.levelno for record in records] == [logging.WARNING]
    assert "finite differences" in records[0].getMessage()


@pytest.mark.parametrize("student", ["embedding_bag", "custom_function", "weight_norm"])
def test_forward_asked_for_by_name_is_not_replaced(student):
    case = make_case(student, "momentum")
    with pytest.raises(NotImplementedError, match="finite_difference"):
        ratio_gradient(case.student, case.optimizer, **case.data, method="forward")
    lookahead = lookahead_of(case, "forward")
    take_step(case, lookahead)
    with pytest.raises(NotImplementedError, match="finite_difference"):
        ask(case, lookahead)
    assert lookahead.method == "forward"


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("method", ["forward", "finite_difference"])
def test_a_sample_of_the_batch_gives_its_own_part_of_the_derivative(method, accumulate):
    case = make_case("mlp", optimizer="sgd")
    lookahead = lookahead_of(case, method)
    take_step(case, lookahead, accumulate=accumulate)
    whole = ask(case, lookahead)
    sampled = lookahead.ratio_gradient(case.val_inputs, case.val_target, case.alpha, inner_samples=2 * accumulate)

    kept = sampled.nonzero().flatten()
    assert kept.tolist() == [i for part in pieces(len(whole), accumulate) for i in range(len(whole))[part][:2]]
    expected = torch.zeros_like(whole)
    expected[kept] = whole[kept] * len(whole) / len(kept)
    assert relative_error(sampled, expected) < (1e-10 if method == "forward" else 1e-4)


def test_a_sample_of_the_batch_is_refused_where_the_samples_depend_on_each_other():
    case = make_case("batch_norm_cnn", optimizer="sgd")
    lookahead = lookahead_of(case)
    take_step(case, lookahead)
    with pytest.raises(InputError, match="BatchNorm2d layers in training mode"):
        lookahead.ratio_gradient(case.val_inputs, case.val_target, case.alpha, inner_samples=2)
    with pytest.raises(InputError, match="must be >= 1, not 0"):
        lookahead.ratio_gradient(case.val_inputs, case.val_target, case.alpha, inner_samples=0)


def test_a_parameter_replaced_between_two_steps_is_noticed():
    case = make_case("mlp", optimizer="sgd")
    lookahead = lookahead_of(case)
    take_step(case, lookahead)
    ask(case, lookahead)
    head = next(m for m in reversed(list(case.student.modules())) if isinstance(m, torch.nn.Linear))
    head.weight = torch.nn.Parameter(head.weight.detach() * 0.5)
    case.optimizer.add_param_group({**case.optimizer.param_groups[0], "params": [head.weight]})
    expected = ratio_gradient(case.student, case.optimizer, **case.data)
    take_step(case, lookahead)
    assert relative_error(ask(case, lookahead), expected) < 1e-10


def test_auto_takes_the_head_where_there_is_one_and_says_so_once(caplog):
    case = make_case("mlp", "momentum")
    lookahead = lookahead_of(case, "auto")
    with caplog.at_level(logging.INFO, logger=LOGGER):
        for _ in range(3):
            expected = ratio_gradient(case.student, case.optimizer, **case.data, method="last_layer")
            take_step(case, lookahead)
            assert relative_error(ask(case, lookahead), expected) <= 1e-10
    assert lookahead.method == "last_layer"
    assert [r.getMessage() for r in caplog.records if "classifier head" in r.getMessage()] == [
        f"hypergradient: the part of the classifier head, {list(case.student)[-1]}"
    ]


def _frozen_head(case):
    for param in list(case.student)[-1].parameters():
        param.requires_grad_(False)


def _head_left_out(case):
    case.optimizer.param_groups[0]["params"] = list(case.student.parameters())[:-2]


@pytest.mark.parametrize("change", [_frozen_head, _head_left_out])
def test_auto_is_exact_where_the_head_is_not_trained(change):
    case = make_case("mlp", "sgd")
    change(case)
    expected = ratio_gradient(case.student, case.optimizer, **case.data, method="forward")
    assert float(expected.abs().max()) > 0
    lookahead = lookahead_of(case, "auto")
    take_step(case, lookahead)
    assert relative_error(ask(case, lookahead), expected) <= 1e-10
    assert lookahead.method == "forward"
