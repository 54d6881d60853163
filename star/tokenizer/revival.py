"""Codebook revival: codes that nothing chose for a while move to where the codebook serves worst.

Without it a few codes win early and the others never get a gradient (the collapse of Lancucki et al.
2020, who reinitialise in the same spirit). The very first codes are chosen in the same way.

Shape suffixes: B images, E code dimension, V codebook size, g grid, N = B g g vectors.
"""

import torch
import torch.nn.functional as F

from star.base.randomness import generator
from star.tokenizer.model import VQModel

__all__ = ["revive_codes"]


@torch.no_grad()
def revive_codes(
    model: VQModel,
    z_BEgg: torch.Tensor,
    dead_V: torch.Tensor,
    seed: int,
    step: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Move dead codes onto encoder outputs, drawn by how badly the codes in use represent them.

    ``z_BEgg`` are normalised; the draw is a function of (seed, step). The optimiser's moments of the
    moved codes are cleared.
    """
    dead = int(dead_V.sum())
    if not dead:
        return
    z_NE = z_BEgg.permute(0, 2, 3, 1).reshape(-1, z_BEgg.shape[1])
    weight = model.quantize.embedding.weight
    if dead < len(weight):
        alive_VE = F.normalize(weight[~dead_V], dim=-1)
        weights_N = 1 - (z_NE @ alive_VE.T).amax(dim=1)
    else:  # the first codes: the rarer a direction, the likelier
        weights_N = 1 - z_NE @ F.normalize(z_NE.mean(dim=0), dim=0)
    # never zero, so that there are always enough vectors to draw; NaN is reported by the loss
    weights = weights_N.double().nan_to_num().clamp(min=0).cpu().numpy() + 1e-6
    rng = generator(seed, "tokenizer-revive", step)
    picks = rng.choice(len(z_NE), size=dead, replace=dead > len(z_NE), p=weights / weights.sum())
    weight[dead_V] = z_NE[torch.from_numpy(picks).to(z_NE.device)].to(weight.dtype)
    if optimizer is not None and weight in optimizer.state:
        for name in ("exp_avg", "exp_avg_sq"):  # moments of the code that was there before
            optimizer.state[weight][name][dead_V] = 0
