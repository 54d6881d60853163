"""Write ``probes/doctor/self_test.json`` anew: run this file, on a CPU in float32.

It is rewritten only when what the self-test computes is meant to change.
"""

import json

import torch

from probes.doctor import trial
from probes.doctor.self_test import FILE
from star.tokenizer.file import load_tokenizer


def kept() -> dict:
    """The numbers of this machine, as many digits as float32 has."""
    model = trial.trial_model("cpu")
    return {
        "draws": trial.draws(),
        "logits": trial.logits(model).tolist(),
        "greedy": trial.greedy(model),
        "losses": trial.losses(torch.device("cpu")),
        "indices": load_tokenizer().encode(trial.image()).flatten().tolist(),
    }


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


if __name__ == "__main__":
    lines = [f'"{name}": {json.dumps(value)}' for name, value in _rounded(kept()).items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
