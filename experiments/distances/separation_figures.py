"""Pictures of a separation search: Figure 3, closest pairs, class matrix."""

from typing import Any

import numpy as np

PART_TITLES = {'train_train': 'train - train', 'test_train': 'test - train'}


def figures(data, train, test, found, pairs, matrix, record) -> dict[str, Any]:
  """All figures of one data set, by the name of what they show."""
  shown = {'train_train': (train, train), 'test_train': (test, train)}
  return {
    'histogram': _histograms(found, record),
    'closest_pairs': _pairs(shown, pairs, data.class_names),
    'class_matrix': _matrix(matrix, data.class_names),
  }


def _histograms(found, record):
  import matplotlib.figure

  figure = matplotlib.figure.Figure((8, 3.3), layout='constrained')
  for axes, (part, neighbors) in zip(
    figure.subplots(1, 2), found.items(), strict=True
  ):
    distances = neighbors.distances[np.isfinite(neighbors.distances)]
    top = 1.0 if record['norm'] == 'linf' else None
    widest = top or distances.max(initial=0) or 1.0
    axes.hist(distances, bins=20, range=(0, widest), color='0.75')
    if distances.size:
      smallest = distances.min()
      axes.axvline(smallest, color='C0', label=f'minimum {smallest:.3f}')
    if record['epsilon']:
      radius = 2 * record['epsilon']
      axes.axvline(
        radius, color='C3', linestyle='--', label=f'2 epsilon = {radius:.3g}'
      )
    axes.set(
      title=f'{record["dataset"]}: {PART_TITLES[part]}',
      xlabel='distance to the nearest training example of another class',
      ylabel='examples',
      xlim=(0, top),
    )
    axes.xaxis.label.set_size(8)
    if axes.get_legend_handles_labels()[0]:
      axes.legend(
        frameon=False,
        loc='upper center',
        bbox_to_anchor=(0.5, -0.22),
        ncols=2,
        fontsize=8,
      )
    axes.spines[['top', 'right']].set_visible(False)
  return figure


def _pairs(shown, pairs, class_names):
  """One column for each pair, one above the other; both comparisons."""
  import matplotlib.figure

  count = min(6, *(len(found.rows) for found in pairs.values()))
  figure = matplotlib.figure.Figure(
    (1 + 1.5 * max(count, 1), 8), layout='constrained'
  )
  halves = figure.subfigures(2, 1)
  for half, (part, found) in zip(halves, pairs.items(), strict=True):
    half.suptitle(f'Closest pairs, {PART_TITLES[part]}')
    if not count:
      continue
    grid = half.subplots(2, count, squeeze=False)
    for place in range(count):
      indices = found.rows[place], found.cols[place]
      for axes, side, index in zip(
        grid[:, place], shown[part], indices, strict=True
      ):
        image = side[0][index]
        gray = image.shape[-1] == 1
        axes.imshow(
          image[..., 0] if gray else image,
          cmap='gray' if gray else None,
          interpolation='nearest',
        )
        axes.set_axis_off()
        axes.set_title(class_names[side[1][index]], fontsize=9)
      grid[0, place].set_title(
        f'{found.distances[place]:.3f}\n' + grid[0, place].get_title(),
        fontsize=9,
      )
  return figure


def _matrix(matrix, class_names):
  import matplotlib.figure

  size = len(class_names)
  figure = matplotlib.figure.Figure((7, 6), layout='constrained')
  axes = figure.subplots()
  finite = np.where(np.isfinite(matrix), matrix, np.nan)
  image = axes.imshow(finite, cmap='viridis')
  figure.colorbar(image, ax=axes, label='smallest distance, train - train')
  axes.set_xticks(range(size), class_names, rotation=45, ha='right')
  axes.set_yticks(range(size), class_names)
  for i, j in np.argwhere(np.isfinite(finite)) if size <= 12 else ():
    dark = finite[i, j] < (np.nanmin(finite) + np.nanmax(finite)) / 2
    axes.text(
      j,
      i,
      f'{finite[i, j]:.2f}',
      ha='center',
      va='center',
      fontsize=8,
      color='white' if dark else 'black',
    )
  return figure
