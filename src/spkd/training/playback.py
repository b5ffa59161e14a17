"""Playing a tape to a run, and recording on it what is missing.

Several processes with a part of each batch record what the teacher says of the whole batch; the first one writes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spkd.distiller import Distiller
from spkd.errors import InputError, RunFailed
from spkd.losses.objective import Objective, Term
from spkd.processes import divide
from spkd.training.tape import Tape

if TYPE_CHECKING:
    from spkd.division import Division


class Player:
    """Gives what the teacher says of each step: from the tape where it is there, else from the teacher, recording it.

    What it gives is the same in either case, rounded as it is on the tape.

    Args:
        tape: of this teacher and stream (also an attribute), with room for the objective's memories.
        objective: whose terms are to be given what they remember.
        distiller: with the teacher; None where all that is needed has been recorded.
        device: where the values are wanted.
        part: which part of each batch's images this process has, and of how many.
        recorded: the steps that are on the tape, where several processes must all ask the teacher or none. None asks
            it whenever something is missing.
    """

    def __init__(
        self,
        tape: Tape,
        objective: Objective,
        distiller: Distiller | None,
        device: torch.device,
        part: tuple[int, int] = (0, 1),
        recorded: NDArray[np.bool_] | None = None,
    ) -> None:
        self.tape, self._distiller, self._device = tape, distiller, device
        self._part, self._parts = part
        self._recorded = recorded
        self._objective = objective

    def __call__(self, step: int, images: Tensor) -> dict[str, Tensor]:
        """Return by term name what the teacher says of the images of a step.

        Raises:
            RunFailed: when the tape turns out to be damaged at this step, and there is no teacher to ask or the other
                processes play the step.
        """
        found = None
        if self._recorded is None or self._recorded[step]:
            found = self.tape.read(step, self._objective.memories)
        if found is None:
            found = self._record(step, images)
        return {term.name: self._to_device(self._own(term, found[term.memory])) for term in self._objective.terms}

    def is_recorded(self, steps: int) -> NDArray[np.bool_]:
        """Return of each of so many steps whether all that is needed of it is on the tape."""
        if self._recorded is not None:
            return self._recorded
        return self.tape.is_recorded(self._objective.memories, steps)

    def _own(self, term: Term, value: Tensor) -> Tensor:
        """Return what this process is to have of a memory: the rows of its images, where the term reads no others."""
        if not term.loss.mean_over_images:
            return value
        return torch.tensor_split(value, self._parts)[self._part].contiguous()

    def _record(self, step: int, images: Tensor) -> dict[str, Tensor]:
        alone = self._recorded is not None and self._recorded[step]
        if self._distiller is None or alone:
            self.tape.forget_damaged()
            raise RunFailed(
                f"--tape {self.tape.folder} is damaged at step {step + 1}: to record that part again, repeat the "
                "same command, with --resume if it is a single run that has a checkpoint"
            )
        said = said_of_all(self._distiller, self._objective, images)
        # What is there stays: another run may be playing it.
        there = {memory: value for memory in said for value in (self.tape.read(step, [memory]) or {}).values()}
        missing = {memory: value for memory, value in said.items() if memory not in there}
        return {**there, **(self.tape.rounded(step, missing) if self._part else self.tape.write(step, missing))}

    def _to_device(self, value: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return value.to(self._device)
        return value.pin_memory().to(self._device, non_blocking=True)


def said_of_all(distiller: Distiller, objective: Objective, images: Tensor) -> dict[str, Tensor]:
    """Return by memory what the teacher says of a batch, of the whole one where processes have divided it."""
    division = divide(images)
    said = distiller.remember(images)
    return {
        term.memory: said[term.name]
        if division is None or not term.loss.mean_over_images
        else _gathered(term, said[term.name], division)
        for term in objective.terms
    }


def _gathered(term: Term, own: Tensor, division: Division) -> Tensor:
    """Return what the term remembers of all images."""
    if own.shape[:1] != (division.sizes[division.rank],):
        raise InputError(
            f"--tape: the term {term.name!r} remembers a tensor of shape {tuple(own.shape)} of "
            f"{division.sizes[division.rank]} images; a loss with mean_over_images must remember a row of each"
        )
    return division.gather_any(own)
