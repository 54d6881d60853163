"""``star probe``: how well a linear classifier reads the class from a layer, step by step."""

from pathlib import Path

import typer

from cli.options import Checkpoint, Data, Device, Grid, Heads, RunTokenizer, Weights


def probe(
    ckpt: Checkpoint = None,
    layer: str = typer.Option(
        None,
        help="Layer 1 to L (output of that block), several (2,4,6), or all.  "
        "\\[default: half the depth, the paper's 6 of 12]",
    ),
    steps: int = typer.Option(8, help="Number of uniformly spaced steps, the last being T."),
    data: Data = None,
    tokenizer: RunTokenizer = None,
    weights: Weights = "teacher",
    out: Path = typer.Option(None, help="Folder for csv, json, PNG and PDF.  \\[default: RUN/probe]"),
    heads: Heads = None,
    grid: Grid = None,
    device: Device = "auto",
) -> None:
    """Linear probes on frozen features under the null class, with 95 % intervals (Figures 1(b), 4).

    Step t has seen the class position and tokens 1 to t-1. Standardised multinomial logistic
    regression; its strength is chosen on the validation split, the accuracy is that of the test split.
    """
    from cli.opening import data_name, open_checkpoint, output_folder, tokenizer_path
    from cli.screen import Stages, console, print_rows
    from probes.features import parse_layers, uniform_steps
    from probes.linear import probe as run
    from probes.results import write_result
    from star.prepare import prepare_data
    from star.transformer import check_layers
    from viz.probe import probe_curves
    from viz.probe_maps import probe_heatmap
    from viz.style import save

    loaded = open_checkpoint(ckpt, weights, device, heads, grid)
    layer = str(max(1, loaded.model.config.layers // 2)) if layer is None else layer
    layers = parse_layers(layer, loaded.model.config.layers)
    check_layers(loaded.model.config, layers)
    chosen = uniform_steps(loaded.model.config.tokens, steps)
    with Stages() as stages:
        prepared = prepare_data(
            data_name(loaded, data),
            tokenizer=tokenizer_path(loaded.path.parent, tokenizer),
            device=device if device != "auto" else str(loaded.model.output.weight.device),
            on_progress=stages.report,
            on_message=stages.message,
        )
        probed = run(
            loaded,
            prepared.stores,
            layers=layers,
            steps=chosen,
            on_progress=lambda done, total: stages.report("probe", done, total),
        )
    table = probed.result.table
    rows = [
        [str(row.layer), str(row.step), f"{100 * row.accuracy:.1f}",
         f"{100 * row.low:.1f} to {100 * row.high:.1f}", str(row.n)]
        for row in table.itertuples()
    ]  # fmt: skip
    print_rows("linear probe, test split", ["layer", "step", "accuracy %", "95 % interval", "n"], rows)
    folder = output_folder(loaded, out, "probe")
    which = layer if layer == "all" else "-".join(map(str, layers))
    name = f"probe-layer-{which}-{weights}"
    written = write_result(probed.result, folder / f"{name}.csv")
    tokens, chance = loaded.model.config.tokens, probed.result.info["chance"]
    model_name = loaded.objective_name
    if len(layers) == 1:
        figure = probe_curves({model_name: table}, layers[0], total_steps=tokens, chance=chance)
    else:
        figure = probe_heatmap(table, title=f"Probe accuracy (%) by layer and step: {model_name}")
    written += save(figure, folder / name)
    console.print("written: " + ", ".join(str(path) for path in written), highlight=False)
