from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers import compress
from safetensors.torch import save_file
from torch import Tensor, nn

from spkd.errors import InputError
from spkd.models.weights import load, match, read_checkpoint, read_tensors


def network(classes: int = 3) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3),
            norm=nn.BatchNorm2d(4),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(4, classes),
        )
    )


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(network().state_dict())


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def one_line(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_tensors(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def test_reads_each_format(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, tmp_path / "timm.pth")
    torch.save({"model_state_dict": state, "loss": 0.5}, tmp_path / "tutorial.pt")
    torch.save({"state_dict": state, "optimizer": {"state": {}}}, tmp_path / "reference.pth.tar")
    torch.save({"model": {"arch": "r18"}, "model_state_dict": state}, tmp_path / "described.pt")
    torch.save({"net": {"arch": "r18"}, **state}, tmp_path / "beside.pt")
    save_file(state, tmp_path / "misnamed.pt")
    for path in tmp_path.iterdir():
        assert same(read_tensors(path), state), path


def test_the_moving_average_is_taken_where_a_training_has_left_one(tmp_path: Path, state: dict[str, Tensor]) -> None:
    raw = {name: value + 1 for name, value in state.items()}
    for name, key, beside in (("timm", "state_dict_ema", "state_dict"), ("reference", "model_ema", "model")):
        torch.save({beside: raw, key: state, "epoch": 3}, tmp_path / f"{name}.pth")
        tensors, notes = read_checkpoint(tmp_path / f"{name}.pth")
        assert same(tensors, state)
        assert notes == (f"weights: the moving average in the file, '{key}', is used, not '{beside}'",)
    for content in ({"epoch": 1, "state_dict": raw, "ema": state}, {"ema": state, "state_dict": raw}):
        torch.save({**content, "scheduler": {"seen": torch.ones(1)}}, tmp_path / "own.pth")
        tensors, notes = read_checkpoint(tmp_path / "own.pth")
        assert same(tensors, raw)
        assert notes == ("weights: 'state_dict' in the file is used, not 'ema'",)
    torch.save({"model": raw, "model_ema": {"decay": 0.9}}, tmp_path / "none.pth")
    tensors, notes = read_checkpoint(tmp_path / "none.pth")
    assert same(tensors, raw)
    assert notes == ()


def test_never_runs_code(tmp_path: Path, state: dict[str, Tensor]) -> None:
    marker = tmp_path / "ran"
    torch.save({"state_dict": state, "extra": RunsCode(marker)}, tmp_path / "evil.pt")
    (tmp_path / "evil2.pt").write_bytes(pickle.dumps(RunsCode(marker), protocol=2))
    (tmp_path / "evil4.pt").write_bytes(pickle.dumps(RunsCode(marker), protocol=4))
    for name in ("evil.pt", "evil2.pt"):
        assert "mkdir" in one_line(tmp_path / name)
    assert "not a weights file" in one_line(tmp_path / "evil4.pt")
    assert not marker.exists()
    pickle.loads((tmp_path / "evil2.pt").read_bytes())
    assert marker.exists()


def test_refuses_a_whole_pickled_network(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    line = one_line(tmp_path / "whole.pt")
    assert "torch.nn.modules.linear.Linear" in line
    assert "save model.state_dict()" in line


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.95])
def test_refuses_truncated_files(tmp_path: Path, state: dict[str, Tensor], keep: float) -> None:
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for path in list(tmp_path.iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        assert "truncated" in one_line(path)


def test_refuses_what_is_compressed_inside(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"fc.weight": torch.zeros(1000, 1000)}, path)
    assert read_tensors(path)["fc.weight"].shape == (1000, 1000)
    compress(path)
    assert path.stat().st_size < 10_000
    assert torch.load(path)["fc.weight"].shape == (1000, 1000)  # by itself it is unpacked
    assert "is compressed inside" in one_line(path)


def test_an_old_file_is_no_archive_whatever_its_numbers_are(tmp_path: Path) -> None:
    """By its last bytes it might be one, and no archive begins so."""
    weight = torch.zeros(8)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 46, 0, 0)  # of an archive of one file
    weight.view(torch.uint8)[-22:] = torch.tensor(list(end), dtype=torch.uint8)
    torch.save({"fc.weight": weight}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert zipfile.is_zipfile(tmp_path / "old.pth")
    assert torch.equal(read_tensors(tmp_path / "old.pth")["fc.weight"], weight)


def test_refuses_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "page.pt").write_text("<html>404 not found</html>")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "image.pth").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    with zipfile.ZipFile(tmp_path / "backup.ckpt", "w") as archive:
        archive.writestr("notes.txt", "no checkpoint")
    with zipfile.ZipFile(tmp_path / "folder.ckpt", "w") as archive:
        archive.writestr("folder/notes.txt", "no checkpoint")
    for path in tmp_path.iterdir():
        assert "not a weights file" in one_line(path)


def test_refuses_what_holds_no_state_dict(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "progress.pt")
    assert "holds 'epoch', 'best'" in one_line(tmp_path / "progress.pt")
    torch.save(torch.rand(3), tmp_path / "tensor.pt")
    assert "holds a Tensor" in one_line(tmp_path / "tensor.pt")
    torch.save({}, tmp_path / "nothing.pt")
    assert "holds nothing" in one_line(tmp_path / "nothing.pt")
    assert "does not exist" in one_line(tmp_path / "missing.pt")
    assert "is a folder" in one_line(tmp_path)


