from __future__ import annotations

import pytest
import torch
from monai.networks.utils import one_hot

from shared_components.diffusion.label_coding import LabelCoding, unknown_voxels
from shared_components.errors import InputError

LABEL = torch.tensor([[0, 1, 2, 4], [2, 2, 0, 1]]).reshape(2, 1, 2, 2)
BRATS = [[1, 2, 4], [1, 4], [4]]  # whole tumour, tumour core, enhancing tumour


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(1, -1, 1, 1)


def test_classes_are_coded_as_by_one_hot():
    coding = LabelCoding([1, 2], "classes")
    label = LABEL.where(LABEL < 3, 0)
    assert torch.equal(coding.encode(label), 2 * one_hot(label, 3, dtype=torch.float32) - 1)
    assert coding.num_channels == coding.num_classes == 3


@pytest.mark.parametrize("coding", ["classes", "channels"])
@pytest.mark.parametrize("options", [{}, {"value_range": "01"}, {"inverted": True}])
def test_a_voxel_that_nobody_judged_is_half_present(coding, options):
    label = torch.tensor([0.0, 1.0, 2.0, -1.0]).reshape(1, 1, 2, 2)
    made = LabelCoding([1, 2], coding, **options)
    presence = made.presence(made.encode(label))
    assert (presence[0, :, 1, 1] == 0.5).all()
    assert unknown_voxels(presence).flatten().tolist() == [False, False, False, True]
    assert made.classes(label[0]).flatten().tolist() == [0, 1, 2, -1]


def test_classes_are_decoded_as_cdals_members_are():
    clean = 1.2 * torch.randn(2, 3, 4, 4)
    positive = ((clean.float() + 1) / 2).clamp(min=1e-6)
    expected = positive / positive.sum(dim=1, keepdim=True)
    assert torch.equal(LabelCoding([1, 2], "classes").decode(clean), expected)


@pytest.mark.parametrize("value_range, absent", [("01", 0.0), ("pm1", -1.0)])
def test_channels_are_structures_of_one_or_several_values(value_range, absent):
    coding = LabelCoding([[2, 4], 1], value_range=value_range)
    clean = coding.encode(LABEL.float())
    assert clean.dtype == torch.float32
    assert clean[0, :, 0, 1].tolist() == [absent, 1] and clean[0, :, 1, 1].tolist() == [1, absent]
    assert clean[0, :, 0, 0].tolist() == [absent, absent] and clean[0, :, 1, 0].tolist() == [1, absent]
    assert (coding.num_channels, coding.num_classes) == (2, 3)
    assert torch.equal(coding.presence(clean), LabelCoding([[2, 4], 1], value_range="01").encode(LABEL))


@pytest.mark.parametrize("value_range", ["01", "pm1"])
def test_background_wins_exactly_where_no_structure_reaches_a_half(value_range):
    coding = LabelCoding([1, 2, 3], value_range=value_range)
    half = torch.tensor(0.5)
    below, above = half.nextafter(torch.tensor(0.0)).item(), half.nextafter(torch.tensor(1.0)).item()
    for highest, winner in ((0.2, 0), (below, 0), (0.5, 2), (above, 2), (1.0, 2), (1.7, 2)):
        assert coding.probabilities(column(0.1, highest, 0.2)).argmax(dim=1).item() == winner, highest
    clean = torch.rand(1, 3, 64, 64) if value_range == "01" else 2 * torch.rand(1, 3, 64, 64) - 1
    highest, index = coding.presence(clean).max(dim=1)
    assert torch.equal(coding.decode(clean).argmax(dim=1), torch.where(highest < 0.5, 0, index + 1))


def test_probabilities_of_channels_by_hand():
    coding = LabelCoding([1, 2], value_range="01")
    assert coding.decode(column(0.6, 0.2))[0, :, 0, 0].tolist() == pytest.approx([1 / 3, 0.5, 1 / 6])
    assert coding.decode(column(-0.3, 0.0))[0, :, 0, 0].tolist() == [1, 0, 0]
    assert coding.decode(column(1.4, 1.0))[0, :, 0, 0].tolist() == pytest.approx([0, 0.5, 0.5])


