"""Pictures of a separation search: Figures 1 and 3, closest pairs, classes."""

import numpy as np

from experiments import plots
from robustlip import projections
from robustlip.images import from_bytes

MOST_COLUMNS = 6
LONGEST_NAME = 20
PART_TITLES = {'train_train': 'train - train', 'test_train': 'test - train'}


def _text(name: str) -> str:
  """A name as a picture can show it: short and printable."""
  name = name.encode(errors='replace').decode().replace('\n', ' ')
  if len(name) > LONGEST_NAME:
    name = name[: LONGEST_NAME - 1] + '\u2026'
  return name


def histograms(path, found, record) -> None:
  """Figure 3: distances to the nearest training example of another class."""
  figure = plots.figure(8, 3.3)
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
      title=f'{_text(record["dataset"])}: {PART_TITLES[part]}',
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
  plots.save(figure, path)


def closest(path, train, test, pairs, class_names) -> None:
  """One column for each pair, one above the other; both comparisons."""
  shown = {'train_train': (train, train), 'test_train': (test, train)}
  count = min(MOST_COLUMNS, *(len(found.rows) for found in pairs.values()))
  figure = plots.figure(1 + 1.5 * max(count, 1), 8)
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
        name = _text(class_names[side[1][index]])
        if axes is grid[0, place]:
          name = f'{found.distances[place]:.3f}\n{name}'
        _show(axes, side[0][index], name)
  plots.save(figure, path)


def _show(axes, image, title):
  """Three channels are colours; the mean of any other number is shown."""
  gray = image.shape[-1] != 3
  axes.imshow(
    image.mean(axis=-1) if gray else image,
    cmap='gray' if gray else None,
    interpolation='nearest',
    vmin=0,
    vmax=255 if image.dtype == np.uint8 else 1,
  )
  axes.set_axis_off()
  axes.set_title(title, fontsize=9)


def moved(path, train, record, class_names) -> None:
  """Figure 1: the first image of each class moved by 2r towards the next's.

  On the straight line, as the paper seems to, and to the nearest point of the
  ball. 2r is the smallest distance between two classes; without two classes
  there is no picture.
  """
  distance, norm = record['train_train_min'], record['norm']
  if distance is None:
    return
  images, labels = train
  present, firsts = np.unique(labels, return_index=True)
  count = min(MOST_COLUMNS, len(present))
  figure = plots.figure(1 + 1.5 * count, 7)
  figure.suptitle(f'Moved by 2r = {distance:.3f} ({norm})')
  starts = from_bytes(images[firsts])
  ends = np.roll(starts, -1, axis=0)
  lengths = projections.norms(ends - starts, norm=norm)
  shares = distance / np.maximum(lengths, 1e-12)  # images may be equal
  shares = projections.per_example(shares, starts)
  rows = {
    '{0}': starts,
    'on the line\nto {1}': starts + shares * (ends - starts),
    'as near {1}\nas it gets': projections.ball(
      ends, starts, epsilon=distance, norm=norm
    ),
    '{1}': ends,
  }
  names = [_text(class_names[label]) for label in present]
  both = list(zip(names, np.roll(names, -1), strict=True))
  grid = figure.subplots(len(rows), count, squeeze=False)
  for line, (title, images) in zip(grid, rows.items(), strict=True):
    for axes, image, pair in zip(line, images, both, strict=False):
      _show(axes, np.asarray(image), title.format(*pair))
  plots.save(figure, path)


def matrix(path, distances, class_names) -> None:
  """The smallest distance between each pair of classes."""
  size = len(class_names)
  figure = plots.figure(7, 6)
  axes = figure.subplots()
  finite = np.where(np.isfinite(distances), distances, np.nan)
  image = axes.imshow(finite, cmap='viridis')
  figure.colorbar(image, ax=axes, label='smallest distance, train - train')
  names = [_text(name) for name in class_names]
  axes.set_xticks(range(size), names, rotation=45, ha='right')
  axes.set_yticks(range(size), names)
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
  plots.save(figure, path)
