r"""Appendix C: an accurate and robust network for train and test set exists.

  python -m experiments.proof_of_concept --dataset=mnist --preset=paper

trains RST(4) on the training and the test set together, which is the point:
existence, not generalization, and the record says so. Accuracy and astuteness
under PGD-10 and the multi-targeted attack on both sets, beside the certificate
of the distance classifier whose classes are both sets. The paper's own numbers
were not to be found. The same command again goes on or prints the result.
"""

import pathlib

from absl import flags

from experiments import common
from experiments.networks import concept, runs, train_flags
from robustlip import datasets

flags.adopt_module_key_flags(train_flags)
flags.adopt_module_key_flags(runs)
flags.declare_key_flag(common.DATASET)
flags.declare_key_flag(common.DATA_DIR)
flags.declare_key_flag(common.PROTOCOL)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of runs and records. Default: runs/<preset>.'
)


def main() -> None:
  """One data set, one record."""
  root = pathlib.Path(WORKDIR.value or f'runs/{train_flags.PRESET.value}')
  dataset = datasets.load(common.DATASET.value, data_dir=common.DATA_DIR.value)
  name = f'proof_of_concept-{pathlib.Path(dataset.name).stem}.json'
  common.finish(concept.record(dataset, root), root / name)


if __name__ == '__main__':
  common.run(main)
