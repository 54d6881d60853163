"""Label-free numbers of a checkpoint's features, by itself or against a second checkpoint."""

from collections.abc import Iterator
from dataclasses import replace

from figures.features import features_stem, layers_and_steps
from figures.opening import open_checkpoints, output_folder, run_data
from figures.requests.measures import Request
from figures.study import Finding, Study
from figures.work import Rows, Said, Work
from probes.representation.encoders import load_encoder
from probes.representation.measures import MEASURES, measure_checkpoint
from probes.results import Result
from star.base.device import resolve_precision
from star.base.errors import UserError, require_choice
from star.base.names import slug
from star.model.classes import null_label
from star.parallel.processes import join, world_size
from viz.measures import measure_figures

__all__ = ["Request", "check", "measures_said", "run"]

MOST = 2  # checkpoints


class MeasuresStudy(Study[Request]):
    """``star probe --measure``."""

    request = Request

    def check(self, asked: Request) -> None:
        """Refuse unknown measures, half an encoder, and more checkpoints than two."""
        for name in _names(asked) or ():
            require_choice("measure", name, ("all", *MEASURES))
        if bool(asked.encoder) != bool(asked.encoder_weights):
            raise UserError(
                "--encoder and --encoder-weights belong together: a name and its weights' file"
            )
        count = len(asked.ckpts or ())
        if count > MOST:
            raise UserError(f"--measure takes one checkpoint or two; {count} were given")

    def findings(self, asked: Request, work: Work) -> Iterator[Finding]:
        """The measures of the first checkpoint, in one table and its pictures."""
        where = join(asked.device)
        if world_size() > 1:
            raise UserError("--measure runs in one process; leave out --nproc")
        opened = open_checkpoints(asked.ckpts, replace(asked, device=str(where)), work.say)
        for loaded in opened.values():
            null_label(loaded.model.config, "--measure")
        (name, loaded), *rest = opened.items()
        other_name, other = rest[0] if rest else (None, None)
        model = loaded.model.config
        layers, steps = layers_and_steps(asked, model)
        encoder = None
        if asked.encoder and asked.encoder_weights:
            encoder = load_encoder(asked.encoder, asked.encoder_weights, where)
        data = run_data(loaded, asked.data, asked.tokenizer, work)
        result = measure_checkpoint(
            loaded,
            data.stores,
            split=asked.split,
            layers=layers,
            steps=steps,
            names=_names(asked),
            other=other,
            encoder=encoder,
            tokenizer=data.tokenizer if encoder else None,
            precision=resolve_precision(asked.precision, where),
            on_progress=work.progress("measures"),
        )
        votes = (result.info["knn"] or {}).get("k")
        figures = measure_figures(result.table, total_steps=model.tokens, votes=votes)
        stem = features_stem(_kind(asked, other_name), asked, layers)
        yield Finding(
            stem=output_folder(loaded, asked.out, "probe") / stem,
            results={"": result},
            figures={f"-{label}": figure for label, figure in figures},
            said=measures_said(result, name if other is None else f"{name} (against: {other_name})"),
        )


_STUDY = MeasuresStudy()
check, run = _STUDY.check, _STUDY.run


def measures_said(result: Result, name: str) -> list[Said]:
    """Means over layers and steps of each measure; the table has the rest."""
    rows = []
    for (measure, against), group in result.table.groupby(["measure", "against"], sort=False):
        values = group["value"].dropna()
        if values.empty:
            continue
        base = group["baseline"].dropna()
        cells = [measure, "" if against == "none" else against, f"{values.mean():.3g}"]
        cells += [f"{values.min():.3g}", f"{values.max():.3g}"]
        rows.append([*cells, f"{base.mean():.3g}" if len(base) else "-"])
    columns = ["over layers and steps", "against", "mean", "least", "most", "baseline"]
    said: list[Said] = [Rows(f"{name}: {result.info['images']} images", columns, rows)]
    if result.info.get("of_train"):
        of_train = ", ".join(result.info["of_train"])
        said.append(f"of training images, which have several views: {of_train}")
    said += [f"left out: {measure} ({why})" for measure, why in result.info["left_out"].items()]
    for measure in dict.fromkeys(row[0] for row in rows):
        votes = f", k = {result.info['knn']['k']}" if measure == "knn" else ""
        said.append(f"{measure}: {MEASURES[measure]}{votes}")
    return said


def _names(asked: Request) -> list[str] | None:
    """The measures asked for by name, None for all that can be taken."""
    if asked.measure is None or asked.measure == "all":
        return None
    return [part.strip() for part in asked.measure.split(",")]


def _kind(asked: Request, other: str | None) -> str:
    names = _names(asked)
    kind = "measures" if names is None else f"measures-{'-'.join(names)}"
    kind += "" if asked.split == "test" else f"-{asked.split}"
    kind += "" if other is None else f"-against-{slug(other)}"
    return f"{kind}-{slug(asked.encoder)}" if asked.encoder else kind
