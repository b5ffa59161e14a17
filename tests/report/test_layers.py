"""The table of layers shows their names as they are."""

from helpers import printed

from spkd.pairing import Candidate
from spkd.report.layers import layers_table
from spkd.taps import TapPair
from spkd.training.layers import Layers


def test_names_of_layers_are_neither_markup_nor_obeyed() -> None:
    odd, shown = "[red]\x1b[2J", "[red]\\x1b[2J"
    layer = Candidate(odd, (4, 8, 8))
    text = printed(layers_table(Layers((3, 8, 8), (layer,), (layer,), (TapPair(odd, odd),))))
    assert text.count(shown) == 4
    assert "\x1b" not in text
    assert f"compared (student=teacher): {shown}={shown}" in text
