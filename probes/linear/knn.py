"""Nearest-neighbour classification of features: what they know of the class without any training.

DINO's protocol (Caron et al. 2021, section 4.1): cosine similarity, k = 20 neighbours (all references
where there are fewer), each voting for its class with weight exp(similarity / 0.07). Exact: every query
meets every reference.

Shapes: R reference features, Q queries, D width, C classes.
"""

import numpy as np
import torch
import torch.nn.functional as F

from star.base.errors import UserError

__all__ = ["TEMPERATURE", "VOTERS", "knn_predict", "voters"]

VOTERS = 20
TEMPERATURE = 0.07


def voters(references: int) -> int:
    """k, the neighbours that vote among so many reference images."""
    return min(VOTERS, references)


def knn_predict(
    reference_RD: np.ndarray,
    labels_R: np.ndarray,
    queries_QD: np.ndarray,
    *,
    k: int = VOTERS,
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
    batch_size: int = 1024,
) -> np.ndarray:
    """(Q,) predicted class of each query; of classes with equal votes the smallest.

    Raises ``UserError`` unless 1 <= k <= R and the temperature is above 0.
    """
    if not 1 <= k <= len(reference_RD):
        raise UserError(f"k is {k}; expected 1 to {len(reference_RD)}, the number of reference images")
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}; expected a number > 0")
    reference_DR = F.normalize(torch.from_numpy(reference_RD).to(device), dim=1).T
    labels = torch.from_numpy(np.asarray(labels_R, dtype=np.int64)).to(device)
    classes = int(labels.max()) + 1
    found = [np.empty(0, dtype=np.int64)]
    for queries_BD in torch.from_numpy(queries_QD).split(batch_size):
        similarity_BR = F.normalize(queries_BD.to(device), dim=1) @ reference_DR
        nearest_BK, index_BK = similarity_BR.topk(k, dim=1)
        votes_BC = torch.zeros(len(queries_BD), classes, device=device)
        votes_BC.scatter_add_(1, labels[index_BK], (nearest_BK / temperature).exp())
        found.append(votes_BC.argmax(1).cpu().numpy())
    return np.concatenate(found)
