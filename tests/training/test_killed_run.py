"""A run killed with signal 9, in the middle of an epoch, ends after it is resumed like one that was not killed.

Run as a script (``python test_killed_run.py FOLDER STEP SAVE``), this trains into FOLDER and waits after step STEP to be
killed, after writing a checkpoint if SAVE is 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from resumed_runs import EPOCHS, At, assert_same_end, distiller_of, metrics, train_loader, validation_loader
from small_training import Recorder
from torch.optim.lr_scheduler import CosineAnnealingLR

from tgeokd import TGeoKD


def make(callback=None):
    def scheduler(optimizer):
        return CosineAnnealingLR(optimizer, 60)

    method = TGeoKD(outer="union", update_interval=2, outer_batch_size=5)
    return distiller_of(method, callback, scheduler=scheduler, scheduler_every="step", clip_norm=1.0)


def fit(distiller, **options):
    return distiller.fit(train_loader(generator_seed=3), validation_loader(), epochs=EPOCHS, seed=2, **options)


def wait_to_be_killed(distiller):
    if sys.argv[3] == "1":
        distiller.save_checkpoint()
    while not (Path(sys.argv[1]) / "checkpoints" / "step-000000012.pt.sha256").exists():  # is written in the background
        time.sleep(0.01)
    sys.stdout.write("waiting\n")
    sys.stdout.flush()
    time.sleep(120)
    raise SystemExit("nobody killed this run")


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("save", [False, True])
def test_a_killed_run_ends_like_one_that_was_not_killed(tmp_path, save):
    step = 3 * 4 + 2  # in the middle of the fourth epoch of 20 + 12 samples in batches of 8
    process = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path / "killed"), str(step), str(int(save))],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert process.stdout.readline() == "waiting\n"
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -9
    killed_at = metrics(tmp_path / "killed")
    assert [record["epoch"] for record in killed_at] == [0, 1, 2]
    assert not (tmp_path / "killed" / "student.safetensors").exists()

    recorder = Recorder()
    resumed, whole = make(recorder), make()
    fit(resumed, out=tmp_path / "killed", resume=True)
    fit(whole, out=tmp_path / "whole")
    assert_same_end(resumed, whole)
    assert resumed.method.network is not None
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert metrics(tmp_path / "killed")[:3] == killed_at
    assert [record["epoch"] for record in metrics(tmp_path / "killed")] == list(range(EPOCHS))
    weights = [(tmp_path / run / "student.safetensors").read_bytes() for run in ("killed", "whole")]
    assert weights[0] == weights[1]
    assert resumed.step == whole.step == EPOCHS * 4
    assert recorder.log.count("step") == EPOCHS * 4 - (step if save else 3 * 4)
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == [
        "checkpoints",
        "metrics.jsonl",
        "student.safetensors",
        "student.safetensors.sha256",
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(make(At(int(sys.argv[2]), wait_to_be_killed)), out=sys.argv[1])
