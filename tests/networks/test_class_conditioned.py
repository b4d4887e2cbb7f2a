"""Class-conditioned denoisers and the classifier of noisy images: sizes of the published ones, and soft labels."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch.func import jvp

from shared_components.errors import InputError
from shared_components.networks.class_conditioned import ClassConditionedADM, ClassConditionedDenoiser
from shared_components.networks.class_embedding import SoftClassEmbedding
from shared_components.networks.encoder_classifier import EncoderClassifier
from shared_components.networks.medsegdiff_unet import count_parameters

AT_128 = {"channel_mult": (1, 1, 2, 3, 4), "num_res_blocks": 3, "attention_factors": (8, 16), "num_heads": 4}
AT_64 = {**AT_128, "channel_mult": (1, 2, 3, 4), "attention_factors": (4, 8)}
AT_256 = {**AT_128, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_factors": (16, 32)}
AT_224 = {**AT_128, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_factors": ()}
CONDITIONAL = {"learned_variance": True, "num_embeddings": 1000}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"in_channels": 3, "num_classes": 0, **AT_224}, 149_582_851),
        ({"in_channels": 3, **CONDITIONAL, **AT_224}, 150_098_310),
        ({"in_channels": 3, **CONDITIONAL, **AT_224, "channels": 192}, 337_226_310),
        ({"num_classes": 0, **AT_128}, 125_062_529),
        ({**CONDITIONAL, **AT_128}, 125_575_682),
        ({"learned_variance": True, **AT_128}, 125_064_706),
        ({**CONDITIONAL, **AT_64}, 121_569_026),
        ({**CONDITIONAL, **AT_64, "channels": 192}, 273_038_978),
        ({**CONDITIONAL, **AT_256}, 164_814_466),
    ],
)
def test_parameters_of_the_published_networks(options, expected):
    assert count_parameters(lambda: ClassConditionedADM(**options)) == expected


@pytest.mark.parametrize(
    ("size", "channel_mult", "factors", "expected"),
    [
        (64, (1, 2, 3, 4), (2, 4, 8), 40_774_277),
        (128, (1, 1, 2, 3, 4), (4, 8, 16), 42_055_301),
        (256, (1, 1, 2, 2, 4, 4), (8, 16, 32), 53_583_621),
    ],
)
def test_parameters_of_the_published_classifiers(size, channel_mult, factors, expected):
    options = {"num_classes": 5, "image_size": size, "channel_mult": channel_mult, "attention_factors": factors}
    assert count_parameters(lambda: EncoderClassifier(**options)) == expected


def test_parameters_of_monais_network_in_the_same_layout():
    options = {"channels": (128, 128, 256, 384, 512), "attention_levels": (False, False, False, True, True)}
    options.update({"num_res_blocks": 3, "num_head_channels": 64, "learned_variance": True})
    assert count_parameters(lambda: ClassConditionedDenoiser(**options)) == 119_483_266


def small(kind: str, **options):
    torch.manual_seed(0)
    if kind == "monai":
        made = ClassConditionedDenoiser(
            channels=(32, 64), attention_levels=(False, True), num_res_blocks=1, num_head_channels=32, **options
        )
    else:
        made = ClassConditionedADM(
            channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_factors=(2,), **options
        )
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return made.eval()


@pytest.mark.parametrize("kind", ["monai", "adm"])
def test_labels_are_one_hot_weights_and_mixtures_lie_between(kind):
    network = small(kind)
    noisy, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        labels = network(noisy, timesteps, class_weights=torch.tensor([1, 0]))
        weights = network(noisy, timesteps, class_weights=torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        mixed = network(noisy, timesteps, class_weights=torch.tensor([[0.05, 0.95]] * 2))
        derivative = jvp(
            lambda w: network(noisy, timesteps, class_weights=w),
            (torch.tensor([[0.0, 1.0]] * 2),),
            (torch.tensor([[-1.0, 1.0]] * 2),),
        )[1]
    assert torch.equal(labels, weights)
    assert not torch.allclose(mixed, labels, atol=1e-4) and derivative.abs().max() > 0


def test_the_embedding_is_the_weighted_sum_of_rows():
    table = SoftClassEmbedding(1000, 16)
    expected = 0.05 * table.weight[0] + 0.95 * table.weight[1]
    assert torch.allclose(table(torch.tensor([[0.05, 0.95]]))[0], expected, atol=1e-6)
    for label in (0, 1, 999):
        weights = torch.nn.functional.one_hot(torch.tensor([label]), 1000).float()
        assert torch.equal(table(torch.tensor([label])), table(weights))
    with pytest.raises(ValueError, match="3 class weights for 2"):
        SoftClassEmbedding(2, 4)(torch.ones(1, 3))
    with pytest.raises(ValueError, match="whole numbers"):
        table(torch.tensor([0.5]))


@pytest.mark.parametrize("kind", ["monai", "adm"])
def test_the_time_scale_is_the_networks_own(kind):
    noisy, weights = torch.randn(1, 1, 8, 8), torch.tensor([[0.0, 1.0]])
    scaled, plain = small(kind, timestep_scale=0.25), small(kind)
    with torch.no_grad():
        first = scaled(noisy, torch.tensor([399]), class_weights=weights)
        second = plain(noisy, torch.tensor([99.75]), class_weights=weights)
    assert torch.equal(first, second)


def test_a_new_network_with_variance_returns_zeros():
    for network in (
        ClassConditionedDenoiser(
            channels=(32, 32), attention_levels=(False, False), num_res_blocks=1, learned_variance=True
        ),
        ClassConditionedADM(
            channels=32, channel_mult=(1, 1), num_res_blocks=1, attention_factors=(), learned_variance=True
        ),
    ):
        output = network(torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), class_weights=torch.eye(2))
        assert output.shape == (2, 2, 8, 8) and output.abs().max() == 0


def test_the_sinusoid():
    found = get_timestep_embedding(torch.tensor([0, 1, 399]), 8)
    expected = [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [0.5403023, 0.9950042, 0.99995, 0.9999995, 0.8414710, 0.09983341, 0.009999833, 0.0009999998],
        [-0.9998428, -0.5892171, -0.6611788, 0.9214500, -0.01773207, 0.8079748, -0.7502283, 0.3884971],
    ]
    assert torch.allclose(found, torch.tensor(expected), atol=2e-5)


def test_classes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"class_weights: expected \(B, 2\), found none"):
        small("monai")(torch.zeros(1, 1, 8, 8), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"class_weights: expected none, found a tensor \(1, 2\)"):
        small("adm", num_classes=0)(torch.zeros(1, 1, 8, 8), torch.tensor([0]), class_weights=torch.ones(1, 2))
    with pytest.raises(InputError, match="num_classes is 0; .* null_class"):
        ClassConditionedDenoiser(num_classes=0, null_class=True)
    with pytest.raises(InputError, match="num_embeddings is 2; expected at least 3"):
        ClassConditionedADM(num_embeddings=2, null_class=True)


def classifier(**options) -> EncoderClassifier:
    torch.manual_seed(0)
    defaults = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_factors": (2,)}
    made = EncoderClassifier(image_size=8, num_head_channels=32, **{**defaults, **options})
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return made


def test_the_classifier_hears_the_timestep_and_has_two_heads():
    noisy = torch.randn(2, 1, 8, 8)
    for pool in ("attention", "average"):
        network = classifier(pool=pool, num_classes=3)
        first, second = (network(noisy, torch.full((2,), t)) for t in (0, 900))
        assert first.shape == (2, 3) and (first - second).abs().max() > 1e-4
    assert classifier(pool="average")(torch.randn(1, 1, 12, 20), torch.zeros(1)).shape == (1, 2)
    with pytest.raises(ValueError, match="24 positions at the head, the table 16"):
        classifier()(torch.randn(1, 1, 8, 12), torch.zeros(1))
    with pytest.raises(InputError, match="pool must be one of attention, average, not 'max'"):
        classifier(pool="max")
    with pytest.raises(InputError, match="image_size is 9; expected a multiple of 2"):
        EncoderClassifier(image_size=9, channel_mult=(1, 1))


def test_the_attention_pool_is_softmax_attention_of_the_mean():
    pool = classifier().head
    tokens = torch.randn(1, 64, 2, 2)
    pool.positional_embedding.data = torch.randn(64, 5)
    sequence = torch.cat([tokens.flatten(2).mean(2, keepdim=True), tokens.flatten(2)], 2) + pool.positional_embedding
    q, k, v = pool.query_key_value(sequence)[0].chunk(3)
    heads = []
    for start in (0, 32):
        part = slice(start, start + 32)
        share = ((q[part, :1] * k[part]).sum(0) / 32**0.5).softmax(0)
        heads.append((v[part] * share).sum(1))
    expected = pool.output(torch.cat(heads)[None, :, None])[0, :, 0]
    assert torch.allclose(pool(tokens)[0], expected, atol=1e-5)
