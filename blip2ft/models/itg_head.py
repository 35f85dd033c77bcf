"""The head of ITG, which is BERT's of masked words."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN


class GenerationHead(nn.Module):
    """BERT's transform and norm, and the bias of a decoder whose weight is the word embedding."""

    def __init__(self, hidden_size: int, vocab_size: int, act: str, eps: float) -> None:
        super().__init__()
        self.transform = nn.Linear(hidden_size, hidden_size)
        self.act = ACT2FN[act]
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """(N, D) and (V, D) -> logits (N, V)."""
        hidden = self.norm(self.act(self.transform(hidden)))
        return functional.linear(hidden, word_embeddings, self.bias)
