"""Refactorization instead of training: layer by layer, factors are fitted to the dense network's answers, on the inputs that the layer
really gets from the compressed layers before it (AA-SVD, 2026; Zhang et al., arXiv 1505.06798, section 3.3)."""

from __future__ import annotations

from ranksearch.networks.reconstruction.answers import Answers
from ranksearch.networks.reconstruction.layer import left_out
from ranksearch.networks.reconstruction.room import announced, batches_within
from ranksearch.networks.reconstruction.sequential import Reconstructed, dense_answers, reconstruct

__all__ = ["Answers", "Reconstructed", "announced", "batches_within", "dense_answers", "left_out", "reconstruct"]
