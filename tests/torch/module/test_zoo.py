"""Real networks as modules: every fold exact in float64, and in float32 within the network's own rounding noise."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch_zoo import Counted, batch_norms, count, distance, outputs, wide
from zoo import ZOO, ZooModel

import bnfold
from bnfold.reasons import StopCode

pytestmark = pytest.mark.slow

LEFT = {
    "dpt": {StopCode.NOT_REACHED: 2},
    "textnet": {StopCode.NEEDS_GRAPH: 4},
    "efficientloftr": {StopCode.NEEDS_GRAPH: 4},
    "pp_lcnet_v3": {StopCode.NEEDS_GRAPH: 6},
    "emu3_temporal_block": {StopCode.MUTATED: 1},
    "clap_audio": {StopCode.NOT_CAPTURED: 1},
    "hubert": {StopCode.OTHER_CONSUMERS: 1},
    "patchtsmixer": {StopCode.OTHER_CONSUMERS: 4},
    "sam3_lite_text": {StopCode.NEEDS_GRAPH: 4},
}
"""The batch norms that stay: identity branches (only a graph merges them), norms of a value that others read too."""


@pytest.fixture(scope="module", params=ZOO, ids=lambda model: model.name)
def folded(request: pytest.FixtureRequest) -> tuple[ZooModel, Counted]:
    return request.param, count(request.param)


def test_every_batch_norm_is_folded_or_left_for_a_reason(folded: tuple[ZooModel, Counted]) -> None:
    model, found = folded
    plan = found.result.plan
    assert found.error < 1e-10
    left = dict.fromkeys(LEFT.get(model.name, {}), 0)
    for entry in plan.left:
        left[entry.code] = left.get(entry.code, 0) + 1
    assert left == LEFT.get(model.name, {})
    assert plan.batch_norms == found.modules
    assert plan.batch_norms_left == found.left
    unreached = LEFT.get(model.name, {}).get(StopCode.NOT_REACHED, 0)
    assert found.left_by_fx is None or found.left - unreached <= found.left_by_fx


def test_a_folded_state_dict_loads_into_a_fresh_module(folded: tuple[ZooModel, Counted], tmp_path: Path) -> None:
    model, found = folded
    found.result.save(tmp_path / "folded.safetensors")
    fresh = model.build()[0].double()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    loaded = bnfold.load_folded(fresh, tmp_path / "folded.safetensors")
    for ours, wanted in zip(outputs(loaded, found.inputs), outputs(found.result.model, found.inputs), strict=True):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("model", ZOO[::6], ids=lambda model: model.name)
def test_float32_weights_are_as_good_as_the_original_ones(model: ZooModel) -> None:
    module, inputs = model.build()
    reference = evaluated(module, inputs)
    folded = bnfold.fold(module, inputs).model
    noise = sorted(distance(evaluated(perturbed(module, seed), inputs), reference) for seed in range(4))
    assert distance(evaluated(folded, inputs), reference) <= 4 * (noise[1] + noise[2]) / 2
    assert batch_norms(folded) <= batch_norms(module)


def evaluated(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """What a module computes in float64."""
    return outputs(copy.deepcopy(module).double(), tuple(map(wide, inputs)))


def perturbed(module: nn.Module, seed: int) -> nn.Module:
    """The module with each parameter moved by -1, 0 or 1 unit in the last place."""
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in [*moved.parameters(), *moved.buffers()]:
            if tensor.is_floating_point():
                steps = torch.randint(0, 4, tensor.shape, generator=generator)
                up, down = (
                    torch.nextafter(tensor, torch.full_like(tensor, limit)) for limit in (torch.inf, -torch.inf)
                )
                tensor.copy_(torch.where(steps == 0, up, torch.where(steps == 1, down, tensor)))
    return moved
