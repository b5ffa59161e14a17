"""The script that a person would write: torchvision's folder and augmentation, a plain loop, an evaluation."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.reference import PlainStep
from spkd.models.build import build_model
from spkd.models.classifier import Normalisation
from spkd.models.saved_model import load_classifier


def main() -> None:
    images, teacher_folder, student_spec, epochs = sys.argv[1:]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    to_floats = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    augmented = v2.Compose(
        [*to_floats, v2.Pad(4, padding_mode="reflect"), v2.RandomCrop(32), v2.RandomHorizontalFlip()]
    )
    train, test = (
        ImageFolder(Path(images) / "train", augmented),
        ImageFolder(Path(images) / "test", v2.Compose(to_floats)),
    )
    torch.manual_seed(0)
    normalisation = Normalisation((0.5,) * 3, (0.25,) * 3)
    student = build_model(
        student_spec, classes=train.classes, channels=3, image_size=32, normalisation=normalisation
    ).classifier.to(device)
    teacher = load_classifier(teacher_folder).to(device)
    step = PlainStep(student, teacher, "network.group3", 300.0)
    for _ in range(int(epochs)):
        student.train()
        for batch, targets in DataLoader(train, min(128, len(train)), shuffle=True, num_workers=2, drop_last=True):
            step(batch.to(device), targets.to(device))
        student.eval()
        with torch.no_grad():
            right = sum(
                int((student(batch.to(device)).argmax(1).cpu() == targets).sum())
                for batch, targets in DataLoader(test, 256, num_workers=2)
            )
        print(f"error {100 * (1 - right / len(test)):.2f} %")
    torch.save(student.state_dict(), Path(images).parent / "student.pt")


if __name__ == "__main__":
    main()
