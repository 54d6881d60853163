"""Attention maps as data beside the picture: a long table for a few steps, arrays for all of them.

Place 0 is the class token, places 1..T the image tokens in raster order; step t sees places 0..t-1.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from probes.attention.maps import AttentionMaps
from probes.results import Result
from star.base.files import publish_file, write_json
from star.base.names import shown, shown_values

__all__ = ["maps_result", "write_map_arrays"]


def maps_result(found: Mapping[str, AttentionMaps], image: str, head: int | str, info: dict) -> Result:
    """One row a weight that a query could give: model, image, layer, head, step, place, weight.

    ``found``: the maps of each model on ``image``; with ``head`` ``all`` the column counts from 1.
    """
    tables = []
    for model, maps in found.items():
        every = maps.maps.ndim == 4
        values = maps.maps if every else maps.maps[:, None]
        classes = maps.class_weights if every else maps.class_weights[:, None]
        weights = np.concatenate([classes[..., None], values], axis=-1)  # (L, H, K, 1 + T)
        seen = np.arange(weights.shape[-1]) < np.array(maps.steps)[:, None]  # (K, 1 + T)
        layer, number, step, place = np.nonzero(np.broadcast_to(seen, weights.shape))
        tables.append(
            pd.DataFrame(
                {
                    "model": model,
                    "image": image,
                    "layer": np.array(maps.layers)[layer],
                    "head": number + 1 if every else head,
                    "step": np.array(maps.steps)[step],
                    "place": place,
                    "weight": weights[layer, number, step, place],
                }
            )
        )
    return Result(pd.concat(tables, ignore_index=True), info)


def write_map_arrays(found: Mapping[str, AttentionMaps], path: Path, info: dict) -> list[Path]:
    """Write ``path`` (``.npz``) and its ``.json``: what a GIF shows, too long for a table.

    ``models`` (M,), ``layers`` (L,), ``maps`` (M, L, T, T) by step and image token, ``class_weights``
    (M, L, T). All models have the same layers and tokens.
    """
    path = path.with_suffix(".npz")
    write_json(path.with_suffix(".json"), shown_values(info))
    with publish_file(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            models=np.array([shown(name) for name in found]),
            layers=np.array(next(iter(found.values())).layers),
            maps=np.stack([maps.maps for maps in found.values()]),
            class_weights=np.stack([maps.class_weights for maps in found.values()]),
        )
    return [path, path.with_suffix(".json")]
