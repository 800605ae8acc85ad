"""Pictures of a separation search: Figures 1 and 3, closest pairs, classes."""

import numpy as np

from experiments import plots
from robustlip import drawing, projections
from robustlip.images import from_bytes

MOST_COLUMNS = 6
ABOVE_IMAGE = 11  # most letters of a name above an image
PART_TITLES = {'train_train': 'train - train', 'test_train': 'test - train'}


def _text(name: str, longest: int = 20) -> str:
  """A name cut to `longest` letters, with only printable characters."""
  name = name.encode(errors='replace').decode().replace('\n', ' ')
  return name if len(name) <= longest else f'{name[: longest - 1]}\u2026'


def histograms(path, found, record) -> None:
  """Figure 3: distances to the nearest training example of another class."""
  figure = drawing.figure(8, 3.3)
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
        loc='upper center', bbox_to_anchor=(0.5, -0.22), ncols=2, fontsize=8
      )
  plots.save(figure, path)


def closest(path, train, test, pairs, class_names) -> None:
  """The closest pairs of both comparisons, one image above the other.

  Without two classes there is no picture.
  """
  rows, titles = {}, {}
  for part, queries in {'train_train': train, 'test_train': test}.items():
    found = pairs[part]
    sides = {'image': (queries, found.rows), 'nearest': (train, found.cols)}
    for side, ((images, labels), indices) in sides.items():
      name, indices = f'{PART_TITLES[part]}\n{side}', indices[:MOST_COLUMNS]
      rows[name] = _shown(images[indices])
      chosen = labels[indices]
      titles[name] = [_text(class_names[x], ABOVE_IMAGE) for x in chosen]
    titles[name] = [  # of the nearest
      f'{label}\n{distance:.3f}'
      for label, distance in zip(titles[name], found.distances, strict=False)
    ]
  if any(map(len, rows.values())):
    plots.save(drawing.images(rows, titles), path)


def _shown(images: np.ndarray) -> np.ndarray:
  """One or three channels; any other number is averaged."""
  if images.shape[-1] in (1, 3):
    return images
  return images.mean(axis=-1, keepdims=True).astype(images.dtype)


def moved(path, train, record, class_names) -> None:
  """Figure 1: the first image of each class moved by 2r towards the next one.

  Two rows: along the straight line, which the paper seems to do, and to the
  point of the ball nearest to the other image. 2r is the smallest distance
  between two classes; without two classes there is no picture.
  """
  distance, norm = record['train_train_min'], record['norm']
  if distance is None:
    return
  images, labels = train
  present, firsts = np.unique(labels, return_index=True)
  starts = from_bytes(images[firsts])
  ends = np.roll(starts, -1, axis=0)
  lengths = projections.norms(ends - starts, norm=norm)
  shares = distance / np.maximum(lengths, 1e-12)  # images may be equal
  shares = projections.per_example(shares, starts)
  rows = {
    'image': starts,
    'moved on the line': np.clip(starts + shares * (ends - starts), 0, 1),
    'moved as near\nas it gets': projections.ball(
      ends, starts, epsilon=distance, norm=norm
    ),
    'towards': ends,
  }
  rows = {k: _shown(np.asarray(x))[:MOST_COLUMNS] for k, x in rows.items()}
  names = [_text(class_names[label], ABOVE_IMAGE) for label in present]
  titles = {'image': names, 'towards': np.roll(names, -1)}
  figure = drawing.images(rows, titles)
  figure.suptitle(f'Moved by 2r = {distance:.3f} ({norm})')
  plots.save(figure, path)


def matrix(path, distances, class_names) -> None:
  """The smallest distance between each pair of classes."""
  size = len(class_names)
  figure = drawing.figure(7, 6)
  axes = figure.subplots()
  finite = np.where(np.isfinite(distances), distances, np.nan)
  image = axes.imshow(finite, cmap='viridis', aspect='auto')  # else cut
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
