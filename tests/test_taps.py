from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from spkd.errors import InputError
from spkd.outputs import first_tensor
from spkd.taps import Activations, TapPair, Taps, find_layer, unwrap


def network(inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
    )


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


class Named(nn.Module):
    """Calls a layer the given number of times and returns what ``wrap`` makes of the logits."""

    def __init__(self, calls: int = 1, wrap: object = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.calls = calls
        self.wrap = wrap

    def forward(self, features: Tensor) -> object:
        for _ in range(self.calls):
            features = self.layer(features)
        return self.wrap(features) if callable(self.wrap) else features


@dataclasses.dataclass
class Output:
    loss: None
    hidden: Tensor


@dataclasses.dataclass
class HuggingFaceLike:
    hidden: Tensor
    logits: Tensor


class Gives(nn.Module):
    def __init__(self, make: object) -> None:
        super().__init__()
        self.make = make

    def forward(self, features: Tensor) -> object:
        return self.make(features)  # type: ignore[operator]


def test_taps_hold_what_the_layers_put_out() -> None:
    model = network()
    activations = Taps(model, ["0", "3"])(images())
    first = model[0](images())
    last = model[3](model[2](model[1](first)))
    torch.testing.assert_close(activations.taps["0"], first)
    torch.testing.assert_close(activations.taps["3"], last)
    torch.testing.assert_close(activations.logits, model(images()))
    assert list(activations.taps) == ["0", "3"]


def test_gradients_flow_back_from_taps() -> None:
    model = network()
    Taps(model, ["2"])(images()).taps["2"].sum().backward()
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.abs().sum() > 0
    assert model[5].weight.grad is None


def test_a_name_given_twice_is_one_tap() -> None:
    assert Taps(network(), ["0", "2", "0"]).names == ("0", "2")


def test_without_names_only_logits() -> None:
    assert Taps(network(), [])(images()).taps == {}


def test_hooks_go_on_removal() -> None:
    model = network()
    taps = Taps(model, ["0", "2"])
    assert hook_count(model) == 2
    taps.remove()
    taps.remove()
    assert hook_count(model) == 0
    with pytest.raises(InputError, match="tap '0': the layer did not run"):
        taps(images())


def test_hooks_go_at_the_end_of_a_with_block_even_on_errors() -> None:
    model = network()
    taps = Taps(model, ["0"])
    with pytest.raises(RuntimeError), taps:
        taps(torch.rand(1, 5, 8, 8))
    assert hook_count(model) == 0
    with Taps(model, ["0"]):
        assert hook_count(model) == 1
    assert hook_count(model) == 0


def test_hooks_go_when_taps_are_forgotten() -> None:
    model = network()
    taps = Taps(model, ["0"])
    taps(images())
    gc.disable()
    try:
        del taps
        assert hook_count(model) == 0
    finally:
        gc.enable()


def test_hooks_of_others_stay() -> None:
    model = network()
    model[0].register_forward_hook(lambda *_: None)
    Taps(model, ["0"]).remove()
    assert hook_count(model) == 1


def test_an_unknown_layer_leaves_no_hook_behind() -> None:
    model = network()
    with pytest.raises(InputError):
        Taps(model, ["0", "nowhere"])
    assert hook_count(model) == 0


def test_nothing_is_kept_between_calls() -> None:
    model = network()
    taps = Taps(model, ["0"])
    seen: list[weakref.ref[Tensor]] = []
    model[0].register_forward_hook(lambda layer, inputs, output: seen.append(weakref.ref(output)))
    taps(images())
    model(images())
    gc.collect()
    assert [reference() for reference in seen] == [None, None]


def test_a_failed_pass_does_not_spoil_the_next() -> None:
    model = network()
    taps = Taps(model, ["0"])
    with pytest.raises(RuntimeError):
        taps(torch.rand(1, 3, 4, 4))
    assert taps(images()).taps["0"].shape == (2, 4, 6, 6)


def test_two_taps_on_one_network_are_independent() -> None:
    model = network()
    one, two = Taps(model, ["0"]), Taps(model, ["0", "2"])
    assert list(one(images()).taps) == ["0"]
    one.remove()
    assert list(two(images()).taps) == ["0", "2"]


def test_unknown_layers_are_answered_with_the_nearest() -> None:
    model = nn.Sequential()
    model.add_module("layer3", nn.Linear(1, 1))
    model.add_module("layer4", nn.Linear(1, 1))
    with pytest.raises(InputError, match=r"Sequential has no layer 'layer5'\. Did you mean 'layer4'"):
        Taps(model, ["layer5"])
    with pytest.raises(InputError, match="no layer ''"):
        Taps(model, [""])


def test_a_layer_that_does_not_run_is_an_error() -> None:
    with pytest.raises(InputError, match="tap 'unused': the layer did not run"):
        Taps(Named(), ["layer", "unused"])(torch.rand(2, 4))


def test_a_layer_that_runs_twice_is_an_error() -> None:
    with pytest.raises(InputError, match="tap 'layer': the layer ran 2 times"):
        Taps(Named(calls=2), ["layer"])(torch.rand(2, 4))


def test_an_output_overwritten_later_is_an_error() -> None:
    model = network(inplace=True)
    with pytest.raises(InputError, match="tap '0': the layer's output is overwritten in place"):
        Taps(model, ["0"])(images())
    with torch.no_grad(), pytest.raises(InputError, match="overwritten"):
        Taps(model, ["0"])(images())
    assert Taps(model, ["1"])(images()).taps["1"].min() >= 0


def test_in_inference_mode_a_tap_is_what_the_layer_put_out() -> None:
    model = network(inplace=True)
    with torch.inference_mode():
        tapped = Taps(model, ["0"])(images()).taps["0"]
        torch.testing.assert_close(tapped, model[0](images()))
    assert tapped.min() < 0


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (None, x, x + 1),
        lambda x: [x, x + 1],
        lambda x: {"hidden": x, "more": x + 1},
        lambda x: Output(None, x),
        lambda x: (("a", x), x + 1),
    ],
    ids=["tuple", "list", "dict", "dataclass", "nested"],
)
def test_the_first_tensor_of_an_output_is_tapped(make: object) -> None:
    model = nn.Sequential(Gives(make), Gives(first_tensor))
    features = torch.rand(2, 4)
    torch.testing.assert_close(Taps(model, ["0"])(features).taps["0"], features)


