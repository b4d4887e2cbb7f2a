"""A whole run of CDM on small synthetic images: it localises, with the stated sign, and averaging draws pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from shared_components.diffusion.weak_segmenter import WeakSegmenter
from shared_components.ensembling.uncertainty import error_detection_auroc
from shared_components.networks.class_conditioned import ClassConditionedADM
from tests.diffusion.class_stubs import scheduler

SIZE, STEPS, BATCH = 24, 1500, 8


def toy_images(seed: int, count: int, positive: bool | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Textured discs; half of them, or all, hold a small bright disc. Images in [-1, 1], masks, labels."""
    r, n = np.random.default_rng(seed), SIZE
    yy, xx = np.mgrid[:n, :n]
    images, masks, labels = [], [], []
    for _ in range(count):
        texture = gaussian_filter(r.normal(size=(n, n)), 2.5)
        brain = (yy - n / 2 + 0.5) ** 2 + (xx - n / 2 + 0.5) ** 2 <= (0.44 * n) ** 2
        image, mask = brain * (0.4 + 0.06 * texture / texture.std()), np.zeros((n, n), bool)
        label = r.random() < 0.5 if positive is None else positive
        if label:
            radius, angle = r.uniform(0.08, 0.16) * n, r.uniform(0, 2 * np.pi)
            distance = r.uniform(0, 0.44 * n - radius - 1)
            cy, cx = n / 2 - 0.5 + distance * np.sin(angle), n / 2 - 0.5 + distance * np.cos(angle)
            mask = (yy - cy) ** 2 + (xx - cx) ** 2 <= radius**2
            image = image + 0.35 * mask
        image = np.clip(gaussian_filter(image, 0.6) + 0.01 * r.normal(size=(n, n)), 0, 1)
        images.append(2 * image - 1)
        masks.append(mask)
        labels.append(int(label))
    stacked = torch.tensor(np.stack(images), dtype=torch.float32)[:, None]
    return stacked, torch.tensor(np.stack(masks)), torch.tensor(labels)


def trained_denoiser() -> ClassConditionedADM:
    torch.manual_seed(0)
    options = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_factors": (), "num_heads": 2}
    network = ClassConditionedADM(**options)
    average = ClassConditionedADM(**options)
    average.load_state_dict(network.state_dict())
    images, _, labels = toy_images(1, 2000)
    noising, optimizer = scheduler(1000), torch.optim.AdamW(network.parameters(), 5e-4)
    for _ in range(STEPS):
        chosen = torch.randint(len(images), (BATCH,))
        clean, timesteps = images[chosen], torch.randint(1000, (BATCH,))
        noise = torch.randn_like(clean)
        noisy = noising.add_noise(clean, noise, timesteps)
        loss = ((network(noisy, timesteps, class_weights=labels[chosen]) - noise) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 0.01)
    return average.eval()


def scores(denoiser: ClassConditionedADM, **options) -> tuple[float, float]:
    """Mean Dice after Otsu's threshold, and mean area under the ROC curve of the map, on 16 positive images."""
    images, masks, _ = toy_images(777, 16, positive=True)
    level = float(scheduler(1000).alphas_cumprod[200])
    defaults = {"signal_level": level, "num_samples": 8, "gated": False}
    network = WeakSegmenter(denoiser, scheduler(1000), **{**defaults, **options}).eval()
    with torch.no_grad():
        found = network.describe(images)
    marked = found["pred"].argmax(1) == 1
    overlap = (marked & masks).flatten(1).sum(1)
    dice = (2 * overlap + 1e-5) / (marked.flatten(1).sum(1) + masks.flatten(1).sum(1) + 1e-5)
    areas = [error_detection_auroc(one[0], mask) for mask, one in zip(masks, found["saliency"])]
    return float(dice.mean()), float(np.mean(areas))


@pytest.mark.slow
def test_a_short_training_localises():
    denoiser = trained_denoiser()
    found = {
        "derivative": scores(denoiser),
        "label switch": scores(denoiser, tau=0.0),
        "one draw": scores(denoiser, num_samples=1),
        "exact": scores(denoiser, mode="jvp"),
        "dark": scores(denoiser, signal_level=0.007),
    }
    assert found["derivative"][0] > 0.6 and found["derivative"][1] > 0.95, found
    assert found["label switch"][0] > 0.7, found
    assert found["one draw"][0] < found["derivative"][0], found
    assert found["exact"][1] > 0.9, found
    assert found["dark"][0] < 0.4, found  # hardly any of the image is left in the noise
