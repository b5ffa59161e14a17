"""What the measurements are held against: a plain eager training step with the textbook loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The paper's equations, line by line, without any care for range."""
    student_rows = F.normalize(student.flatten(1) @ student.flatten(1).T, dim=1)
    teacher_rows = F.normalize(teacher.flatten(1) @ teacher.flatten(1).T, dim=1)
    return (student_rows - teacher_rows).square().sum() / student.shape[0] ** 2


class PlainStep:
    """Teacher and student in float32, hooks for the features, SGD."""

    def __init__(self, student: nn.Module, teacher: nn.Module, layer: str, gamma: float) -> None:
        self.student, self.teacher, self.gamma = student.train(), teacher.eval(), gamma
        self.optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        self.features: dict[str, Tensor] = {}
        for name, network in (("student", student), ("teacher", teacher)):
            network.get_submodule(layer).register_forward_hook(
                lambda module, inputs, output, name=name: self.features.__setitem__(name, output)
            )

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            self.teacher(images)
        cross_entropy = F.cross_entropy(self.student(images), targets)
        loss = cross_entropy + self.gamma * similarity_loss(self.features["student"], self.features["teacher"])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()
