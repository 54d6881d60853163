"""One optimiser step of a tokenizer: losses, update, codebook revival, and all state of a resume.

The loss is that of ``star.tokenizer.losses``; the discriminator, if there is one, learns in the same
step from the same reconstructions. In float16 both losses are scaled, each by its own scale, and where
a gradient overflows that network stays as it is. Only this module calls ``backward``.

Shape suffixes: B images, C channels, H W pixels, E code dimension, V codebook size, g grid.
"""

import functools
import math
import operator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from star.base.device import autocast, resolve_precision
from star.base.errors import UserError
from star.base.loss_scale import LossScale
from star.base.meta import give_memory
from star.base.randomness import torch_generator
from star.base.record import Record
from star.base.weights import load_optimizer
from star.runs.schedule import learning_rate
from star.tokenizer.config import TokenizerConfig
from star.tokenizer.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
)
from star.tokenizer.losses import CODE_TERMS, PIXEL_TERMS, code_terms, reconstruct, weighted
from star.tokenizer.model import VQModel
from star.tokenizer.perceptual import load_lpips
from star.tokenizer.revival import revive_codes
from star.tokenizer.shape import VQConfig

__all__ = ["TokenizerLearner", "new_tokenizer"]

BETAS = (0.9, 0.95)


class TokenizerLearner:
    """Model, optimisers and counts of one run; ``update(images, step)`` with steps from 0."""

    def __init__(
        self,
        config: TokenizerConfig,
        device: torch.device | str = "cpu",
        lpips_vgg: Path | str | None = None,
    ) -> None:
        """``lpips_vgg``: file of VGG-16 weights, needed if ``config.lpips_weight`` is not 0."""
        self.config, self.device = config, torch.device(device)
        self.model = new_tokenizer(config.shape, config.seed).to(self.device).train()
        self.optimizer = _adamw(self.model, config)
        self.precision = resolve_precision(config.precision, self.device)
        scaled = self.precision is torch.float16
        self.loss_scale, self.critic_loss_scale = LossScale(enabled=scaled), LossScale(enabled=scaled)
        self.autocast = functools.partial(autocast, self.device, self.precision)
        self.chosen_V = torch.zeros(config.shape.codebook_size, dtype=torch.long, device=self.device)
        self.lpips: nn.Module | None = None
        self.critic: PatchDiscriminator | None = None
        self.critic_optimizer: torch.optim.Optimizer | None = None
        if config.lpips_weight:
            if lpips_vgg is None:
                raise UserError("lpips_weight is set; give the VGG-16 weights with --lpips-vgg FILE")
            self.lpips = load_lpips(lpips_vgg, self.device)
        if config.adversarial:
            critic = PatchDiscriminator(config.disc_channels, config.disc_layers)
            rng = torch_generator(config.seed, "tokenizer-discriminator")
            self.critic = critic.initialise(rng).to(self.device).train()
            self.critic_optimizer = _adamw(self.critic, config)

    def update(self, images_BCHW: torch.Tensor, step: int) -> dict[str, float]:
        """Learn from images in [-1, 1]; returns the unweighted terms and the codes the batch used.

        In float16 also the loss scale of the steps to come, and no ``loss`` of a step whose adaptive
        weight overflowed. Raises ``UserError``, before anything has changed, if the loss or its
        gradient is not finite (in float16: not even at the smallest loss scale).
        """
        config, model = self.config, self.model
        images_BCHW = images_BCHW.to(self.device, non_blocking=True)
        with self.autocast():
            z_BEgg = model.encode_features(images_BCHW)
        z_BEgg = F.normalize(z_BEgg.float(), dim=1)
        if step == 0:
            revive_codes(
                model, z_BEgg, torch.ones_like(self.chosen_V, dtype=torch.bool), config.seed, 0
            )
        drawn_BCHW, codes_BEgg, indices_Bgg = reconstruct(model, z_BEgg, self.autocast)
        terms = {
            "l1": F.l1_loss(drawn_BCHW, images_BCHW),
            "l2": F.mse_loss(drawn_BCHW, images_BCHW),
            **code_terms(z_BEgg, codes_BEgg),
        }
        if self.lpips is not None:
            with self.autocast():
                terms["lpips"] = self.lpips(drawn_BCHW, images_BCHW).float().mean()
        pixels = weighted(terms, config, PIXEL_TERMS)
        total = pixels + weighted(terms, config, CODE_TERMS)
        heard = self.critic is not None and step >= config.disc_start
        if heard:
            total = total + self._adversarial(terms, pixels, drawn_BCHW)
        every = functools.reduce(operator.add, terms.values())
        self._step(self.optimizer, model, self.loss_scale, total, every, step)
        if heard:
            terms["disc"] = self._teach_critic(images_BCHW, drawn_BCHW.detach(), step)
        counts_V = torch.bincount(indices_Bgg.flatten(), minlength=len(self.chosen_V))
        self._revive(z_BEgg.detach(), counts_V, step)
        metrics = {name: value.item() for name, value in terms.items()}
        loss = total.item()
        metrics |= {"loss": loss} if math.isfinite(loss) else {}
        metrics |= {"loss_scale": self.loss_scale.value} if self.loss_scale.enabled else {}
        return metrics | {"codes_used": int((counts_V > 0).sum())}

    def state_dict(self) -> Record:
        """Everything that a resume needs besides the configuration and the step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "chosen": self.chosen_V.cpu(),
            "critic": self.critic and self.critic.state_dict(),
            "critic_optimizer": self.critic_optimizer and self.critic_optimizer.state_dict(),
            "loss_scale": self.loss_scale.state_dict(),
            "critic_loss_scale": self.critic_loss_scale.state_dict(),
        }

    def load_state_dict(self, state: Record) -> None:
        """Take over ``state_dict()`` of a learner of the same configuration."""
        for name in ("model", "optimizer", "critic", "critic_optimizer"):
            part = getattr(self, name)
            assert (part is None) == (state[name] is None), name
            if isinstance(part, nn.Module):
                part.load_state_dict(state[name])
            elif part is not None:
                load_optimizer(part, state[name])
        self.chosen_V.copy_(state["chosen"])
        self.loss_scale.load_state_dict(state.get("loss_scale"))
        self.critic_loss_scale.load_state_dict(state.get("critic_loss_scale"))

    def _adversarial(
        self, terms: dict[str, torch.Tensor], pixels: torch.Tensor, drawn_BCHW: torch.Tensor
    ) -> torch.Tensor:
        critic = self.critic
        assert critic is not None
        critic.requires_grad_(False)
        with self.autocast():
            terms["gen"] = hinge_generator(critic(drawn_BCHW).float())
        critic.requires_grad_(True)
        factor: torch.Tensor | float = 1.0
        if self.config.disc_adaptive:
            last_layer = self.model.decoder.conv_out.weight
            factor = adaptive_weight(pixels, terms["gen"], last_layer, self.loss_scale.value)
        return self.config.disc_weight * factor * terms["gen"]

    def _teach_critic(
        self, images_BCHW: torch.Tensor, drawn_BCHW: torch.Tensor, step: int
    ) -> torch.Tensor:
        critic, optimizer = self.critic, self.critic_optimizer
        assert critic is not None and optimizer is not None
        with self.autocast():
            real, drawn = critic(images_BCHW), critic(drawn_BCHW)
        loss = hinge_discriminator(real.float(), drawn.float())
        total = self.config.disc_weight * loss
        self._step(optimizer, critic, self.critic_loss_scale, total, loss, step)
        return loss.detach()

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        module: nn.Module,
        scale: LossScale,
        total: torch.Tensor,
        terms: torch.Tensor,
        step: int,
    ) -> None:
        """Move ``module`` down ``total``; in float16 not where that overflows, which lowers ``scale``.

        ``terms`` is finite if all terms are, which a lower scale cannot help; ``total`` also depends on
        a ratio of gradients.
        """
        optimizer.zero_grad(set_to_none=True)
        (total * scale.value).backward()
        scale.unscale([p.grad for p in module.parameters() if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(module.parameters(), self.config.clip)
        finite = math.isfinite(total.item()) and math.isfinite(norm.item())
        if not finite and not (scale.can_fall and math.isfinite(terms.item())):
            raise UserError(
                f"the tokenizer's loss is not finite at step {step + 1}: lower its learning rate "
                f"({self.config.lr}) or train it in fp32"
            )
        if finite:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.config, step)
            optimizer.step()
        scale.update(finite)

    def _revive(self, z_BEgg: torch.Tensor, counts_V: torch.Tensor, step: int) -> None:
        config, done = self.config, step + 1
        self.chosen_V += counts_V
        due = config.revive_every and done % config.revive_every == 0
        if due and done <= config.revive_until * config.max_steps:
            dead_V = self.chosen_V == 0
            revive_codes(self.model, z_BEgg, dead_V, config.seed, done, self.optimizer)
            self.chosen_V.zero_()


def new_tokenizer(shape: VQConfig, seed: int) -> VQModel:
    """Model with torch's usual initial distributions, drawn from our own generator."""
    with torch.device("meta"):  # so that the constructors draw nothing from the global one
        model = VQModel(shape)
    give_memory(model, "cpu")
    rng = torch_generator(seed, "tokenizer-weights")
    model.quantize.codebook_used.zero_()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=rng)
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert module.bias is not None
            nn.init.uniform_(module.bias, -bound, bound, generator=rng)
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, generator=rng)
    return model


def _adamw(module: nn.Module, config: TokenizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        module.parameters(), lr=config.lr, betas=BETAS, weight_decay=config.weight_decay
    )
