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
