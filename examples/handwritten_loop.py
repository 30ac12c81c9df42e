"""TGeo-KD inside a loop of one's own: what `Distiller` does, without it.

Run: python examples/handwritten_loop.py
"""

import torch
from torch import nn

from tgeokd import Signals, TGeoKD
from tgeokd.bilevel import Lookahead
from tgeokd.core.geometry.vector import class_means
from tgeokd.data import TASKS

torch.manual_seed(0)
data = TASKS["digits"](seed=0, noise=0.3)  # 30 % of the training labels are wrong
train, held_out, test = data.train, data.held_out, data.test

teacher = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10))
optimizer = torch.optim.AdamW(teacher.parameters(), 1e-3, weight_decay=1.0)
for _ in range(1000):
    rows = torch.randint(len(train), (64,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(teacher(train.inputs[rows]), train.target[rows]).backward()
    optimizer.step()
teacher.eval().requires_grad_(False)

student = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
tgeo = TGeoKD()
tgeo.prepare(10, class_means(teacher(train.inputs).softmax(dim=-1), train.target, num_classes=10))
lookahead = Lookahead(student, optimizer, temperature=4.0)
for _ in range(600):
    rows, outer = torch.randint(len(train), (64,)), torch.randint(len(held_out), (64,))
    inputs, target = train.inputs[rows], train.target[rows]
    teacher_logits = teacher(inputs)
    logits = lookahead.forward(inputs, target, teacher_logits)  # in place of student(inputs)
    loss, alpha = tgeo.loss(Signals(logits, teacher_logits, target, temperature=4.0))
    optimizer.zero_grad()
    loss.mean().backward()
    lookahead.step()  # in place of optimizer.step()
    x, y = held_out.inputs[outer], held_out.target[outer]
    tgeo.learn(alpha, lookahead.ratio_gradient(x, y, alpha, direction=tgeo.direction))

right = (student(test.inputs).argmax(dim=-1) == test.target).float().mean()
print(f"test accuracy {100 * right:.1f} %; last batch: alpha from {alpha.min():.2f} to {alpha.max():.2f}")
