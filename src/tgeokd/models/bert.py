"""BERT on the columns of a table: one token per feature."""

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from tgeokd.data.base import InputSpec
from tgeokd.models.registry import MODELS
from tgeokd.models.table import check_options, check_table, first_codes
from tgeokd.utils.errors import InputError


@MODELS.register("bert")
class TableBert(nn.Module):
    """A BERT encoder (Devlin et al., 2019; the implementation of transformers, not pretrained) on the columns of a table.

    The tokens are [CLS], one per categorical column (the embedding of its code) and one per numeric feature (its value times a
    learned direction), with position embeddings. The classifier is a linear layer on [CLS].

    Args:
        inputs: of kind ``table``.
        num_classes: C.
        layers: transformer layers.
        hidden: width of a token.
        heads: attention heads; a divisor of ``hidden``.
        intermediate: width of the feed-forward layers; ``4 hidden`` by default.
        dropout: probability, in the layers and of the attention.
    """

    token_of_column: Tensor

    def __init__(
        self,
        *,
        inputs: InputSpec,
        num_classes: int,
        layers: int = 4,
        hidden: int = 64,
        heads: int = 4,
        intermediate: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_table("bert", inputs)
        intermediate = 4 * hidden if intermediate is None else intermediate
        check_options(layers=layers, hidden=hidden, heads=heads, intermediate=intermediate, dropout=dropout)
        if hidden % heads:
            raise InputError(f"hidden must be a multiple of heads, not {hidden} with {heads} heads")
        numbers = inputs.shape[0]
        config = BertConfig(
            vocab_size=1 + sum(inputs.categories),  # token 0 is [CLS], then the codes of each column in turn
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=intermediate,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            max_position_embeddings=1 + numbers + len(inputs.categories),
            type_vocab_size=1,
            pad_token_id=None,
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        # supports forward-mode AD and the same dropout in every pass of the bilevel step; as fast on a few dozen tokens
        self.encoder.set_attn_implementation("eager")
        self.direction = nn.Parameter(torch.randn(numbers, hidden) * config.initializer_range)
        self.register_buffer("token_of_column", first_codes(inputs.categories, start=1), persistent=False)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Logits, shape (N, C), of numbers (N, M) and codes (N, K)."""
        start = categorical.new_zeros(len(numeric), 1)
        tokens = torch.cat([start, categorical + self.token_of_column], dim=1)
        words = self.encoder.embeddings.word_embeddings(tokens)
        # BERT's position embeddings identify the features, and are the offset of the numeric ones
        embedded = torch.cat([words, numeric.unsqueeze(2) * self.direction], dim=1)
        logits: Tensor = self.head(self.encoder(inputs_embeds=embedded).last_hidden_state[:, 0])
        return logits
