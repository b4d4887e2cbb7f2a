"""Class labels as a mixture: an embedding that takes a label, or a weight for every class."""

import torch
from torch import Tensor, nn


class SoftClassEmbedding(nn.Module):
    """Embed class labels (B,) or class weights (B, K): weights times the table.

    A label and its one-hot weights give the same numbers. Weights between two classes give the point between their
    embeddings, and the derivative with respect to the weights is that of the embedding; where the published CDM keeps a
    second copy of its whole network for one interpolated row of the table, here the weights are an input.

    It takes the place of `torch.nn.Embedding`, in MONAI's networks too, and its state dict is the same.

    Args:
        num_embeddings: rows of the table. There may be more than weights (the published networks have 1000 rows for two
            classes): the rows behind the last weight are not used then.
        embedding_dim: width of the embedding.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.weight = nn.Parameter(torch.randn(num_embeddings, embedding_dim))

    def forward(self, classes: Tensor) -> Tensor:
        """Return (B, embedding_dim).

        Args:
            classes: (B,) int64 labels, or (B, K) weights of the first K classes, of any real values.

        Raises:
            ValueError: more weights than rows, or labels that are no whole numbers.
        """
        if classes.dim() == 1:
            if classes.is_floating_point():
                raise ValueError("class labels (B,) must be whole numbers; weights have the shape (B, K)")
            return self.weight[classes]
        if classes.shape[1] > self.num_embeddings:
            raise ValueError(f"{classes.shape[1]} class weights for {self.num_embeddings} embeddings")
        return classes.to(self.weight.dtype) @ self.weight[: classes.shape[1]]
