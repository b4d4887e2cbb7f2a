"""DDIM run backwards: from an image to the noise that it grows out of."""

from typing import Optional

from torch import Tensor, nn

from shared_components.diffusion.reverse import PREDICTION_TYPES
from shared_components.diffusion.tables import reverse_table
from shared_components.errors import check_choice


class InversionProcess(nn.Module):
    """The steps of a deterministic DDIM in the other direction; ``process(step, output, sample)`` makes one.

    The image is taken for the sample at the cleanest level visited, and each step moves it to the next noisier one
    with the noise predicted at the level it comes from (Song et al. 2021, section 4.3). It ends at the noisiest level;
    a DDIM (eta 0) over the same levels comes back to the image but for the error of finite steps.

    Args:
        alphas_cumprod: (T,) of the training schedule.
        num_inference_steps: levels N, 2..T.
        spacing: which levels, see `shared_components.diffusion.timesteps.noise_levels`.
        prediction_type: what the network predicts.

    Raises:
        InputError: an unknown name, or a number of levels that the spacing cannot give.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor,
        num_inference_steps: Optional[int] = None,
        spacing: str = "leading",
        prediction_type: str = "epsilon",
    ) -> None:
        super().__init__()
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        table = reverse_table(alphas_cumprod, num_inference_steps, "ddim", spacing)
        whole = not table.timesteps.is_floating_point()
        timesteps = (table.timesteps if whole else table.timesteps.float()).flip(0)
        self.prediction_type = prediction_type
        self.num_steps: int = len(timesteps) - 1
        self.register_buffer("timesteps", timesteps, persistent=False)
        self.register_buffer("levels", table.alphas_cumprod.flip(0), persistent=False)

    def timestep(self, step: int, batch_size: int) -> Tensor:
        """Return what the network is shown at a step, (batch_size,)."""
        return self.timesteps[step].expand(batch_size)

    def forward(self, step: int, output: Tensor, sample: Tensor) -> Tensor:
        """Return the sample at the next noisier level.

        Args:
            step: 0 (cleanest) to ``num_steps`` - 1.
            output: (B, N, *spatial) of the network at this level, the prediction in its first C channels.
            sample: (B, C, *spatial) that the network was shown.
        """
        prediction = output[:, : sample.shape[1]].to(sample.dtype)
        level, reached = self.levels[step], self.levels[step + 1]
        signal, noise = level.sqrt().float(), (1 - level).sqrt().float()
        if self.prediction_type == "epsilon":
            clean, fresh = (sample - noise * prediction) / signal, prediction
        elif self.prediction_type == "sample":
            clean, fresh = prediction, (sample - signal * prediction) / noise
        else:
            clean, fresh = signal * sample - noise * prediction, noise * sample + signal * prediction
        return reached.sqrt().float() * clean + (1 - reached).sqrt().float() * fresh
