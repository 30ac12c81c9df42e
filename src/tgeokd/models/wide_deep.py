"""Wide & Deep models for tables."""

import torch
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.registry import MODELS
from tgeokd.models.table import CategoryEmbedding, check_options, check_table, hidden_layers
from tgeokd.utils.errors import InputError

EMBEDDING_SD = 0.01


@MODELS.register("wide_deep")
class WideDeep(nn.Module):
    """The sum of a linear model on all columns (wide) and an MLP on embeddings (deep).

    Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016. The last layer takes the wide scores beside the
    deep features, so that the logits are the output of one linear layer. Its weight from each score to its class starts at 1.

    Args:
        inputs: of kind ``table``.
        num_classes: C; there are C - 1 wide scores, class 0 is the reference.
        embedding: length of the vector of a category.
        hidden: widths of the deep layers, at least one.
        dropout: probability after each of them.
    """

    def __init__(
        self,
        *,
        inputs: InputSpec,
        num_classes: int,
        embedding: int = 16,
        hidden: tuple[int, ...] = (400, 400, 400),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_table("wide_deep", inputs)
        check_options(hidden=list(hidden), embedding=embedding, dropout=dropout)
        if not hidden:
            raise InputError("hidden must have at least one width, not []")
        numeric, categories = inputs.shape[0], inputs.categories
        self.scores = scores = num_classes - 1
        self.embedding = CategoryEmbedding(categories, embedding) if categories else None
        self.wide_categories = CategoryEmbedding(categories, scores) if categories else None
        self.wide_numeric = nn.Linear(numeric, scores, bias=False) if numeric else None
        self.deep = nn.Sequential(*hidden_layers((numeric + embedding * len(categories), *hidden), dropout))
        self.head = nn.Linear(hidden[-1] + scores, num_classes)
        with torch.no_grad():
            if self.embedding is not None and self.wide_categories is not None:
                # a category that occurs rarely in training should have little influence
                self.embedding.rows.weight.normal_(std=EMBEDDING_SD)
                self.wide_categories.rows.weight.zero_()
            self.head.weight[:, hidden[-1] :] = torch.eye(num_classes)[:, 1:]

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Logits (N, C) of numbers (N, M) and codes (N, K)."""
        features, wide = numeric, numeric.new_zeros(len(numeric), self.scores)
        if self.embedding is not None and self.wide_categories is not None:
            features = torch.cat([numeric, self.embedding(categorical).flatten(1)], dim=1)
            wide = self.wide_categories(categorical).sum(dim=1)
        if self.wide_numeric is not None:
            wide = wide + self.wide_numeric(numeric)
        logits: Tensor = self.head(torch.cat([self.deep(features), wide], dim=1))
        return logits