def test_a_layer_without_a_tensor_is_an_error() -> None:
    model = nn.Sequential(Gives(lambda x: "no tensor"), Gives(lambda x: torch.zeros(2, 4)))
    with pytest.raises(InputError, match="tap '0': expected a layer that puts out a tensor"):
        Taps(model, ["0"])(torch.rand(2, 4))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: z,
        lambda z: {"hidden": z + 1, "logits": z},
        lambda z: HuggingFaceLike(z + 1, z),
        lambda z: (z, z + 1),
        lambda z: [z],
    ],
    ids=["tensor", "item", "attribute", "tuple", "list"],
)
def test_logits_are_found(wrap: object) -> None:
    model = Named(wrap=wrap)
    features = torch.rand(2, 4)
    torch.testing.assert_close(Taps(model, [])(features).logits, model.layer(features))


@pytest.mark.parametrize("wrap", [lambda z: {"out": z}, lambda z: (), lambda z: "z"])
def test_an_output_without_logits_is_an_error(wrap: object) -> None:
    with pytest.raises(InputError, match="model: expected logits"):
        Taps(Named(wrap=wrap), [])(torch.rand(2, 4))


def test_where_no_logits_are_wanted_anything_is_put_out() -> None:
    model, features = Named(wrap=lambda z: {"maps": [z, z]}), torch.rand(2, 4)
    activations = Taps(model, ["layer"], logits=False)(features)
    assert activations.logits.shape == (2, 0)
    torch.testing.assert_close(activations.taps["layer"], model.layer(features))
    named = Named(wrap=lambda z: {"maps": z + 1, "logits": z})
    torch.testing.assert_close(Taps(named, [], logits=False)(features).logits, named.layer(features))


