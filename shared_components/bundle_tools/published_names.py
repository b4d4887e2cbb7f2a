"""Tensors of published checkpoints, compared with and converted to those of our networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from shared_components.bundle_tools import (
    published_adaptdiff,
    published_cdal,
    published_cdm,
    published_diffusers,
    published_medsegdiff,
)
from shared_components.errors import InputError


@dataclass(frozen=True)
class PublishedForm:
    """How a method's published code saves the tensors of one of our networks.

    Attributes:
        title: what such a file is called.
        names: returns the published name of every tensor of a network that files can hold: ours to theirs.
        is_transposed: returns whether the tensor of a published name is a matrix [in, out]; ours are [out, in].
        never_saved: beginnings of our names of the tensors that the published code uses but saves in no file.
        saved_later: beginnings of the published names of tensors that early revisions of the code do not save; a file
            has all of them or none.
        assumed: returns what a file's tensors do not show and is taken from the network, in words.
        check_config: (content, network, file name) sees that a ``config.json`` beside the file describes the network.
    """

    title: str
    names: Callable[[nn.Module], dict[str, str]]
    is_transposed: Callable[[str], bool] = lambda _: False
    never_saved: tuple[str, ...] = ()
    saved_later: tuple[str, ...] = ()
    assumed: Callable[[nn.Module], str] | None = None
    check_config: Callable[[Mapping[str, Any], nn.Module, str], None] | None = None

    def to_our_layout(self, tensor: Tensor, published: str) -> Tensor:
        """Transpose a published matrix that needs it; the same step leads back."""
        return tensor.T if self.is_transposed(published) else tensor


# By the class name of a network or a part of one: networks are not imported here.
PUBLISHED_FORMS = {
    "CDALGenerator": PublishedForm(
        "cDAL generator", published_cdal.cdal_generator_names, published_cdal.is_attention_map
    ),
    "MONAIDenoiser": PublishedForm(
        "segmentation-guided diffusion (diffusers.UNet2DModel)",
        published_diffusers.unet_names,
        check_config=published_diffusers.check_config,
    ),
    "MedSegDiffV1": PublishedForm(
        "MedSegDiff V1",
        published_medsegdiff.medsegdiff_names,
        never_saved=published_medsegdiff.NEVER_SAVED,
        saved_later=published_medsegdiff.SAVED_LATER,
        assumed=published_medsegdiff.assumed,
    ),
    "MedSegDiffV2": PublishedForm(
        "MedSegDiff V2", published_medsegdiff.medsegdiff_names, assumed=published_medsegdiff.assumed
    ),
    "SpadeDenoiser": PublishedForm("AdaptDiff denoiser", published_adaptdiff.denoiser_names),
    "ResidualUNet": PublishedForm("AdaptDiff segmenter", published_adaptdiff.segmenter_names),
    "ClassConditionedADM": PublishedForm("CDM U-Net", published_cdm.unet_names),
    "EncoderClassifier": PublishedForm("CDM classifier", published_cdm.classifier_names),
}


@dataclass(frozen=True)
class Comparison:
    """What is the matter with a checkpoint, seen from a network.

    Attributes:
        unsaved: our names of the tensors that files of the checkpoint's revision cannot hold.
        differences: everything else that does not fit: a phrase, and the names it is true of. Empty: it fits.
    """

    unsaved: tuple[str, ...]
    differences: dict[str, list[str]]

    @property
    def num_differences(self) -> int:
        return sum(len(names) for names in self.differences.values())

    def __str__(self) -> str:
        return "; ".join(f"{len(names)} {phrase}: {', '.join(names)}" for phrase, names in self.differences.items())


def find_form(denoiser: nn.Module) -> PublishedForm | None:
    """Return the published form of a network, or ``None`` if it has none."""
    return PUBLISHED_FORMS.get(type(denoiser).__name__)


def compare(source_tensors: Mapping[str, Tensor], denoiser: nn.Module) -> Comparison:
    """Compare names, shapes and types of a checkpoint with the published form of ``denoiser``.

    Args:
        source_tensors: the published state dict; names may all begin with ``module.``.
        denoiser: a network that has a published form.
    """
    form, source, state = find_form(denoiser), _without_prefix(source_tensors), denoiser.state_dict()
    names = form.names(denoiser)
    unnamed = state.keys() - names.keys()
    unsaved = {name for name in unnamed if name.startswith(form.never_saved)}
    later = {name for name, published in names.items() if published.startswith(form.saved_later)}
    if not any(names[name] in source for name in later):
        unsaved |= later
    expected = {published: state[name] for name, published in names.items() if name not in unsaved}
    differences = {
        "missing": expected.keys() - source.keys(),
        "surplus": source.keys() - expected.keys(),
        "of another shape or type": _unfit(source, expected, form),
        "of the network that published files never hold": unnamed - unsaved,
    }
    return Comparison(
        tuple(name for name in state if name in unsaved),
        {phrase: sorted(found) for phrase, found in differences.items() if found},
    )


def convert(source_tensors: Mapping[str, Tensor], denoiser: nn.Module) -> dict[str, Tensor]:
    """Give the tensors of a published checkpoint the names, layout and types of those of ``denoiser``.

    Args:
        source_tensors: the published state dict; names may all begin with ``module.``.
        denoiser: the network in the checkpoint's configuration; it is not changed.

    Returns:
        A state dict for ``denoiser``. Tensors that the checkpoint's revision cannot hold (`Comparison.unsaved`) have
        the values they have in ``denoiser``.

    Raises:
        InputError: tensors are missing, surplus or of another shape; all of them are listed.
    """
    form, comparison = find_form(denoiser), compare(source_tensors, denoiser)
    if comparison.differences:
        raise InputError(f"not the expected {form.title} checkpoint: {comparison}")
    source, names = _without_prefix(source_tensors), form.names(denoiser)
    converted = {}
    for name, ours in denoiser.state_dict().items():
        is_saved = name not in comparison.unsaved
        found = form.to_our_layout(source[names[name]], names[name]) if is_saved else ours
        converted[name] = found.to(ours.dtype, copy=True).contiguous()
    return converted


def _unfit(source: Mapping[str, Tensor], expected: Mapping[str, Tensor], form: PublishedForm) -> list[str]:
    """Say which tensors have another shape or are whole numbers where fractions are expected, or the reverse."""
    unfit = []
    for name in expected.keys() & source.keys():
        ours, found = form.to_our_layout(expected[name], name), source[name]
        kinds = [(tensor.is_floating_point(), tensor.is_complex()) for tensor in (ours, found)]
        if found.shape != ours.shape or kinds[0] != kinds[1]:
            unfit.append(f"{name} {tuple(found.shape)} {found.dtype}, expected {tuple(ours.shape)} {ours.dtype}")
    return unfit


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefix that data-parallel training put before every name."""
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
