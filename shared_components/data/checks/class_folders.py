"""Checking images with image-level labels: counts, outlines that are missing or contradict the label."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from shared_components.data.checks.cases import AFFINE_TOLERANCE_MM, check_case, check_folder, usual_spatial_dims
from shared_components.data.formats.files import image_stem, images_by_stem
from shared_components.data.formats.scan import FULL_SCALE, Labels, allowed_values
from shared_components.data.layouts.case_folder import Case, Finding
from shared_components.data.layouts.class_column import manifest_words
from shared_components.data.layouts.class_folders import MASK_BESIDE, OUTLINES, LabelledSlices
from shared_components.data.layouts.split import find_leaks, sections

_KINDS = ("absent", "present")


def check_class_folders(
    found: LabelledSlices,
    labels: Labels = None,
    num_workers: int | None = None,
    affine_tolerance: float = AFFINE_TOLERANCE_MM,
    num_channels: int | None = None,
    spatial_dims: int | None = None,
    channel: int | None = None,
) -> list[Finding]:
    """Check everything in folders a class, as `shared_components.data.checks.cases.check_folder` does in other layouts.

    An empty mask is right for a slice without the object; so it is a warning if its mask is not empty, or that of a
    slice with the object is. White (255) is the object whatever its values are, as in training. A manifest's image
    without a mask is no error if it has a label: the bundles that learn from labels train on it.

    Args:
        found: the folder (`find_class_folders`), or that of a manifest with a column of words (`manifest_classes`).
        labels: values that masks may have beside 0 and white; ``None`` allows every whole number from 0.
        num_workers, affine_tolerance, num_channels, channel: see `shared_components.data.checks.cases.check_cases`.
        spatial_dims: 2, or 3 where the folders hold volumes; by default what most of the files are.

    Returns:
        The findings, sorted by case id, those about the whole folder first.
    """
    values = allowed_values(labels)
    wanted: Labels = None if values is None else values | set(FULL_SCALE)
    if found.folder.layout == "manifest" and isinstance(labels, Mapping):
        wanted = labels  # named: for a bundle that learns from masks
    dims = spatial_dims or usual_spatial_dims(found.folder.cases)
    findings = check_folder(found.folder, wanted, num_workers, affine_tolerance, num_channels, dims, channel)
    cases = {case.id: case for case in found.folder.cases}
    for case, masks in found.masks.items():
        for mask in masks[1:]:
            alone = check_case(Case(case, cases[case].images, mask), wanted, None, affine_tolerance, dims)
            findings += [finding for finding in alone if finding.file == str(mask)]
    findings = [*_about_outlines(found, findings), *_section_findings(found)]
    if found.folder.layout == "published":
        findings += _stray_masks(found)
    else:
        findings = _without_masks(found, findings)
        findings += [] if found.folder.labelled else find_leaks(found.folder)
    return sorted(findings, key=lambda finding: finding.case)


def class_counts(found: LabelledSlices) -> dict[str, dict[str, int]]:
    """Return the numbers of slices without and with the object, and of the latter's outlines, of every section.

    Returns:
        section to ``{"absent": n, "present": n, "outlined": n}``.
    """
    masked = {case.id for case in found.folder.cases if case.label is not None}
    counts = {}
    for section, ids in sections(found.folder).items():
        kinds = Counter(_KINDS[found.classes[case]] for case in ids if case in found.classes)
        outlined = sum(found.classes.get(case) == 1 and case in masked for case in ids)
        counts[section] = {**{kind: kinds[kind] for kind in _KINDS}, "outlined": outlined}
    return counts


def class_overview(found: LabelledSlices) -> dict[str, str]:
    """Return what to say of the classes: a word and its text for each line."""
    folders: dict[str, Counter[str]] = {kind: Counter() for kind in _KINDS}
    for case, word in _words(found).items():
        folders[_KINDS[found.classes[case]]][word] += 1
    named = {kind: ", ".join(f"{name} {n}" for name, n in sorted(count.items())) for kind, count in folders.items()}
    untold = sum(case.id not in found.classes for case in found.folder.cases)
    rest = f"; not told: {untold}" if untold else ""
    parts = class_counts(found)
    by_section = [f"{name} {count['absent']} + {count['present']}" for name, count in parts.items()]
    outlined = [f"{name} {count['outlined']} of {count['present']}" for name, count in parts.items()]
    told = {
        "classes": f"object absent: {named['absent'] or 'none'}; present: {named['present'] or 'none'}{rest}",
        "sections": f"absent + present: {', '.join(by_section)}",
        "outlines": f"{', '.join(outlined)} slices with the object",
    }
    if found.folder.layout == "manifest" and not found.folder.labelled:
        told["label in"] = f"column {manifest_words(found.folder)[0]}, for whole images; no column of masks"
    return {**told, **_patient_overview(found)}


def _patient_overview(found: LabelledSlices) -> dict[str, str]:
    """Return how many patients have slices of which class; nothing if every case is a patient of its own."""
    classes: dict[str, set[int]] = defaultdict(set)
    for case, group in found.folder.groups.items():
        if case in found.classes:
            classes[group].add(found.classes[case])
    if not classes:
        return {}
    only = {kind: sum(kinds == {number} for kinds in classes.values()) for number, kind in enumerate(_KINDS)}
    both = len(classes) - sum(only.values())
    alone = ", ".join(f"{count} with it {kind} only" for kind, count in only.items())
    return {"of whom": f"{both} have slices of both classes, {alone}"}


def _words(found: LabelledSlices) -> dict[str, str]:
    """Return case id to what its class is called: the name of its folder, or the manifest's word."""
    if found.folder.layout == "published":
        return {case.id: case.images[0].parent.name for case in found.folder.cases}
    words = manifest_words(found.folder)[1]
    return {case.id: words[case.id] for case in found.folder.cases if case.id in words}


