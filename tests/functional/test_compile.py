"""The losses compile into one graph, under autocast as well, and give what they give without compilation."""

from __future__ import annotations

import torch
from torch import Tensor

from spkd.functional import attention_transfer_loss, similarity_preserving_loss, soft_target_loss


def all_losses(student: Tensor, teacher: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spatial = attention_transfer_loss(student, teacher)
        logits = soft_target_loss(student.mean((2, 3)), teacher.mean((2, 3)))
        return similarity_preserving_loss([student], [teacher]) + spatial + logits


def test_one_graph_with_equal_value_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 3, 4, 4, generator=generator)
    student[1] = 0
    teacher = torch.randn(4, 3, 2, 2, generator=generator)
    results = []
    for function in (all_losses, torch.compile(all_losses, fullgraph=True)):
        leaf = student.clone().requires_grad_()
        loss = function(leaf, teacher)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
