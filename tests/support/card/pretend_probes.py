"""What the probes do, as small runs on any device (see ``pretend_runs``)."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
import torchvision
from cell_tokenizer import CellTokenizer, pictures, random_pictures
from helpers import TINY_VQ, fake_store, small_model, small_pictures
from inception_weights import random_inception
from pretend_runs import RUNS, image_source, random_tokenizer, run
from reference.fill import fill_

from probes.ablation.accuracy import ablate_probe
from probes.ablation.cuts import Cut
from probes.ablation.nll import ablate_nll, strict_nll
from probes.attention.maps import attention_maps
from probes.attention.stats import attention_stats
from probes.attribution.methods import METHODS, AttributionConfig
from probes.attribution.probe import fit_step_probe
from probes.attribution.scores import StepScores
from probes.attribution.study import Explained, attribution_study
from probes.linear.atlas import AtlasConfig, probe_atlas
from probes.linear.mae import MaeConfig
from probes.linear.protocols import PROTOCOLS, ProtocolConfig
from probes.linear.sharing import share_broken
from probes.linear.sources import ModelSource
from probes.linear.splits import probe_splits
from probes.reading.images import spread_images
from probes.representation.encoders import encode_pooled, load_encoder
from probes.representation.measures import measure
from probes.samples.inception import load_inception
from probes.tokens.augmentations import chosen_views
from probes.tokens.codebook import code_pictures, codebook_report
from probes.tokens.invariance import measure_invariance
from probes.tokens.reconstruction import reconstruction_report
from star.codes.encode import tokenize
from star.tokenizer.file import tokenizer_sha256
from star.tokenizer.model import VQModel
from star.training.checkpoint import Loaded

CELLS = {"layers": [1, 3], "steps": [1, 4, 9]}
MAE = MaeConfig(base_lrs=(0.5, 5.0), epochs=3, warmup_epochs=1, batch_size=15)


def splits(tokenizer=None):
    found = {
        "train": fake_store(images=40),
        "val": fake_store(images=16, views=1, seed=5),
        "test": fake_store(images=24, views=1, seed=6),
    }
    for store in found.values():
        store.tokenizer_sha256 = tokenizer_sha256(tokenizer) if tokenizer is not None else "0" * 64
    return probe_splits(found)


def loaded(device: torch.device, folder: Path) -> Loaded:
    """A model whose attention is far from even, and a file for its checksum."""
    model = small_model(device=device)
    with torch.no_grad():
        for block in model.layers:
            block.attention.wqkv.weight.mul_(20)
    (folder / "ckpt.pt").write_bytes(b"a checkpoint")
    return Loaded(model.requires_grad_(False), folder / "ckpt.pt", "teacher", "small", step=3)


def _atlas_of(protocol: str):
    def atlas(device: torch.device, folder: Path) -> object:
        shape = dataclasses.replace(TINY_VQ, multipliers=(1,), codebook_size=11)
        tokenizer = fill_(VQModel(shape)).to(device)
        config = AtlasConfig(
            layers=(1, 3), steps=(1, 9), protocol=ProtocolConfig(name=protocol, mae=MAE)
        )
        found = probe_atlas(
            loaded(device, folder), splits(tokenizer), config, tokenizer=tokenizer, work=folder / "work"
        )
        assert set(found.result.table["control"]) == {"none", "random", "shuffled", "codes", "pixels"}
        return found.result.table, found.predicted_SLKN

    return atlas


RUNS |= {f"probes by {name} with every control": _atlas_of(name) for name in PROTOCOLS}


@run
def a_source_that_is_not_finite(device, folder):
    broken = loaded(device, folder).model
    broken.layers[2].feed_forward.w2.weight[0, 0] = torch.inf
    source = ModelSource(broken, splits(), **CELLS)
    return (
        source("test", np.arange(5), None),
        sorted(source.broken),
        share_broken(source.broken, len(source.groups), source.device),
    )


@run
def measures(device, folder):
    store, train = fake_store(images=60, views=3), fake_store(images=50, seed=3)
    store.view_names = ("centre", "left", "right")
    other = small_model(seed=1, device=device)
    found = measure(
        loaded(device, folder).model,
        store,
        layers=[1, 3],
        steps=[4, 9],
        images=40,
        train=train,
        other=other,
    )
    return found.table, found.info["left_out"]


@run
def attention(device, folder):
    model, store = loaded(device, folder).model, fake_store()
    tokens_T = torch.from_numpy(store.codes[0, 0].astype("int64"))
    maps = [attention_maps(model, tokens_T, 1, **CELLS, head=h) for h in ("mean", "all", 1, "rollout")]
    stats = [attention_stats(model, store, **CELLS, batch_size=7, rollout=r) for r in (False, True)]
    return maps, [found.table for found in stats]


@run
def ablations(device, folder):
    model, store = loaded(device, folder).model, fake_store(images=12)
    cuts = [Cut("class", (1, 2, 3)), Cut("neighbourhood", (2,), steps=(4, 9))]
    return [
        ablate_nll(model, store, cuts, batch_size=7).table(),
        strict_nll(model, store, steps=[1, 5], reaches=[0, 2], batch_size=3).table(),
        ablate_probe(model, splits(), cuts, layer=2, steps=[4, 9]).table(),
    ]


@run
def attributions(device, folder):
    given, found = loaded(device, folder), {}
    probe = fit_step_probe(given.model, splits(), layer=2, step=7, images=40)
    rows, tokens, labels = spread_images(fake_store(images=6), 2)
    images = [
        Explained(f"image {row}", codes, int(label), int(codes[6]))
        for row, codes, label in zip(rows, tokens, labels, strict=True)
    ]
    for target in ("logprob", "logit", "probe"):
        shown = images
        if target == "probe":
            shown = [dataclasses.replace(image, index=image.label) for image in images]
        scores = StepScores(given.model, 7, target, probe if target == "probe" else None)
        config = AttributionConfig(points=3, draws=1 if target == "logprob" else 0)
        study = attribution_study(given, scores, shown, config, attention_layers=[1, 2])
        assert set(study.places.table["method"]) == set(METHODS)
        found[target] = study.places.table, study.measures.table
    return found


@run
def token_invariance(device, folder):
    tokenizer = CellTokenizer().to(device)
    views = chosen_views("shift:0,4,flip,noise:0,20,jpeg:50", size=16, stride=tokenizer.config.stride)
    found = measure_invariance(tokenizer, pictures(random_pictures(6)), views, size=16)
    return found.values, found.maps


@run
def a_codebook(device, folder):
    tokenizer = random_tokenizer(device)
    store = tokenize(image_source(), tokenizer, folder / "codes", device=str(device))["train"]
    return codebook_report(tokenizer, store).table(), code_pictures(tokenizer, store)


@run
def evaluation_of_a_tokenizer(device, folder):
    report = reconstruction_report(random_tokenizer(device), small_pictures(), batch_size=24)
    return report.table()


@run
def features_of_public_networks(device, folder):
    """Inception's (for rFID) and an encoder's, with random weights."""
    images = small_pictures()[:2]
    torch.save(random_inception(), folder / "inception.pth")
    pooled = load_inception(folder / "inception.pth", device).pool(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict()
    torch.save(weights, folder / "encoder.pth")
    encoder = load_encoder("shufflenet_v2_x0_5", folder / "encoder.pth", device)
    return pooled, encode_pooled(encoder, images.permute(0, 2, 3, 1).numpy())