def test_nested_regions():
    coding = LabelCoding(BRATS, "nested", "01")
    clean = coding.encode(LABEL)
    assert clean[0, :, 0, 0].tolist() == [0, 0, 0] and clean[0, :, 0, 1].tolist() == [1, 1, 0]
    assert clean[0, :, 1, 0].tolist() == [1, 0, 0] and clean[0, :, 1, 1].tolist() == [1, 1, 1]
    # background, oedema, non-enhancing core, enhancing tumour
    assert coding.decode(column(0.9, 0.6, 0.5))[0, :, 0, 0].tolist() == pytest.approx([0.1, 0.3, 0.1, 0.5])
    # a core outside the whole tumour is cut to it
    assert coding.decode(column(0.4, 0.8, 0.1))[0, :, 0, 0].tolist() == pytest.approx([0.6, 0.0, 0.3, 0.1])
    assert coding.decode(clean)[0, :, 1, 1].tolist() == [0, 0, 0, 1]


CODINGS = [([1, 2], "classes"), ([1, [2, 4]], "channels"), (BRATS, "nested")]


@pytest.mark.parametrize("value_range", ["01", "pm1"])
@pytest.mark.parametrize("label_values, coding", CODINGS)
def test_probabilities_sum_to_one_and_decode_what_was_encoded(label_values, coding, value_range):
    made = LabelCoding(label_values, coding, value_range)
    probabilities = made(2 * torch.randn(2, made.num_channels, 5, 5))
    assert probabilities.shape == (2, made.num_classes, 5, 5) and probabilities.dtype == torch.float32
    assert probabilities.min() >= 0
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2, 5, 5))
    label = LABEL.where(LABEL < 3, 0) if coding == "classes" else LABEL
    winners = made(made.encode(label)).argmax(dim=1, keepdim=True)
    expected = label.clone()
    for value, winner in {"classes": {}, "channels": {4: 2}, "nested": {1: 2, 2: 1, 4: 3}}[coding].items():
        expected[label == value] = winner
    assert torch.equal(winners, expected)


@pytest.mark.parametrize("label_values, coding", CODINGS)
def test_decoding_scripts(label_values, coding):
    made = LabelCoding(label_values, coding)
    scripted, clean = torch.jit.script(made), torch.randn(2, made.num_channels, 5, 5)
    assert torch.equal(scripted(clean), made(clean))
    assert torch.equal(scripted.probabilities(scripted.presence(clean)), made(clean))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1], "onehot"), "classes, channels, nested, not 'onehot'"),
        (([1], "channels", "255"), "01, pm1, not '255'"),
        (([],), "every structure"),
        (([[1], []],), "every structure"),
        (([[1, 2], 2],), "several structures"),
        (([[1, 2], [4]], "nested"), r"\[1, 2\] does not \[4\]"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        LabelCoding(*arguments)


@pytest.mark.parametrize(
    ("label_values", "coding", "expected"),
    [
        ([[1, 2, 3, 4]], "channels", [0, 1, 1, 1, 1]),
        ([[4], [1, 3]], "channels", [0, 2, 0, 2, 1]),
        ([[1, 2, 3, 4], [1, 3, 4], [4]], "nested", [0, 2, 1, 2, 3]),
        ([1, 2, 3, 4], "classes", [0, 1, 2, 3, 4]),
    ],
)
@pytest.mark.parametrize("value_range", ["01", "pm1"])
def test_classes_of_label_values(label_values, coding, expected, value_range):
    label = torch.arange(5, dtype=torch.float32).reshape(1, 5, 1)
    found = LabelCoding(label_values, coding, value_range).classes(label)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == expected


def test_inverted_codings_are_the_negatives():
    label = torch.tensor([0, 1, 1, 0]).reshape(1, 1, 2, 2)
    for value_range, absent in (("pm1", 1.0), ("01", 1.0)):
        plain, inverted = (LabelCoding([1], value_range=value_range, inverted=flag) for flag in (False, True))
        clean = inverted.encode(label)
        assert torch.equal(clean, -plain.encode(label) if value_range == "pm1" else 1 - plain.encode(label))
        assert clean[0, 0, 0, 0] == absent
        assert torch.equal(inverted.decode(clean), plain.decode(plain.encode(label)))
    estimate = torch.tensor([0.4, -0.4]).reshape(1, 1, 1, 2)
    assert LabelCoding([1], inverted=True).decode(estimate).argmax(dim=1).flatten().tolist() == [0, 1]
