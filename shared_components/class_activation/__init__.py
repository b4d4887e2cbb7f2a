"""Where a classifier looks: the maps that weakly supervised segmentation by diffusion is compared with."""
