"""Label maps as conditions: encodings, ablation and merging against the published figures."""

from __future__ import annotations

import pytest
import torch

from shared_components.diffusion.mask_encoding import MaskEncoding, delete_classes, draw_ablation
from shared_components.errors import InputError

FOUR = torch.tensor([0, 1, 2, 3]).reshape(1, 1, 1, 4)


def test_legacy_values_are_those_of_an_8_bit_file_divided_by_255() -> None:
    coded = MaskEncoding([1, 2, 3], "legacy255")(FOUR).flatten()
    assert torch.allclose(coded, torch.tensor([0, 0.0039215689, 0.0078431377, 0.011764706]), rtol=1e-5)
    every = torch.arange(256).reshape(1, 1, 16, 16)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        coded = (every / 255).to(dtype)
        assert torch.equal(
            (255 * coded).round().long() if dtype == torch.bfloat16 else (255 * coded).int().long(), every
        )


def test_a_channel_a_class_and_a_blank_map_is_zero_in_every_encoding() -> None:
    coded = MaskEncoding([1, 2, 3])(FOUR)
    assert torch.equal(coded[0, :, 0], torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    scaled = MaskEncoding([1, 2, 4], "scaled")(torch.tensor([0, 1, 2, 4]).reshape(1, 1, 1, 4)).flatten()
    assert torch.allclose(scaled, torch.tensor([0, 1 / 3, 2 / 3, 1.0]))
    for encoding, channels in (("onehot", 3), ("scaled", 1), ("legacy255", 1)):
        made = MaskEncoding([1, 2, 3], encoding)
        assert made.num_channels == channels
        assert torch.equal(made(torch.zeros(2, 1, 4, 4)), torch.zeros(2, channels, 4, 4))


def test_several_maps_of_an_image_are_encoded_one_by_one() -> None:
    maps = torch.cat([FOUR, FOUR.flip(3)], dim=1)
    made = MaskEncoding([1, 2, 3])
    assert torch.equal(made(maps), torch.cat([made(maps[:, :1]), made(maps[:, 1:])], dim=1))
    assert made(maps[..., None]).shape == (1, 6, 1, 4, 1)


def test_dropping_a_class_is_a_channel_of_zeros() -> None:
    made = MaskEncoding([1, 2, 3])
    dropped = torch.tensor([[True, True, False]])
    expected = made(FOUR) * torch.tensor([0.0, 0, 1]).reshape(1, 3, 1, 1)
    assert torch.equal(made(delete_classes(FOUR, dropped, made.label_values)), expected)


def test_ablation_draws_are_those_of_the_published_code() -> None:
    torch.manual_seed(0)
    found = [delete_classes(FOUR, draw_ablation(1, 3), [1, 2, 3]).flatten().tolist() for _ in range(3)]
    assert found == [[0, 0, 2, 0], [0, 0, 0, 3], [0, 0, 2, 0]]
    own = torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    assert draw_ablation(1, 3, generator=own).tolist() == [[True, False, True]]
    assert torch.equal(torch.get_rng_state(), state)  # explicit randomness touches no other


def test_the_law_of_ablation() -> None:
    lost = draw_ablation(4000, 3, generator=torch.Generator().manual_seed(1)).float()
    assert torch.allclose(lost.mean(dim=0), torch.full((3,), 0.5), atol=0.03)
    assert abs((lost.sum(dim=1) == 3).float().mean() - 0.125) < 0.02
    assert abs((lost.sum(dim=1) == 0).float().mean() - 0.125) < 0.02
    assert draw_ablation(5, 2, 0.0).sum() == 0 and draw_ablation(5, 2, 1.0).sum() == 10
    with pytest.raises(InputError, match="ablation must be a probability from 0 to 1, not 1.5"):
        draw_ablation(1, 1, 1.5)


def test_every_image_of_a_batch_has_its_own_ablation() -> None:
    labels = FOUR.expand(64, 1, 1, 4)
    left = delete_classes(labels, draw_ablation(64, 3, generator=torch.Generator().manual_seed(2)), [1, 2, 3])
    assert len({tuple(row) for row in left.flatten(1).tolist()}) == 8


def test_a_mask_of_0_and_255_is_not_ablated() -> None:
    mask = torch.tensor([0, 255]).reshape(1, 1, 1, 2)
    assert torch.equal(delete_classes(mask, torch.ones(1, 3, dtype=torch.bool), [1, 2, 3]), mask)


@pytest.mark.parametrize(
    ("values", "encoding", "part"),
    [([1], "one-hot", "onehot, scaled, legacy255"), ([], "onehot", "label_values"), ([1, 1], "onehot", "different"),
     ([0, 1], "onehot", "at least 1"), ([300], "legacy255", "up to 255")],
)  # fmt: skip
def test_mistakes_are_told(values: list[int], encoding: str, part: str) -> None:
    with pytest.raises(InputError, match=part):
        MaskEncoding(values, encoding)
