"""The batches of a run: which images they hold, how these are seen, how several processes divide them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spkd.data.options import DataOptions
from spkd.errors import InputError
from spkd.training.batches import make_stream
from spkd.training.options import Request
from spkd.training.setup import set_up

CPU = torch.device("cpu")
PLAIN = """
from torch import nn


def plain(num_classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, num_classes))
"""


@pytest.mark.parametrize(
    ("batch_size", "parts", "better"), [(83, 2, 82), (2, 2, 4), (166, 2, 165), (99, 2, None), (83, 1, None)]
)
def test_a_process_with_one_image_is_refused_where_batch_norm_trains(
    batch_size: int, parts: int, better: int | None, tmp_path: Path
) -> None:
    """Of 500 digits."""
    (tmp_path / "net.py").write_text(PLAIN)
    own = f"{tmp_path / 'net.py'}:plain"

    def sizes(model: str, size: int) -> list[int]:
        setup = set_up(Request(model=model, overrides={"batch_size": size}))
        stream = make_stream(setup, CPU, (parts - 1, parts))
        return [stream.own_size(batch) for batch in range(stream.batches_per_epoch)]

    assert min(sizes(own, batch_size)) >= 1
    if better is None:
        assert min(sizes("wrn-10-1", batch_size)) >= 2
        return
    with pytest.raises(InputError, match=rf"too few for 2 processes, .* needs 2; try --batch_size {better}$"):
        sizes("wrn-10-1", batch_size)
    assert min(sizes("wrn-10-1", better)) >= 2


def test_an_epoch_has_the_images_without_a_label_too(tiny: str, teacher: Path, tmp_path: Path) -> None:
    for number in range(20):
        Image.new("L", (8, 8), 10 * number).save(tmp_path / f"{number}.png")
    data = DataOptions(train_images=50)
    setup = set_up(Request(model=tiny, teacher=str(teacher), method="kd", data=data, unlabelled=str(tmp_path)))
    given = sorted(torch.cat([targets for _, targets in make_stream(setup, CPU).epoch(0)]).tolist())
    assert given == [-100] * 20 + sorted(setup.data.train.targets.tolist())
    assert setup.recipe.batch_size == 16  # a quarter of all 70, and not of the 50 with a label


@pytest.mark.parametrize("no_flip", [False, True])
def test_images_are_mirrored_half_the_time_or_never(no_flip: bool, tmp_path: Path) -> None:
    for number in range(24):
        folder = tmp_path / ("train" if number < 20 else ("val", "test")[number % 2]) / f"class {number // 2 % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.tile(np.arange(number, number + 160, 10, dtype=np.uint8), (16, 1))).save(
            folder / f"{number}.png"
        )
    data = DataOptions(str(tmp_path), no_flip=no_flip)
    stream = make_stream(set_up(Request(model="wrn-10-1", data=data, overrides={"batch_size": 20})), CPU)
    views = torch.cat([images for epoch in range(20) for images, _ in stream.epoch(epoch)])
    mirrored = int((views[:, 0, 0, 0] > views[:, 0, 0, -1]).sum())
    assert len(views) == 400
    assert mirrored == 0 if no_flip else abs(mirrored - 200) < 40  # 4 standard deviations