def test_says_that_torchscript_is_a_program(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", pickle.dumps(()))
        archive.writestr("script/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("script/version", "3\n")
        archive.writestr("script/byteorder", "little")
    assert "TorchScript" in one_line(tmp_path / "script.pt")


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "_orig_mod.",
        "network.",
        "module._orig_mod.",
        "model.module.network.",
        "net.",
        "model.own.a.",
    ],
)
def test_strips_the_prefixes_of_wrappers(state: dict[str, Tensor], prefix: str) -> None:
    found = match(network(), prefixed(state, prefix))
    assert found.problems == 0
    assert same(dict(found.tensors), state)
    assert found.notes == (f"weights: the prefix {prefix!r} was stripped from the names in the file",)


def test_strips_the_prefixes_that_torch_itself_makes(state: dict[str, Tensor]) -> None:
    wrapped = torch.nn.DataParallel(torch.compile(network()))  # type: ignore[arg-type]
    found = match(network(), wrapped.state_dict())
    assert found.problems == 0
    assert "'module._orig_mod.'" in found.notes[0]


def test_leaves_out_what_stands_beside_the_network(state: dict[str, Tensor]) -> None:
    tensors = {**prefixed(state, "model."), "criterion.weight": torch.ones(3)}
    found = match(network(), tensors)
    assert found.problems == 0
    assert found.notes[1] == "weights: 1 outside 'model.' left out (criterion.weight)"


@pytest.mark.parametrize(("first", "second"), [("model.", "ema_model.module."), ("student.", "ema.")])
def test_says_which_of_two_whole_copies_is_used(first: str, second: str, state: dict[str, Tensor]) -> None:
    averaged = {name: value + 1 for name, value in state.items()}
    found = match(network(), {**prefixed(state, first), **prefixed(averaged, second)})
    assert same(dict(found.tensors), state)
    line = f"the file holds 2 whole copies, of which {first!r} is used, not {second!r}; to use another, save it"
    assert found.notes[2:] == (f"weights: {line} in a file of its own",)
    assert len(match(network(), {**prefixed(state, first), **prefixed(state, second)}).notes) == 2, "of equal ones none"
    averaged.popitem()
    assert len(match(network(), {**prefixed(state, first), **prefixed(averaged, second)}).notes) == 2, "nor of a part"


def test_keeps_a_prefix_that_is_the_networks_own(state: dict[str, Tensor]) -> None:
    wrapped = nn.ModuleDict({"model": network()})
    assert match(wrapped, prefixed(state, "model.")).notes == ()
    found = match(wrapped, prefixed(state, "module.model."))
    assert found.problems == 0
    assert "'module.'" in found.notes[0]


def test_names_what_does_not_fit(state: dict[str, Tensor]) -> None:
    del state["conv.bias"]
    state["extra.weight"] = torch.ones(1)
    state["conv.weight"] = torch.ones(4, 1, 3, 3)
    found = match(network(), state)
    assert found.problems == 3
    assert found.head_classes(3) is None
    assert found.complaint() == (
        "1 missing from the file (conv.bias); 1 unknown to the network (extra.weight); "
        "1 of another shape (conv.weight: 4x1x3x3 in the file, 4x3x3x3 in the network)"
    )


def test_lists_a_few_of_many_names() -> None:
    found = match(network(), {"a": torch.ones(1)})
    assert "8 missing from the file (conv.weight, conv.bias, norm.weight, ...)" in found.complaint()


def test_tells_a_head_from_another_mismatch(state: dict[str, Tensor]) -> None:
    assert match(network(7), state).head_classes(7) == 3
    assert match(network(3), state).head_classes(3) is None
    headless = {name: value for name, value in state.items() if not name.startswith("fc.")}
    assert match(network(7), headless).head_classes(7) == 0
    wider = {**state, "fc.weight": torch.ones(3, 8)}
    assert match(network(7), wider).head_classes(7) is None


def test_loads_all_but_the_head(state: dict[str, Tensor]) -> None:
    target = network(7)
    head = target.get_submodule("fc").weight.clone()
    load(target, match(target, state))
    loaded = target.state_dict()
    assert torch.equal(loaded["fc.weight"], head)
    assert all(torch.equal(loaded[name], state[name]) for name in state if not name.startswith("fc."))


def test_accepts_files_from_before_norms_counted_batches(state: dict[str, Tensor]) -> None:
    state.pop("norm.num_batches_tracked")
    found = match(network(), state)
    assert found.problems == 0
    target = network()
    load(target, found)
    assert torch.equal(target.state_dict()["norm.running_var"], state["norm.running_var"])


def test_reads_the_bytes_that_another_program_wrote(tmp_path: Path) -> None:
    """A safetensors file put together by hand from the format's description."""
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    buffer = io.BytesIO()
    buffer.write(len(header).to_bytes(8, "little") + header)
    buffer.write(b"\x00\x00\x80\x3f\x00\x00\x00\x40")
    (tmp_path / "w.safetensors").write_bytes(buffer.getvalue())
    assert read_tensors(tmp_path / "w.safetensors")["w"].tolist() == [1.0, 2.0]
