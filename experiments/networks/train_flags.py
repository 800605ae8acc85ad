"""The flags of every script that trains, and the settings that they ask for.

What is not given comes from `--preset`.
"""

from typing import Any

from absl import flags

from experiments import common, paper
from experiments.networks import measure
from robustlip.datasets import Dataset
from robustlip.images import AUGMENTATIONS
from robustlip.methods import WEIGHTS
from robustlip.training import OPTIMIZERS

QUICK = paper.Setup(
  arch='cnn1',
  optimizer='sgd',
  momentum=0.9,
  batch_size=64,
  epochs=5,
  milestones=(4,),
  learning_rate=0.01,
  augment='none',
  method_settings={},
  dropout=0.2,
)

flags.declare_key_flag(common.EPSILON)
flags.declare_key_flag(common.SEED)
SEEDS = flags.DEFINE_integer(
  'seeds',
  1,
  'Number of runs with consecutive seeds from --seed on, all in one program.',
  lower_bound=1,
)
PRESET = flags.DEFINE_enum(
  'preset',
  'quick',
  ['quick', 'paper'],
  'Where settings that are not given come from: `quick`, a few epochs of a '
  'small network, or `paper`, the published schedule of data set and method.',
)
ARCH = flags.DEFINE_string(
  'arch', None, 'cnn1, cnn2, resnet26, resnet50 or wrn_<depth>_<width>.'
)
EPOCHS = flags.DEFINE_integer('epochs', None, 'Epochs.', lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', None, 'Examples to a step, over all devices.', lower_bound=1
)
OPTIMIZER = flags.DEFINE_enum(
  'optimizer', None, sorted(OPTIMIZERS), 'Optimizer.'
)
LEARNING_RATE = flags.DEFINE_float(
  'learning_rate', None, 'For a mean loss.', lower_bound=0.0
)
MOMENTUM = flags.DEFINE_float(
  'momentum', None, "SGD's momentum, Adam's b1.", 0.0, 1.0
)
MILESTONES = flags.DEFINE_list(
  'milestones',
  None,
  'Epochs at which the learning rate falls tenfold; `--milestones=`: none.',
)
SCHEDULE = flags.DEFINE_enum(
  'schedule',
  'milestones',
  ['milestones', 'onecycle'],
  'How the learning rate falls: tenfold at --milestones, or up and down once.',
)
AUGMENT = flags.DEFINE_enum(
  'augment', None, sorted(AUGMENTATIONS), 'Augmentation of training images.'
)
DROPOUT = flags.DEFINE_float(
  'dropout',
  None,
  "Rate at the network's dropout positions; default: the paper's standard "
  'network (0.25 and 0.5 in cnn1, 0.5 in cnn2, none in the others).',
  lower_bound=0.0,
  upper_bound=0.99,
)
ATTACK_MODE = flags.DEFINE_enum(
  'attack_mode',
  'eval',
  ['eval', 'train'],
  'Mode of the network inside the training attack; the released code of the '
  'paper uses `train` for at and rst.',
)
PRECISION = flags.DEFINE_enum(
  'precision',
  'float32',
  ['float32', 'bfloat16'],
  'What the network computes in.',
)
HOLDOUT = flags.DEFINE_integer(
  'holdout',
  0,
  'Training examples held out to choose the checkpoint kept as best.',
  lower_bound=0,
)
ACCUMULATE = flags.DEFINE_integer(
  'accumulate',
  1,
  'Slices of a batch computed one after the other, to save memory.',
  lower_bound=1,
)
REMAT = flags.DEFINE_bool(
  'remat',
  False,
  'Keep no features of a residual block but compute them again for the '
  'gradient: less memory, a third more time.',
)
# What is not in the name of a run as it is.
_NOT_NAMED = (
  PRESET,
  EPOCHS,
  BATCH_SIZE,
  OPTIMIZER,
  LEARNING_RATE,
  MOMENTUM,
  MILESTONES,
  SCHEDULE,
  AUGMENT,
  ATTACK_MODE,
  PRECISION,
  HOLDOUT,
  ACCUMULATE,
  REMAT,
  common.PROTOCOL,
  measure.EVAL_EXAMPLES,
)


def setup(dataset: str) -> paper.Setup:
  """The settings that `--preset` names for a data set.

  Raises:
    ValueError: if the paper has none.
  """
  if PRESET.value == 'quick':
    return QUICK
  if dataset not in paper.SETUPS:
    raise ValueError(
      f'--preset=paper knows {", ".join(paper.SETUPS)}, not {dataset!r}'
    )
  return paper.SETUPS[dataset]


def fields(dataset: Dataset, method: str, setup: paper.Setup) -> dict[str, Any]:
  """A `Config` but for its seed: what the flags say, else what `setup` does.

  Raises:
    ValueError: for a data set without a radius.
  """
  own = WEIGHTS.get(method, {}) | setup.method_settings.get(method, {})
  milestones = common.numbers(MILESTONES, int)

  def chosen(flag, default):
    return default if flag.value is None else flag.value

  return dict(
    dataset=dataset.name,
    arch=chosen(ARCH, setup.arch),
    method=method,
    epsilon=common.radius(dataset),
    lam=own.get('lam', 0.0),
    beta=own.get('beta', 0.0),
    mu=own.get('mu', 0.0),
    epochs=chosen(EPOCHS, setup.epochs),
    batch_size=chosen(BATCH_SIZE, setup.batch_size),
    optimizer=chosen(OPTIMIZER, setup.optimizer),
    learning_rate=chosen(
      LEARNING_RATE, own.get('learning_rate', setup.learning_rate)
    ),
    momentum=chosen(MOMENTUM, setup.momentum),
    milestones=tuple(setup.milestones if milestones is None else milestones),
    schedule=SCHEDULE.value,
    augment=chosen(AUGMENT, setup.augment),
    dropout=DROPOUT.value,
    protocol=common.PROTOCOL.value,
    attack_mode=ATTACK_MODE.value,
    precision=PRECISION.value,
    holdout=HOLDOUT.value,
    accumulate=ACCUMULATE.value,
    remat=REMAT.value,
    train_on='train',
    eval_examples=measure.EVAL_EXAMPLES.value or 0,
    fingerprint=dataset.fingerprint,
  )


def named() -> str:
  """What a run's name says of the flags that are given and not in it."""
  texts = []
  for flag in _NOT_NAMED:
    if flag.present:
      value = flag.value if isinstance(flag.value, list) else [flag.value]
      texts.append(f'-{flag.name}{"_".join(map(str, value))}')
  return ''.join(texts)


def seeds() -> range:
  """The seeds that the flags ask for.

  Raises:
    ValueError: if they do not fit 32 bits.
  """
  end = common.SEED.value + SEEDS.value
  if end > 2**32:
    raise ValueError(f'--seed and --seeds go up to {end - 1}, not {2**32 - 1}')
  return range(common.SEED.value, end)
