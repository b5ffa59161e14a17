"""The form in which a student is trained: how its weights lie, and whose batch norms see a whole batch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spkd.errors import InputError
from spkd.models.classifier import Classifier
from spkd.modes import evaluating, keeping_buffers

FEW_CHANNELS = 16
"""Channels below which a convolution of single pixels with a stride is not trusted channels last on a processor: twice
the eight from which on its gradients were right with AVX2, since AVX-512 takes twice as many at a time."""


def lay_channels_last(student: Classifier, *, on_processor: bool) -> bool:
    """Lay a student's weights channels last, or leave them where it cannot run so; return whether they lie so now.

    A network that takes a layer's output for contiguous, as ``output.view(len(output), -1)`` does, cannot, nor can
    one with weights of five dimensions. On a processor those with a convolution of single pixels that has a stride and
    takes few channels, as RepVGG's first, stay as they are too: with AVX2 PyTorch 2.14 gives it wrong gradients
    channels last, and writes beyond its memory.
    """
    if on_processor and any(map(_has_wrong_gradients, student.modules())):
        student.to(memory_format=torch.contiguous_format)
        return False
    info = student.info
    modes = [(module, module.training) for module in student.modules()]
    # Those compute on GPUs alone where there are several processes, and the student is not there yet.
    can_train = not any(isinstance(module, nn.SyncBatchNorm) for module in student.modules())
    parameter = next(student.parameters(), torch.empty(0))
    shape = (2, info.channels, info.image_size, info.image_size)
    images = torch.full(shape, 0.5, device=parameter.device, dtype=parameter.dtype)
    try:
        student.to(memory_format=torch.channels_last)
        with torch.no_grad(), keeping_buffers(student), torch.random.fork_rng(devices=[]):
            with evaluating(student):
                student(images)
            if can_train:
                student.train()(images)  # with branches that only training has
    except Exception:
        student.to(memory_format=torch.contiguous_format)
        return False
    finally:
        for module, training in modes:
            module.training = training
    return True


def _has_wrong_gradients(layer: nn.Module) -> bool:
    """Return whether a layer is of the kind whose gradients are computed wrongly channels last."""
    if not isinstance(layer, nn.Conv2d) or set(layer.kernel_size) != {1}:
        return False
    return max(layer.stride) > 1 and layer.in_channels // layer.groups < FEW_CHANNELS


def synchronised(network: nn.Module) -> nn.Module:
    """Return the network with batch norms that see the batch of all processes, those with activations of timm too.

    Raises:
        InputError: when a batch norm computes in a way of its own, which would be lost.
    """
    from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm

    known = {kind.forward for kind in (_BatchNorm, BatchNormAct2d, nn.SyncBatchNorm)}
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) and type(layer).forward not in known:
            raise InputError(
                f"--sync_batchnorm: {name} is a batch norm of its own kind ({type(layer).__name__}), which PyTorch's "
                "cannot stand for; leave it out"
            )
    converted: nn.Module = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted
