"""Curves: separation against sample size, accuracy of g against radius.

Both functions write `path`.png and .pdf.
"""

import pathlib
from typing import Any

import numpy as np

from experiments import plots
from robustlip.datasets import synthetic


def not_separated(path: pathlib.Path, seed: int) -> dict[str, Any]:
  """Separation of samples of Tsipras et al.'s distribution against their size.

  The mean of the weak features is 2 / sqrt(their number), as in the source,
  and the strong feature agrees with 95 % of the labels; were it to agree with
  all of them, the classes would be 2 apart. Means of three draws.
  """
  from scipy.spatial.distance import cdist

  sizes = np.geomspace(50, 10000, 12).astype(int)
  result = {'sizes': sizes, 'num_draws': 3}
  figure = plots.figure(6.4, 4.2)
  axes = figure.subplots()
  for num_weak, agreement in ((4, 0.95), (16, 0.95), (64, 0.95), (4, 1.0)):
    minima = []
    for draw in range(3):
      inputs, labels = synthetic.one_strong_many_weak(
        int(sizes[-1]),
        np.random.default_rng([seed, draw]),
        num_weak=num_weak,
        mean=2 / np.sqrt(num_weak),
        agreement=agreement,
      )
      gaps = cdist(inputs[labels == 0], inputs[labels == 1], 'chebyshev')
      counts = [np.bincount(labels[:size], minlength=2) for size in sizes]
      minima.append([gaps[:a, :b].min() for a, b in counts])
    name = f'{num_weak} weak features, {agreement:.0%} agreement'
    result[name] = np.mean(minima, axis=0)
    style = {'marker': 'o', 'ms': 3, 'label': name}
    axes.loglog(sizes, result[name], ls='-' if agreement < 1 else '--', **style)
  axes.set(xlabel='examples', ylabel='smallest distance between the classes')
  axes.set_yticks([0.1, 0.2, 0.5, 1, 2], ['0.1', '0.2', '0.5', '1', '2'])
  axes.minorticks_off()
  axes.legend(frameon=False)
  plots.save(figure, path)
  return result


def accuracies(path: pathlib.Path, name: str, test: dict[str, Any]) -> None:
  """Accuracy of g on the attacked test images of `name` against the radius.

  Args:
    test: what `distance_classifier.test_table` returns.
  """
  figure = plots.figure(5.6, 3.8)
  axes = figure.subplots()
  subset = test['attacked_subset']
  curve = subset['curve']
  percent = 100 * np.asarray(curve['certified'])
  axes.plot(curve['epsilons'], percent, label='certified')
  axes.axhline(100 * subset['accuracy'], color='0.5', ls='--', label='clean')
  axes.plot(test['epsilon'], 100 * subset['attacked'], 'vC3', label='attacked')
  axes.axvline(test['epsilon'], color='0.8', lw=1, zorder=0)
  axes.set(
    xlabel=f'radius (l-inf); the line is at {test["epsilon"]:g}',
    ylabel='accuracy of g (%)',
    title=f'{name}, {subset["num_attacked"]:,} test images',
    ylim=(0, 120 * subset['accuracy'] + 1),
  )
  axes.legend(frameon=False)
  plots.save(figure, path)
