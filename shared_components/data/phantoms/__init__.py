"""Synthetic images for demonstrations and tests, a file for every sort of image."""

from shared_components.data.phantoms.kinds import KINDS, demonstration_data, make_phantoms, phantom_case

__all__ = ["KINDS", "demonstration_data", "make_phantoms", "phantom_case"]