@pytest.mark.parametrize("turned", [lambda z: z.transpose(0, 1), lambda z: z.mean(), lambda z: z.repeat(2, 1)])
def test_a_layer_in_which_the_batch_does_not_come_first_is_an_error(turned: Callable[[Tensor], Tensor]) -> None:
    class Turned(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            return turned(super().forward(features))

    line = r"^tap '0': expected the batch of 2 as the first dimension, and the layer puts out \([^\n]+$"
    with pytest.raises(InputError, match=line):
        Taps(nn.Sequential(Turned(4, 3)), ["0"])(torch.rand(2, 4))


@pytest.mark.parametrize("images", [{"images": torch.rand(2, 4)}, [torch.rand(2, 4)]])
def test_a_batch_that_is_no_tensor_is_an_error(images: Any) -> None:
    with pytest.raises(InputError, match=r"^images: expected a tensor with the batch first, got (dict|list);"):
        Taps(nn.Linear(4, 3), [])(images)


def test_names_pass_through_wrappers() -> None:
    model = network()
    wrapped = nn.DataParallel(nn.Sequential())
    wrapped.module = model
    assert unwrap(wrapped) is model
    assert unwrap(torch.compile(wrapped)) is model
    assert find_layer(wrapped, "2") is model[2]
    assert find_layer(wrapped, "module.2") is model[2]
    assert unwrap(torch.optim.swa_utils.AveragedModel(model))[0].weight.shape == (4, 3, 3, 3)


def test_a_network_of_several_children_is_no_wrapper() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

    two = Two()
    assert unwrap(two) is two
    assert find_layer(two, "network") is two.network


def test_names_pass_through_fabric() -> None:
    from lightning_fabric import Fabric

    model = network()
    wrapped = Fabric(accelerator="cpu", devices=1).setup(model)
    assert unwrap(wrapped) is model
    assert Taps(wrapped, ["2"])(images()).taps["2"].shape == (2, 4, 4, 4)


def test_taps_fire_in_a_network_wrapped_by_ddp_before_or_after() -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        plain = Taps(network(), ["2"])(images())
        model = network()
        before = Taps(model, ["2"])
        wrapped = DistributedDataParallel(model)
        after = Taps(wrapped, ["2"])
        for taps in (Taps(wrapped, ["module.2"]), after):
            activations = taps(images())
            (tapped,) = activations.taps.values()
            torch.testing.assert_close(tapped, plain.taps["2"])
            (tapped.sum() + activations.logits.sum()).backward()
        before.model = wrapped
        torch.testing.assert_close(before(images()).taps["2"], plain.taps["2"])
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_taps_fire_in_a_compiled_network(backend: str) -> None:
    torch.compiler.reset()
    plain = network()
    expected = Taps(plain, ["0", "2"])(images())
    expected.taps["2"].sum().backward()
    model = network()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    taps = Taps(compiled, ["0", "2"])
    for _ in range(2):
        given = taps(images())
        torch.testing.assert_close(given.taps["0"], expected.taps["0"])
        torch.testing.assert_close(given.taps["2"], expected.taps["2"])
        compiled(images())
    given.taps["2"].sum().backward()
    torch.testing.assert_close(model[0].weight.grad, plain[0].weight.grad)
    assert taps(images(3)).taps["2"].shape == (3, 4, 4, 4)


def test_in_a_compiled_network_a_tap_is_what_the_layer_put_out() -> None:
    torch.compiler.reset()
    model = network(inplace=True)
    tapped = Taps(torch.compile(model, backend="aot_eager"), ["0"])(images()).taps["0"]
    torch.testing.assert_close(tapped, model[0](images()))


def test_taps_set_after_a_compiled_network_ran_are_an_error_never_silent() -> None:
    torch.compiler.reset()
    compiled = torch.compile(network(), backend="eager")
    compiled(images())
    taps = Taps(compiled, ["0"])
    with pytest.raises(InputError, match="compiled and run before the taps were set"):
        taps(images())


def test_taps_under_autocast_have_its_precision() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        activations = Taps(network(), ["2"])(images())
    assert activations.taps["2"].dtype == torch.bfloat16


def test_a_tapped_network_can_be_copied_and_pickled() -> None:
    model = network()
    taps = Taps(model, ["0"])
    twin = copy.deepcopy(taps)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    assert taps(images()).taps["0"].abs().max() == 0
    assert twin(images()).taps["0"].abs().max() > 0
    loaded = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(loaded(images()), model(images()))


def test_activations_and_pairs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Activations(torch.zeros(1), {}).logits = torch.ones(1)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        TapPair("a", "b").student = "c"  # type: ignore[misc]


paths = st.from_regex(r"[a-z0-9_]+(\.[a-z0-9_]+){0,3}", fullmatch=True)


@given(paths, paths)
def test_pairs_read_as_they_are_written(student: str, teacher: str) -> None:
    pair = TapPair(student, teacher)
    assert TapPair.parse(str(pair)) == pair
    assert TapPair.parse(f" {student} = {teacher} ") == pair
    assert TapPair.parse(student) == TapPair(student, student)


@pytest.mark.parametrize("text", ["", "=", "a=", "=b", "a=b=c", " "])
def test_pairs_that_cannot_be_read_are_errors(text: str) -> None:
    with pytest.raises(InputError, match="taps: expected 'student_path=teacher_path'"):
        TapPair.parse(text)


def test_a_pass_that_stops_ends_after_the_last_of_its_layers_and_no_sooner() -> None:
    ran: list[str] = []
    network = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(4)])
    for name, layer in network.named_children():
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    images = torch.rand(2, 3, 4, 4)
    with Taps(network, ["2", "0"], stop=True) as taps:
        found = taps(images)
    assert ran == ["0", "1", "2"]
    with Taps(network, ["2", "0"]) as whole:
        expected = whole(images)
    assert found.logits.shape == (2, 0)
    assert all(torch.equal(found.taps[name], expected.taps[name]) for name in ("0", "2"))


