"""The batches of a run, where several processes divide them."""

from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize(("batch_size", "left"), [(83, 2), (99, 5)])
def test_a_process_with_one_image_is_refused_where_batch_norm_trains(
    batch_size: int, left: int, tmp_path: Path
) -> None:
    """Of 500 digits."""
    (tmp_path / "net.py").write_text(PLAIN)
    for model in ("wrn-10-1", f"{tmp_path / 'net.py'}:plain"):
        setup = set_up(Request(model=model, overrides={"batch_size": batch_size}))
        assert make_stream(setup, CPU).last_batch_size == left
        if model == "wrn-10-1" and left < 4:
            with pytest.raises(InputError, match=r"--batch_size 83: of the 2 images .* try --batch_size 82"):
                make_stream(setup, CPU, (0, 2))
        else:
            assert make_stream(setup, CPU, (1, 2)).own_size(0) == batch_size // 2
