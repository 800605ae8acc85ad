r"""Makes the subset of MNIST that ships with the package, `mnist5k`.

  python -m experiments.embed_mnist --data_dir=DIR

reads the published MNIST files in DIR/mnist and writes the first 500 training
and the first 100 test images of each class, in the order of the files:
5,000 + 1,000 images, under 2 MB, the same bytes every time. The package has
them as robustlip/datasets/mnist5k.npz. 5 seconds on two cores. Source:
Y. LeCun, C. Cortes, C. J. C. Burges, the MNIST database; licence CC BY-SA 3.0.
"""

import numpy as np
from absl import flags

from experiments import common, measure

FLAGS = flags.FLAGS
TRAIN_PER_CLASS = 500
TEST_PER_CLASS = 100


def define() -> None:
  """The flags of this script."""
  common.define_data_dir()
  flags.DEFINE_string(
    'output',
    'runs/embed_mnist/mnist5k.npz',
    'The .npz file to write, and the record beside it.',
  )


def main() -> None:
  """Writes the subset and prints what is in it."""
  path = common.output_file(FLAGS.output)
  mnist = common.load_dataset('mnist')
  train = measure.first_of_each_class(mnist.train.labels, TRAIN_PER_CLASS)
  test = measure.first_of_each_class(mnist.test.labels, TEST_PER_CLASS)
  np.savez_compressed(
    path,
    train_images=mnist.train.images[train],
    train_labels=mnist.train.labels[train].astype(np.uint8),
    test_images=mnist.test.images[test],
    test_labels=mnist.test.labels[test].astype(np.uint8),
  )
  record = {
    'script': 'embed_mnist',
    'output': path.name,
    'num_train': len(train),
    'num_test': len(test),
    'last_train_index': train[-1],
    'last_test_index': test[-1],
    'bytes': path.stat().st_size,
    **common.provenance(),
  }
  common.finish(record, path.with_suffix('.json'))


if __name__ == '__main__':
  common.run(main, define)
