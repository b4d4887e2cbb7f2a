"""The shipped networks in bfloat16, the default where the processor calculates in it, on a processor of any kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.test_bundle_contract import BUNDLES, REPOSITORY, parser, read
from tests.zoo_procedure import input_shape


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(REPOSITORY)
    return request.param


def some_input(bundle: Path) -> torch.Tensor:
    """Blobs in the input's range, for networks that generate images a label map."""
    channels, *spatial = input_shape(bundle)
    low, high = read(bundle, "metadata")["network_data_format"]["inputs"]["image"]["value_range"] or (-1, 1)
    coarse = torch.rand(1, channels, *(2 for _ in spatial), generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, [max(2, 64 // size) * size for size in spatial[:2]] + spatial[2:])
    scaled = low + (high - low) * fine
    return scaled.round() if high > 1 else scaled


@pytest.mark.parametrize("gated", [True, False])
def test_bfloat16_gives_about_what_float32_gives(bundle: Path, gated: bool) -> None:
    override = {"device": "cpu", "num_inference_steps": 1, "num_samples": 2}
    if "gated" in read(bundle, "inference"):
        override["gated"] = gated
    elif not gated:
        pytest.skip(f"{bundle.name} has no gate")
    results = []
    for amp in (True, False):
        made = parser(bundle, "inference", **override, amp=amp)
        network = made.get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
        with torch.no_grad():
            results.append(network(some_input(bundle)))
    assert results[0].dtype == results[1].dtype == torch.float32
    assert torch.isfinite(results[0]).all() and (results[0] - results[1]).abs().mean() < 0.1
