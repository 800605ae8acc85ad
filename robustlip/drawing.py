"""Pictures for a notebook: images, perturbations and curves.

Each function returns a matplotlib figure, which a notebook shows by itself;
matplotlib is imported where one is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import chex
import numpy as np


def figure(width: float, height: float):
  """An empty figure, in inches."""
  import matplotlib.figure

  return matplotlib.figure.Figure((width, height), layout='constrained')


def images(
  rows: Mapping[str, chex.Array],
  titles: Mapping[str, Sequence[str]] | None = None,
):
  """A row of images for each entry, its name at the left.

  Args:
    rows: name -> images [N, H, W, 1 or 3], uint8 or floats in [0, 1]; floats
      below 0 make the row one of perturbations, drawn from blue (most negative)
      over white to red, channels averaged.
    titles: name -> what stands above each image of that row.

  Raises:
    ValueError: for images of another number of channels.
  """
  count = max(len(row) for row in rows.values())
  canvas = figure(0.9 * count + 1, 0.9 * len(rows))
  grid = canvas.subplots(len(rows), count, squeeze=False)
  for axes in grid.flat:
    axes.axis('off')
  for (name, row), line in zip(rows.items(), grid, strict=True):
    row = np.asarray(row)
    if row.ndim != 4 or row.shape[-1] not in (1, 3):
      raise ValueError(
        f'{name}: images must be [N, H, W, 1 or 3], got {row.shape}.'
      )
    style = dict(cmap='gray', vmin=0, vmax=255 if row.dtype == np.uint8 else 1)
    if row.dtype != np.uint8 and row.min() < 0:
      row = row.mean(axis=-1, keepdims=True)
      largest = np.abs(row).max()
      style = dict(cmap='bwr', vmin=-largest, vmax=largest)
    for axes, image in zip(line, row, strict=False):
      axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, **style)
    for axes, title in zip(line, (titles or {}).get(name, ()), strict=False):
      axes.set_title(title, fontsize='small', parse_math=False)
    line[0].text(
      *(-0.1, 0.5, name),
      ha='right',
      va='center',
      transform=line[0].transAxes,
      parse_math=False,
    )
  return canvas


def curves(
  x: chex.Array,
  ys: Mapping[str, chex.Array],
  *,
  xlabel: str,
  ylabel: str,
):
  """A line for each entry of `ys`, with a legend."""
  canvas = figure(5, 3.2)
  axes = canvas.subplots()
  for name, values in ys.items():
    axes.plot(x, values, '.-', label=name)
  axes.set(xlabel=xlabel, ylabel=ylabel)
  axes.legend(frameon=False)
  axes.spines[['top', 'right']].set_visible(False)
  return canvas
