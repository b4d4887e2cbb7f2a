"""Lets torchvision's import pass beside a CPU-only torch when the torchvision at hand was linked to CUDA.

Its operators are then absent, and importing it stops at two of their names. They are declared, not
implemented: MONAI Label never calls them for a bundle. ``install.sh`` uses this only where the import fails.
"""

import importlib.abc
import sys

_keep = []


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if "+cpu" in torch.__version__:
                library = torch.library.Library("torchvision", "DEF")
                for operator in ("nms", "qnms"):
                    library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                _keep.append(library)
        return None


sys.meta_path.insert(0, _Finder())
