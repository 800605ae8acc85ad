r"""Makes the subset of MNIST that ships with the package, `mnist5k`.

  python -m experiments.embed_mnist --data_dir=DIR

reads the published MNIST files in DIR/mnist and writes the first 500 training
and the first 100 test images of each class, in the order of the files, to
robustlip/datasets/mnist5k.npz: 5,000 + 1,000 images, under 2 MB; the same
bytes every time. 5 seconds on two cores. Source: Y. LeCun, C. Cortes,
C. J. C. Burges, the MNIST database; licence CC BY-SA 3.0.
"""

import pathlib

import numpy as np
from absl import flags

from experiments import common, provenance
from robustlip import datasets

flags.declare_key_flag(common.DATA_DIR)
_OUTPUT = flags.DEFINE_string(
  'output', str(datasets.EMBEDDED), 'The .npz file to write.'
)
_RECORD = provenance.RESULTS / 'embed_mnist.json'
_TRAIN_PER_CLASS = 500
_TEST_PER_CLASS = 100


def first_of_each_class(labels: np.ndarray, per_class: int) -> np.ndarray:
  """Sorted indices of the first `per_class` examples of every class."""
  chosen = [
    np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)
  ]
  return np.sort(np.concatenate(chosen))


def main() -> None:
  """Writes the subset and prints what is in it."""
  path = pathlib.Path(_OUTPUT.value)
  common.output_folder(path.parent)
  mnist = datasets.load('mnist', data_dir=common.DATA_DIR.value)
  train = first_of_each_class(mnist.train.labels, _TRAIN_PER_CLASS)
  test = first_of_each_class(mnist.test.labels, _TEST_PER_CLASS)
  partial = path.with_name(path.name + '.partial.npz')
  np.savez_compressed(
    partial,
    train_images=mnist.train.images[train],
    train_labels=mnist.train.labels[train].astype(np.uint8),
    test_images=mnist.test.images[test],
    test_labels=mnist.test.labels[test].astype(np.uint8),
  )
  partial.replace(path)
  record = {
    'script': 'embed_mnist',
    'output': path.name,
    'num_train': len(train),
    'num_test': len(test),
    'last_train_index': train[-1],
    'last_test_index': test[-1],
    'bytes': path.stat().st_size,
    **provenance.record(),
  }
  embedded = path == datasets.EMBEDDED
  common.finish(record, _RECORD if embedded else path.with_suffix('.json'))


if __name__ == '__main__':
  common.run(main)
