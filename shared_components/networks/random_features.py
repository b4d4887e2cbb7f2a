"""Features of images without any trained network: convolutions with fixed random weights."""

import torch
from torch import Tensor, nn


class RandomFeatures(nn.Module):
    """Describe images by a convolutional network whose weights are drawn once, from a fixed seed.

    Distances between such features tell sets of images apart by texture and layout, not by anatomy. They are for data
    without a trained network, always the same, and comparable only with themselves.

    Args:
        in_channels: channels of the images.
        channels: widths of the levels, each at half the size of the one before; the features are the means and the
            standard deviations of every channel of the last two levels.
        seed: of the weights.
    """

    def __init__(self, in_channels: int = 1, channels: tuple = (16, 32, 64), seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        widths = [in_channels, *channels]
        self.levels = nn.ModuleList()
        for before, after in zip(widths, widths[1:]):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1)
            conv.weight.data = torch.randn(conv.weight.shape, generator=generator) * (2 / (9 * before)) ** 0.5
            conv.bias.data.zero_()
            self.levels.append(nn.Sequential(conv, nn.ReLU()))
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Return features (N, F) of images (B, C, H, W), N = B, or of the D slices of volumes (B, C, H, W, D), N = B D.

        Images of another size than 64 pixels in height and width are brought to it.
        """
        if image.dim() == 5:
            image = image.permute(0, 4, 1, 2, 3).flatten(0, 1)
        x = nn.functional.interpolate(2 * image.float() - 1, (64, 64), mode="bilinear", antialias=True)
        found = []
        for index, level in enumerate(self.levels):
            x = level(x)
            if index >= len(self.levels) - 2:
                found += [x.mean(dim=(2, 3)), x.std(dim=(2, 3))]
        return torch.cat(found, dim=1)
