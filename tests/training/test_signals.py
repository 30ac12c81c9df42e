"""Signals wait for the end of the step, a checkpoint is written, and the run that is resumed ends like one in one piece."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager

import pytest
import torch
from resumed_runs import EPOCHS, STEPS, At, CutOff, assert_same_end, distiller_of, fit, resumed_and_whole
from torch.utils.data import DataLoader, Dataset

from tgeokd import TGeoKD
from tgeokd.core.metrics import Metrics
from tgeokd.training.checkpoint import Checkpointer
from tgeokd.training.signals import NUMBERS, HeldSignals, Signalled


@contextmanager
def handled(number, handler):
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def end(number, frame):
    raise CutOff(number)


def send(number):
    return lambda _: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("accumulate", "step"), [(1, STEPS + 1), (1, 2 * STEPS), (3, 2)])
def test_a_run_that_a_signal_ended_is_resumed_at_its_step(tmp_path, number, accumulate, step):
    def make(callback=None):
        return distiller_of(TGeoKD(update_interval=2, outer="holdout"), callback, accumulate=accumulate)

    with handled(number, end):
        with pytest.raises(CutOff, match=str(int(number))):
            fit(make(At(step, send(number))), out=tmp_path / "cut")
        assert signal.getsignal(number) is end
    assert Checkpointer(tmp_path / "cut").load().step["index"] == step
    resumed_and_whole(tmp_path, make, fit)


def test_the_second_signal_does_not_wait(tmp_path):
    def twice(_):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(CutOff):
            os.kill(os.getpid(), signal.SIGINT)
        raise CutOff("second")

    with handled(signal.SIGTERM, end), handled(signal.SIGINT, end), pytest.raises(CutOff, match="second"):
        fit(distiller_of("kd", At(STEPS + 1, twice)), out=tmp_path)
    assert Checkpointer(tmp_path).load().step["index"] == STEPS


def test_training_goes_on_where_the_handler_returns(tmp_path):
    seen = []
    whole, told = distiller_of("tgeo"), distiller_of("tgeo", At(STEPS + 1, send(signal.SIGUSR1)))
    with handled(signal.SIGUSR1, lambda number, frame: seen.append(number)):
        fit(told, out=tmp_path)
    fit(whole)
    assert seen == [signal.SIGUSR1]
    assert_same_end(told, whole)


def test_without_a_folder_no_signal_is_held_back():
    with handled(signal.SIGTERM, end), pytest.raises(CutOff):
        fit(distiller_of("kd", At(2, send(signal.SIGTERM))))


class Interrupting(Dataset):
    """Sends a signal while it is evaluated for the n-th time."""

    def __init__(self, passes):
        self.data = DataLoader(torch.utils.data.TensorDataset(torch.randn(6, 4), torch.arange(6) % 3), 6)
        self.passes, self.seen = passes, 0

    def __iter__(self):
        self.seen += 1
        for batch in self.data:
            if self.seen == self.passes:
                os.kill(os.getpid(), signal.SIGTERM)
                pytest.fail("the evaluation went on")
            yield batch


@pytest.mark.parametrize("returns", [False, True])
def test_an_evaluation_is_not_waited_for_and_done_again(tmp_path, returns):
    torch.manual_seed(4)
    loaders = [Interrupting(passes) for passes in (4, 0, 0)]  # the first passes are made before training
    for loader in loaders[1:]:
        loader.data = loaders[0].data

    def train(distiller, loader, **options):
        from resumed_runs import train_loader

        distiller.fit(train_loader(), loader, epochs=EPOCHS, **options)

    cut, whole = distiller_of("kd"), distiller_of("kd")
    with handled(signal.SIGTERM, (lambda *_: None) if returns else end):
        if returns:
            train(cut, loaders[0], out=tmp_path)
        else:
            with pytest.raises(CutOff):
                train(cut, loaders[0], out=tmp_path)
            state = Checkpointer(tmp_path).load()
            assert state.batch == STEPS  # all of them: the epoch has not ended
            cut = distiller_of("kd")
            train(cut, loaders[1], out=tmp_path, resume=True)
    train(whole, loaders[2])
    assert_same_end(cut, whole)


def test_another_thread_holds_nothing_back():
    held = []
    thread = threading.Thread(target=lambda: held.append(HeldSignals().__enter__()._before))
    thread.start()
    thread.join()
    assert held == [{}]


def test_ignored_signals_stay_ignored():
    with handled(signal.SIGUSR1, signal.SIG_IGN), HeldSignals() as held:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert held.pending is None
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_a_signal_before_the_block_ends_it_at_once():
    with handled(signal.SIGTERM, lambda *_: None), HeldSignals() as held:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Signalled), held.at_once():
            pytest.fail("not entered")
        held.deliver()
        with held.at_once():
            pass


def test_the_best_epoch_is_kept_and_can_be_gone_on_from(tmp_path):
    metrics = Metrics(names=("accuracy", "nll"), primary="nll")
    trained = distiller_of("kd", metrics=metrics)
    fit(trained, out=tmp_path, checkpoint_every=100)
    losses = trained.history["val_loss"]
    best = losses.index(min(losses))
    state = Checkpointer(tmp_path).load("best")
    assert (state.epoch, state.batch) == (best + 1, 0)
    resumed = distiller_of("kd", metrics=metrics)
    fit(resumed, out=tmp_path, resume="best")
    assert resumed.resumed_at == best + 1
    assert_same_end(resumed, trained)
    assert max(int(path.stem[5:]) for path in (tmp_path / "checkpoints").glob("step-*.pt")) == EPOCHS * STEPS
