"""The shape of a VQ tokenizer, and LlamaGen's shapes by name.

This module imports neither torch nor numpy, so that the command line starts at once.
"""

import dataclasses
from dataclasses import dataclass

from star.base.errors import UserError, require_choice

__all__ = ["GROUPS", "PRESETS", "VQConfig", "vq_preset"]

GROUPS = 32  # of every GroupNorm
# Beyond every tokenizer there is; the module of a larger one would take ages to build.
_MOST = {
    "channels": 1 << 12, "multipliers": 64, "encoder_blocks": 64, "decoder_blocks": 64,
    "z_channels": 1 << 14, "codebook_size": 1 << 24, "codebook_dim": 1 << 12,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """Shape of a VQ tokenizer; every level after the first halves the image."""

    channels: int = 128  # width of the first level
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # width of each level in units of channels
    encoder_blocks: int = 2  # residual blocks a level
    decoder_blocks: int = 3  # residual blocks a level
    z_channels: int = 256  # width between the network and the code projection
    codebook_size: int = 16384  # V
    codebook_dim: int = 8  # E

    def __post_init__(self) -> None:
        # JSON has lists only; a frozen config needs a hashable value
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        numbers = {f"multipliers[{i}]": value for i, value in enumerate(self.multipliers)}
        for field in dataclasses.fields(self):
            if field.name != "multipliers":
                numbers[field.name] = getattr(self, field.name)
        for name, value in numbers.items():
            most = _MOST.get(name, _MOST["multipliers"])
            if type(value) is not int or not 1 <= value <= most:
                raise UserError(
                    f"tokenizer {name} is {value!r}; expected a whole number, 1 to {most:,}"
                )
        if not self.multipliers:
            raise UserError("tokenizer multipliers are empty; expected one for each level")
        if len(self.multipliers) > 10:
            raise UserError(f"tokenizer multipliers are {len(self.multipliers)}; expected at most 10")
        if self.channels % GROUPS:
            raise UserError(
                f"tokenizer channels is {self.channels}; group norm needs a multiple of {GROUPS}"
            )

    @property
    def stride(self) -> int:
        """Pixels along one side of the square that becomes one token."""
        return int(2 ** (len(self.multipliers) - 1))


PRESETS = {
    "vq16": VQConfig(),
    "vq8": VQConfig(multipliers=(1, 2, 2, 4)),
    "small": VQConfig(
        channels=32,
        multipliers=(1, 1, 2),
        encoder_blocks=1,
        decoder_blocks=1,
        z_channels=64,
        codebook_size=256,
    ),
}


def vq_preset(name: str) -> VQConfig:
    """The shape called ``name``: LlamaGen's ``vq16`` and ``vq8``, or ``small`` for 32-pixel images."""
    require_choice("tokenizer preset", name, PRESETS)
    return PRESETS[name]