def _about_outlines(found: LabelledSlices, findings: Sequence[Finding]) -> list[Finding]:
    """Judge empty masks by the slice's class, and warn of masks that are not empty where they should be."""
    empty = {finding.case for finding in findings if finding.kind == "empty_mask"}
    bad = {finding.case for finding in findings if finding.level == "error"}
    published = found.folder.layout == "published"
    words = {case: f"in {word}/" if published else f"labelled {word}" for case, word in _words(found).items()}
    move = "move the image" if published else "correct its label"
    kept = []
    for finding in findings:
        if finding.kind == "empty_mask" and finding.case in words:
            if found.classes[finding.case] == 0:
                continue
            text = f"empty mask of a slice {words[finding.case]}; outline the object, or {move}"
            finding = replace(finding, message=text)
        kept.append(finding)
    for case in found.folder.cases:
        if found.classes.get(case.id) == 0 and case.label and case.id not in empty | bad:
            text = f"outline of a slice {words[case.id]}, expected none; empty it, or {move}"
            kept.append(Finding("warning", case.id, str(case.label), text, "outlined_negative"))
    return kept


def _without_masks(found: LabelledSlices, findings: Sequence[Finding]) -> list[Finding]:
    """Say once, as a warning, of all images of a manifest that have a label and no mask that they have none."""
    lacking = [finding.case for finding in findings if finding.kind == "no_label" and finding.case in found.classes]
    kept = [finding for finding in findings if finding.kind not in ("no_label", "no_label_column")]
    kept += [finding for finding in findings if finding.kind == "no_label" and finding.case not in found.classes]
    if lacking:
        text = f"{len(lacking)} images, such as {lacking[0]}, have a label and no mask"
        text += ": only bundles that learn from image-level labels train on them"
        kept.append(Finding("warning", "", str(found.folder.root / "manifest.csv"), text, "no_mask"))
    return kept


def _section_findings(found: LabelledSlices) -> list[Finding]:
    """Find what is wrong with the sections as a whole: one class only to train on, masks of some slices alone."""
    findings = []
    untold = any(case.id not in found.classes for case in found.folder.cases)  # masks tell the rest in training
    for section, count in class_counts(found).items():
        if section == "train" and not (count["absent"] and count["present"]) and not untold:
            text = f"{count['absent']} slices without the object and {count['present']} with it to train on"
            text += "; expected some of either; add them, or tell the patients by --patient_pattern"
            level = "error"
            if found.folder.layout == "manifest" and found.folder.labelled:
                level, text = "note", f"{text}; bundles that learn from masks do not ask for labels"
            findings.append(Finding(level, "", str(found.folder.root), text, "one_class"))
        if section != "train" and 0 < count["outlined"] < count["present"]:
            text = f"section '{section}': {count['outlined']} of {count['present']} slices with the object have a mask"
            text += ": no masks will be scored there; add the others"
            findings.append(Finding("warning", "", str(found.folder.root), text, "some_outlines"))
    groups = found.folder.groups
    alone = [case.id for case in found.folder.cases if case.id not in groups]
    if alone and found.folder.layout == "published":
        text = f"the names of {len(alone)} slices, such as {alone[0]}, tell no patient: each counts as one"
        text += "; --patient_pattern says where the names have the patient"
        findings.append(Finding("warning", "", str(found.folder.root), text, "no_patient"))
    return findings


def _stray_masks(found: LabelledSlices) -> list[Finding]:
    """Find masks that belong to no slice."""
    findings = []
    used = {case.label for case in found.folder.cases} | {mask for masks in found.masks.values() for mask in masks}
    images = [case.images[0] for case in found.folder.cases]
    for part in sorted({image.parent.parent for image in images}):
        for stem, mask in images_by_stem(part / OUTLINES):
            if mask not in used:
                text = f"mask without an image: none of the name {stem} in the folders of its classes; rename or remove"
                findings.append(Finding("warning", stem, str(mask), text, "no_image"))
    for case in found.folder.cases:
        if MASK_BESIDE.match(stem := image_stem(case.images[0].name) or ""):
            text = f"named as a mask, but there is no image beside it, so it counts as one; rename {stem} or remove it"
            findings.append(Finding("error", case.id, str(case.images[0]), text, "no_image"))
    return findings
