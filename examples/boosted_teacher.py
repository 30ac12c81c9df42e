"""Attack detection on NSL-KDD: gradient-boosted trees as the teacher of a small network.

Run: python examples/boosted_teacher.py --data-dir DATA    (needs: pip install 'tgeokd[boosting,tabular]')
"""

import argparse
from pathlib import Path

import torch

from tgeokd import Distiller
from tgeokd.data.tasks.nsl_kdd import nsl_kdd
from tgeokd.models import build_model
from tgeokd.teachers import StoredPredictions, fit_classifier

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds nsl-kdd/")
parser.add_argument("--part", default="full", choices=("full", "20percent"), help="which training file")
parser.add_argument("--epochs", type=int, default=10, help="of each student")
arguments = parser.parse_args()

data = nsl_kdd(data_dir=arguments.data_dir, part=arguments.part, seed=0)
train, val, test = (data.ordered_loader(split) for split in (data.train, data.held_out, data.test))
classifier = fit_classifier("lightgbm", {}, data, seed=0)  # its number of trees is chosen on the validation set
teacher = StoredPredictions.from_teacher(classifier, train, val, test)  # then looked up by sample id


def percentages(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {100 * metrics[name]:.2f} %" for name in ("accuracy", data.metrics.primary))


logits = teacher.lookup(data.test.ids)
print(f"{'teacher':10} {percentages(data.metrics(logits, data.test.target))}")

for method in ("ce", "kd", "tgeo"):
    torch.manual_seed(0)
    student = build_model("mlp", inputs=data.inputs, num_classes=data.num_classes, hidden=(64, 32))
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    distiller = Distiller(student, teacher, method, optimizer, temperature=2.0, metrics=data.metrics, progress=False)
    distiller.fit(data.training_loader(256), val, epochs=arguments.epochs)
    print(f"{method:10} {percentages(distiller.evaluate(test))}")
