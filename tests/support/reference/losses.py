"""The paper's equations as loops over images, views and steps, in float64. Slow and literal."""

import numpy as np


def ar(logits_STV, tokens_ST):
    """Eq. 2, averaged over sequences."""
    total, count = 0.0, 0
    for logits_TV, tokens_T in zip(logits_STV, tokens_ST, strict=True):
        for logits_V, token in zip(logits_TV, tokens_T, strict=True):
            total -= logits_V[token] - np.log(np.sum(np.exp(logits_V)))
            count += 1
    return total / count


def mim(student_STD, teacher_STD):
    """Eq. 4 with the cosine distance."""
    distances = []
    for student_TD, teacher_TD in zip(student_STD, teacher_STD, strict=True):
        for s, t in zip(student_TD, teacher_TD, strict=True):
            distances.append(1 - np.dot(s, t) / (np.linalg.norm(s) * np.linalg.norm(t)))
    return np.mean(distances)


def _unit(vector, normalize):
    return vector / np.linalg.norm(vector) if normalize else vector


def contrast(z, h, *, kind, temperature, form, normalize, reduction, first_image=0):
    """Eqs. 6 (kind "step") and 7 (kind "view"); z (B, M, K, D), h (G, M, K, D)."""
    images, views, steps, _ = z.shape
    total, pairs = 0.0, 0
    for b in range(images):
        for m in range(views):
            for i in range(steps):
                if kind == "step":
                    positives = [(m, j) for j in range(steps) if j != i]
                else:
                    positives = [(j, i) for j in range(views) if j != m]
                for view, step in positives:
                    anchor = _unit(z[b, m, i], normalize)
                    scores = [
                        np.exp(np.dot(anchor, _unit(h[v, view, step], normalize)) / temperature)
                        for v in range(len(h))
                    ]
                    share = scores[first_image + b] / np.sum(scores)
                    total += -np.log(share) if form == "infonce" else -share
                    pairs += 1
    return total / images if reduction == "sum" else total / pairs
