"""TGeo-KD in a plain PyTorch loop: without the lines marked with ``<-`` it is ordinary training on the labels.

Run: python examples/handwritten_loop.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tgeokd import DistillationStep, TGeoKD
from tgeokd.data import TASKS

torch.manual_seed(0)
data = TASKS["digits"](seed=0, noise=0.3)  # 30 % of the training labels are replaced; the validation labels are clean
train_set, val_set = (TensorDataset(split.inputs, split.target) for split in (data.train, data.held_out))
train_loader = DataLoader(train_set, batch_size=64, shuffle=True)
val_loader = DataLoader(val_set, batch_size=64)

teacher = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10))
optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-3, weight_decay=1.0)
for _ in range(100):
    for inputs, target in train_loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(inputs), target).backward()
        optimizer.step()

student = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
step = DistillationStep(student, optimizer, TGeoKD(outer="holdout"), validation=val_loader)  # <-
step.prepare(train_loader, teacher)  # <-
for _ in range(60):
    for batch in train_loader:
        loss = step.loss(batch, teacher)  # <- instead of cross_entropy(student(inputs), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

right = (student(data.test.inputs).argmax(dim=-1) == data.test.target).float().mean()
alpha = step.statistics.summary()["alpha_mean"]
print(f"test accuracy {100 * right:.1f} %; mean fusion ratio {alpha:.2f}")