@pytest.mark.parametrize(("count", "most", "sizes"), [(7, 3, [3, 2, 2]), (8, 4, [4, 4]), (3, 5, [3]), (2, 1, [1, 1])])
def test_micro_batches_are_joined_to_what_the_whole_batch_gives(count: int, most: int, sizes: list[int]) -> None:
    model = network().double()
    batch = images(count).double().requires_grad_()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    found = Taps(model, ["2", "1"], micro_batch_size=most)(batch)
    assert seen == sizes
    expected = Taps(model, ["2", "1"])(batch)
    for one, other in [(found.logits, expected.logits), *((found.taps[name], expected.taps[name]) for name in "12")]:
        torch.testing.assert_close(one, other)
        weight = torch.rand_like(other)
        torch.testing.assert_close(
            torch.autograd.grad((one * weight).sum(), batch, retain_graph=True),
            torch.autograd.grad((other * weight).sum(), batch, retain_graph=True),
        )


def test_micro_batches_end_early_as_whole_ones_do() -> None:
    found = Taps(network(), ["1"], stop=True, micro_batch_size=2)(images(5))
    assert found.logits.shape == (5, 0)
    torch.testing.assert_close(found.taps["1"], Taps(network(), ["1"])(images(5)).taps["1"])


def test_a_micro_batch_holds_an_image() -> None:
    with pytest.raises(InputError, match="micro_batch_size: expected at least 1 image, got 0"):
        Taps(network(), [], micro_batch_size=0)


def test_a_single_name_is_one_layer() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(13)))
    assert list(Taps(model, "12")(torch.rand(2, 3)).taps) == ["12"]
    with pytest.raises(InputError, match="'nothing'"):
        Taps(model, "nothing")
