"""Shared parts of Diffusion Bundles for MONAI: what two bundles need lives here, once."""

__version__ = "0.15.1"
