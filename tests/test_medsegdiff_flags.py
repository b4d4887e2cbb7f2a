"""The published flags of MedSegDiff: each has a key, that key is documented, and it does something."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer
from monai.handlers import TensorBoardStatsHandler

from shared_components.networks.medsegdiff_unet import count_parameters

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "medsegdiff.md"
FLAGS = (
    "image_size num_channels num_res_blocks channel_mult num_heads num_heads_upsample num_head_channels "
    "attention_resolutions class_cond learn_sigma use_scale_shift_norm resblock_updown dropout "
    "use_new_attention_order use_checkpoint diffusion_steps noise_schedule timestep_respacing rescale_timesteps "
    "rescale_learned_sigmas predict_xstart use_kl dpm_solver use_ddim clip_denoised lr batch_size microbatch "
    "weight_decay lr_anneal_steps ema_rate schedule_sampler log_interval save_interval resume_checkpoint use_fp16 "
    "fp16_scale_growth multi_gpu gpu_dev num_ensemble num_samples debug data_name data_dir out_dir model_path version"
).split()
TINY = {
    "denoiser#channels": 32, "denoiser#channel_mult": [1, 1, 1, 1], "denoiser#num_res_blocks": 1,
    "denoiser#attention_factors": [8], "image_size": [32, 32], "num_inference_steps": 4, "device": "cpu",
}  # fmt: skip
LINEAR = {
    "_target_": "torch.optim.lr_scheduler.LinearLR", "optimizer": "@optimizer",
    "start_factor": 1.0, "end_factor": 0.0, "total_iters": 10,
}  # fmt: skip
SECOND_MOMENT = "shared_components.diffusion.timestep_samplers.LossSecondMomentTimestepSampler"
# the override, and what it must have changed, of a parser and of its network
OVERRIDES: dict[str, tuple[dict[str, Any], Any]] = {
    "image_size": ({"image_size": [48, 48]}, lambda p, n: p["image_size"][0] == 48),
    "num_channels": ({"denoiser#channels": 64}, lambda p, n: n.denoiser.unet.stem.out_channels == 64),
    "num_res_blocks": ({"denoiser#num_res_blocks": 2}, lambda p, n: n.denoiser.tap_stride == 3),
    "num_heads": ({"denoiser#num_heads": 4}, lambda p, n: "num_heads': 4" in str(p["denoiser"])),
    "class_cond": ({"num_classes": 2}, lambda p, n: any(m.num_embeddings == 2 for m in embeddings(n))),
    "learn_sigma": ({"learned_variance": False}, lambda p, n: not n.denoiser.learned_variance),
    "variance_type": (
        {"learned_variance": False, "variance_type": "fixed_small"},
        lambda p, n: p.get_parsed_content("prediction_loss").variance_type == "fixed_small",
    ),
    "use_scale_shift_norm": ({"denoiser#use_scale_shift_norm": True}, None),
    "resblock_updown": ({"denoiser#resblock_updown": True}, None),
    "dropout": ({"denoiser#dropout": 0.1, "denoiser#highway_dropout": 0.0}, None),
    "use_new_attention_order": ({"denoiser#use_new_attention_order": True}, None),
    "use_checkpoint": ({"denoiser#use_checkpoint": True}, None),
    "diffusion_steps": ({"num_train_timesteps": 100}, lambda p, n: len(n.schedule) == 100),
    "noise_schedule": ({"schedule": "cosine_double"}, lambda p, n: abs(n.schedule[499] - 0.49384) < 1e-4),
    "timestep_respacing": (
        {"spacing": "ddim50", "num_inference_steps": "$None"},
        lambda p, n: n.process.timesteps.tolist() == list(range(980, -1, -20)),
    ),
    "rescale_timesteps": (
        {"denoiser#timestep_scale": "$1000 / @num_train_timesteps", "num_train_timesteps": 500},
        lambda p, n: n.denoiser.unet.time_embedding.timestep_scale == 2.0,
    ),
    "rescale_learned_sigmas": ({"prediction_loss#objective": "hybrid_rescaled"}, None),
    "use_kl": ({"prediction_loss#objective": "variational"}, None),
    "predict_xstart": ({"prediction_type": "sample"}, lambda p, n: n.process.prediction_type == "sample"),
    "use_ddim": ({"sampler": "ddim"}, lambda p, n: not n.process.stochastic),
    "dpm_solver": ({"sampler": "dpm_solver++", "spacing": "uniform"}, lambda p, n: n.process.multistep),
    "clip_denoised": ({"clip": "$None"}, lambda p, n: not n.process.clipped),
    "weight_decay": (
        {"optimizer#weight_decay": 0.1},
        lambda p, n: p.get_parsed_content("optimizer").param_groups[0]["weight_decay"] == 0.1,
    ),
    "lr_anneal_steps": (
        {"lr_scheduler": LINEAR},
        lambda p, n: isinstance(p.get_parsed_content("lr_scheduler"), torch.optim.lr_scheduler.LinearLR),
    ),
    "ema_rate": ({"ema#momentum": 0.01}, lambda p, n: p.get_parsed_content("ema").momentum == 0.01),
    "schedule_sampler": (
        {"timestep_sampler#_target_": SECOND_MOMENT},
        lambda p, n: hasattr(p.get_parsed_content("timestep_sampler"), "probabilities"),
    ),
}


def embeddings(network: torch.nn.Module) -> list[torch.nn.Embedding]:
    return [module for module in network.modules() if isinstance(module, torch.nn.Embedding)]


def paper(*more: str, bundle: str = "medsegdiff_isic", **overrides: Any) -> ConfigParser:
    names = ("train", "paper", *more)
    parser = ConfigParser()
    parser.read_config([str(REPOSITORY / "bundles" / bundle / "configs" / f"{name}.json") for name in names])
    parser.update(overrides)
    return parser


def test_the_page_has_every_flag_and_its_key() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [flag for flag in FLAGS if f"`{flag}`" not in page] == []
    keys = {key for overrides, _ in OVERRIDES.values() for key in overrides}
    assert [key for key in keys if key not in page] == []


def test_the_page_names_files_that_are_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for bundle in ("medsegdiff_isic", "medsegdiff_v2_isic", "medsegdiff_brats"):
        names = {part.split("'")[0].split()[0] for part in page.split(f"bundles/{bundle}/configs/")[1:]}
        names = {name.split(".json")[0] for name in names}
        assert [name for name in names if not (REPOSITORY / f"bundles/{bundle}/configs/{name}.json").is_file()] == []


@pytest.mark.parametrize("flag", OVERRIDES)
def test_a_flags_key_does_what_the_flag_says(flag: str) -> None:
    overrides, changed = OVERRIDES[flag]
    parser = paper(**{**TINY, **overrides})
    network = parser.get_parsed_content("network_def")
    parser.get_parsed_content("prepare_batch")
    loss = parser.get_parsed_content("loss_function")
    channels = 2 + int(network.denoiser.learned_variance)
    output, maps = torch.rand(2, channels, 32, 32), torch.rand(2, 1, 32, 32).round()
    weights = torch.ones(2)
    targets = {"target": maps, "clean": maps, "presence": maps, "timesteps": torch.tensor([3, 0]), "weights": weights}
    assert torch.isfinite(loss(output, targets))
    assert changed is None or changed(parser, network)


@pytest.mark.parametrize("bundle", ["medsegdiff_isic", "medsegdiff_v2_isic", "medsegdiff_brats"])
def test_without_a_learned_variance_beta_is_sampled_and_trained(bundle: str) -> None:
    tiny = {**TINY, "denoiser#highway_channels": 4, "num_inference_steps": 1000, "validation_steps": 1000}
    parser = paper(bundle=bundle, **tiny, learned_variance=False)
    parser["validate"]["network"]["denoiser"] = "@denoiser"  # there, the average's
    beta = parser.get_parsed_content("scheduler").betas.double()
    for key in ("network_def", "validate#network"):
        process = parser.get_parsed_content(key).process
        assert torch.allclose(process.coefficients[:-1, 2].double() ** 2, beta.flip(0)[:-1], rtol=1e-5), key
        assert process.coefficients[-1, 2] == 0
    assert parser.get_parsed_content("prediction_loss").variance_type == "fixed_large"
    parser = paper(bundle=bundle, **tiny, learned_variance=False, variance_type="fixed_small")
    small = parser.get_parsed_content("network_def").process.coefficients[-2, 2].double() ** 2
    assert small < 0.6 * beta[1], "the posterior's is smaller at the cleanest timesteps"


def test_the_keys_of_the_trainer_and_its_handlers() -> None:
    assert "accumulation_steps" in inspect.signature(SupervisedTrainer.__init__).parameters
    handler = paper()["train"]["handlers"][7]  # the page names it by its number
    assert handler["_target_"] == TensorBoardStatsHandler.__name__ and "log_dir" in handler
    assert "iteration_log" in inspect.signature(TensorBoardStatsHandler.__init__).parameters


@pytest.mark.parametrize(
    ("bundle", "parameters"), [("medsegdiff_isic", 130_774_086), ("medsegdiff_v2_isic", 129_400_450)]
)
def test_the_presets_are_the_published_networks(bundle: str, parameters: int) -> None:
    parser = paper(bundle=bundle)
    assert count_parameters(lambda: parser.get_parsed_content("denoiser")) == parameters
    scheduler = parser.get_parsed_content("scheduler")
    assert abs(float(scheduler.alphas_cumprod[999]) - 4.035829765e-05) < 1e-9
    assert parser["ema"]["momentum"] == 0.0001 and parser["learning_rate"] == 0.0001 and parser["batch_size"] == 8


def test_a_step_of_the_tumour_preset_has_8_slices() -> None:
    parser = paper(bundle="medsegdiff_brats")
    crop = parser["random_transforms"][1]
    assert crop["_target_"] == "RandCropByPosNegLabeld" and crop["num_samples"] == "@slices_per_case"
    assert parser["batch_size"] * parser["slices_per_case"] == 8


@pytest.mark.parametrize(
    ("bundle", "overlay", "name"),
    [
        ("medsegdiff_isic", "dual_encoder", "MedSegDiffV1Paper"),
        ("medsegdiff_v2_isic", "transformer", "MedSegDiffV2Paper"),
    ],
)
def test_the_papers_own_networks_segment(bundle: str, overlay: str, name: str) -> None:
    small = {"denoiser#channels": 32, "denoiser#channel_mult": [1, 1, 1, 1], "image_size": [32, 32]}
    parser = paper(overlay, bundle=bundle, **small, num_inference_steps=2, num_samples=2)
    if overlay == "transformer":
        parser.update({"denoiser#attention_factors": [8], "denoiser#highway_channels": 4})
    network = parser.get_parsed_content("network_def").eval()
    assert type(network.denoiser).__name__ == name
    with torch.no_grad():
        assert network(torch.rand(1, 3, 32, 40)).shape == (1, 2, 32, 40)


@pytest.mark.parametrize(
    ("bundle", "overlay"), [("medsegdiff_isic", "dual_encoder"), ("medsegdiff_v2_isic", "transformer")]
)
def test_the_papers_own_networks_are_told_the_class(bundle: str, overlay: str) -> None:
    denoiser = {"denoiser#channels": 32, "denoiser#channel_mult": [1, 1, 1, 1], "denoiser#use_checkpoint": True}
    parser = paper(overlay, bundle=bundle, **denoiser, image_size=[32, 32], num_classes=2)
    if overlay == "transformer":
        parser.update({"denoiser#attention_factors": [8], "denoiser#highway_channels": 4})
    network = parser.get_parsed_content("network_def")
    assert [embedding.num_embeddings for embedding in embeddings(network)] == [2]


def test_v1_and_v2_differ_in_the_network_and_its_members_alone() -> None:
    """Two bundles side by side must stay one recipe; how many members lose nothing is each network's own."""
    texts = []
    for bundle in ("medsegdiff_isic", "medsegdiff_v2_isic"):
        text = (REPOSITORY / "bundles" / bundle / "configs" / "train.json").read_text(encoding="utf-8")
        config = json.loads(text.replace(bundle, "NAME").replace("MedSegDiff-V2", "MedSegDiff"))
        denoiser, _ = config.pop("denoiser"), config.pop("num_samples")
        texts.append((config, {key: denoiser[key] for key in denoiser if key in ("channels", "channel_mult")}))
    assert texts[0] == texts[1]
