"""The settings of a training run, each written once; flags are made from them.

`from_flags` makes a run's `Config`: a setting comes from its flag, else from
`--preset`, else from the defaults here.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np
from absl import flags

from experiments import common, paper
from robustlip import augmentations, methods, models, released
from robustlip.datasets import Dataset

FLAGS = flags.FLAGS
OPTIMIZERS = ('sgd', 'nesterov', 'adam')
SCHEDULES = ('milestones', 'onecycle', 'cosine')
# A few epochs of a small network on any data set.
QUICK = dict(
  epochs=3,
  schedule='onecycle',
  optimizer='nesterov',
  learning_rate=0.02,
  inner_steps=3,
  eval_examples=1000,
)
WEIGHTS = ('lam', 'beta', 'mu', 'kappa')  # of the terms of a loss
# Traced settings: runs that differ only in these and the seed share a program.
NUMBERS = ('epsilon', 'learning_rate', *WEIGHTS)


def setting(
  default: Any,
  text: str,
  *,
  choices: Collection[str] = (),
  lower: float | None = None,
  upper: float | None = None,
) -> Any:
  """A field, with a flag of its name unless `text`, the help, is empty."""
  about = dict(text=text, choices=choices, lower=lower, upper=upper)
  return dataclasses.field(default=default, metadata=about)


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that decides the numbers of a run.

  Raises:
    ValueError: for settings that cannot be trained with.
  """

  dataset: str = setting('mnist5k', '')
  arch: str = setting('cnn1', 'cnn1, cnn2, resnet26, wrn_<depth>_<width>, ...')
  method: str = setting('rst', 'How to train.', choices=released.METHODS)
  epsilon: float = setting(0.1, common.RADIUS, lower=0, upper=1)
  lam: float = setting(0.0, 'Weight in rst, gr and llr.', lower=0)
  beta: float = setting(0.0, 'Weight in trades.', lower=0)
  mu: float = setting(0.0, 'Weight of the slope in llr.', lower=0)
  kappa: float = setting(
    0.0,
    'Final weight of the clean loss, in ibp and crown_ibp.',
    lower=0,
    upper=1,
  )
  seed: int = setting(
    0, 'Seed of everything that is random.', lower=0, upper=2**32 - 1
  )
  epochs: int = setting(5, 'Epochs.', lower=1)
  batch_size: int = setting(
    64, 'Examples to a step, over all devices.', lower=1
  )
  optimizer: str = setting('sgd', 'Optimizer.', choices=OPTIMIZERS)
  learning_rate: float = setting(
    0.01, 'Largest rate, for a loss averaged over the batch.', lower=0
  )
  momentum: float = setting(0.9, "SGD's momentum, Adam's b1.", lower=0, upper=1)
  schedule: str = setting(
    'milestones',
    'How the rate falls: tenfold at --milestones, up and down once, or as a '
    'cosine.',
    choices=SCHEDULES,
  )
  milestones: tuple[int, ...] = setting(
    (4,),
    'Epochs at which the rate falls tenfold; `--milestones=`: none.',
    lower=0,
  )
  augment: str = setting(
    'none',
    'Augmentations of training images, one after the other: of '
    f'{", ".join(augmentations.AUGMENTATIONS)}.',
  )
  cutmix: float = setting(
    0.0,
    'Probability that a training image is mixed with another (CutMix); the '
    'loss mixes their labels, and an attack takes that of the larger part.',
    lower=0,
    upper=1,
  )
  label_smoothing: float = setting(
    0.0,
    'Weight of the uniform distribution in the labels, in the loss alone.',
    lower=0,
    upper=1,
  )
  weight_decay: float = setting(
    0.0, "L2 penalty of SGD, as PyTorch's; decoupled in Adam.", lower=0
  )
  awp: float = setting(
    0.0,
    'Length of the adversarial weight perturbation, relative to the weights.',
    lower=0,
  )
  ema: float = setting(
    0.0,
    'Decay of an exponential average of the weights, which is then measured.',
    lower=0,
    upper=0.999999,
  )
  swa: float = setting(
    0.0,
    'Fraction of the training after which the weights at the end of each epoch '
    'are averaged; their mean is then measured.',
    lower=0,
    upper=1,
  )
  epsilon_warmup: float = setting(
    0.0, 'Epochs in which the radius of the attack grows from 0.', lower=0
  )
  dropout: float | None = setting(
    None,
    "Rate at the network's dropout positions; default: the paper's standard "
    'network (0.25 and 0.5 in cnn1, 0.5 in cnn2, none in the others).',
    lower=0,
    upper=0.99,
  )
  activation: str = setting(
    'relu', 'Nonlinearity of the network.', choices=models.ACTIVATIONS
  )
  inner_steps: int = setting(
    10,
    'Steps of the attack in training, of 2 epsilon together, in at, rst and '
    'trades.',
    lower=1,
  )
  attack_mode: str = setting(
    'eval',
    'Mode of the network inside the training attack; the released code of the '
    'paper uses `train` for at and rst.',
    choices=('eval', 'train'),
  )
  precision: str = setting(
    'float32', 'Type of the computation.', choices=('float32', 'bfloat16')
  )
  train_examples: int = setting(
    0,
    'Number of training examples: the first of each class, equally many; 0 for '
    'all.',
    lower=0,
  )
  holdout: int = setting(
    0,
    'Training examples held out to choose the checkpoint kept as best.',
    lower=0,
  )
  accumulate: int = setting(
    1,
    'Slices of a batch computed one after the other, to save memory.',
    lower=1,
  )
  remat: bool = setting(
    False,
    'Recompute the features of each residual block in the backward pass: less '
    'memory, a third more time.',
  )
  eval_examples: int = setting(
    0,
    'Examples of each split measured at the end, drawn at random; 0 for all.',
    lower=0,
  )
  start: str = setting(
    '', 'Folder of a run from whose last weights training starts.'
  )
  train_on: str = setting('train', '', choices=('train', 'train+test'))
  fingerprint: str | None = setting(None, '')  # of a data set that can change

  def __post_init__(self):
    """Checks every setting against its bounds and choices."""
    for field in dataclasses.fields(self):
      value, about = getattr(self, field.name), field.metadata
      values = value if isinstance(value, tuple) else (value,)
      for one in values:
        _check(
          field.name, one, about['choices'], about['lower'], about['upper']
        )
    augmentations.augmentation(self.augment)
    if self.ema and self.swa:
      raise ValueError('--ema and --swa are two averages: one is the network')
    method = released.METHODS[self.method]
    if method in (methods.ibp, methods.crown_ibp):
      drops = self.dropout is None and self.arch in models.WITH_DROPOUT
      if self.dropout or drops:
        raise ValueError(f'--method={self.method} needs --dropout=0')
      if self.cutmix or self.label_smoothing:
        raise ValueError(
          f'--method={self.method} bounds the loss of one label: it takes no '
          '--cutmix and no --label_smoothing'
        )
    steps = type(self).inner_steps
    if self.inner_steps != steps and not methods.accepts(method, 'num_steps'):
      raise ValueError(f'--inner_steps means nothing to {self.method}')
    if self.epsilon_warmup and not methods.has_radius(method):
      raise ValueError(f'--epsilon_warmup means nothing to {self.method}')
    self.network(num_classes=2)

  def network(self, num_classes: int) -> nn.Module:
    """The Linen module that the settings name, for so many classes."""
    return models.build(
      self.arch,
      num_classes,
      dropout_rate=self.dropout,
      dtype=self.precision,
      activation=self.activation,
      remat=self.remat,
    )

  @property
  def weights(self) -> dict[str, float]:
    """The weights that the method reads."""
    names = methods.weights(released.METHODS[self.method])
    return {name: getattr(self, name) for name in names}

  @property
  def static(self) -> 'Config':
    """The settings that are compiled in; the seed and `NUMBERS` are 0."""
    return dataclasses.replace(self, seed=0, **dict.fromkeys(NUMBERS, 0.0))

  def to_json(self) -> dict[str, Any]:
    """The settings as values of JSON, as `from_json` takes them."""
    return common.plain(dataclasses.asdict(self))


def _check(name, value, choices, lower, upper) -> None:
  if isinstance(value, str) and choices and value not in choices:
    raise ValueError(f'--{name}={value}: one of {", ".join(choices)}')
  if not isinstance(value, int | float):
    return
  if not math.isfinite(value):
    raise ValueError(f'--{name} must be finite, got {value}')
  if lower is not None and value < lower:
    raise ValueError(f'--{name} must be at least {lower}, got {value}')
  if upper is not None and value > upper:
    raise ValueError(f'--{name} must be at most {upper}, got {value}')


def from_json(record: dict[str, Any]) -> Config:
  """The settings that `to_json` gave, or those in a record of the run.

  Raises:
    ValueError: if they are not the settings of a run.
  """
  names = {field.name for field in dataclasses.fields(Config)}
  found = {k: v for k, v in record.items() if k in names}
  try:
    return Config(**found | {'milestones': tuple(found['milestones'])})
  except (KeyError, TypeError) as error:
    raise ValueError(f'not the settings of a run: {error}') from None


def read(path: pathlib.Path) -> Config:
  """The settings of the run in the folder `path`.

  Raises:
    ValueError: if there are none.
  """
  file = path / 'config.json'
  if not file.exists():
    raise ValueError(f'{path} is not the folder of a run: no config.json in it')
  record = common.read_json(file)
  try:
    return from_json(record)
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from None


def check_data(path: pathlib.Path, settings: Config, dataset: Dataset) -> None:
  """Raises ValueError if the run in `path` was trained on other data."""
  found = dataset.fingerprint or dataset.source
  if (settings.fingerprint or settings.dataset) != found:
    raise ValueError(
      f'{path} was trained on other data ({settings.dataset}) than '
      f'{dataset.source}'
    )


def check_network(
  path: pathlib.Path, settings: Config, dataset: Dataset, variables: Any
) -> None:
  """Raises ValueError if the variables in `path` are of another network.

  They are if the user's file has named further classes since.
  """
  module = settings.network(count := len(dataset.class_names))
  shape = (1, *dataset.test.images.shape[1:])
  try:
    jax.eval_shape(models.logits_fn(module, variables), np.zeros(shape, 'f'))
  except flax.errors.FlaxError as error:
    raise ValueError(
      f'{path} has another network than {settings.arch} of the {count} classes '
      f'that {dataset.source} has now'
    ) from error


def define(
  *, without: tuple[str, ...] = (), several: tuple[str, ...] = ()
) -> None:
  """Defines `--preset` and a flag for each setting, its default None.

  Args:
    without: settings that have no flag.
    several: numbers whose flag is a list of them.
  """
  flags.DEFINE_enum(
    'preset',
    'quick',
    ['quick', 'paper', 'short'],
    'Source of settings that are not given: `quick`, a few epochs of a small '
    'network; `paper`, the published schedule of data set and method; `short`, '
    'a schedule that trains a network in a fraction of it.',
  )
  flags.DEFINE_integer(
    'seeds', 1, 'Number of runs with consecutive seeds from --seed on.', 1
  )
  for field in dataclasses.fields(Config):
    text, choices = field.metadata['text'], field.metadata['choices']
    if not text or field.name in without:
      continue
    if field.name in several:
      text = f'{text.removesuffix(".")}, or several.'
      flags.DEFINE_list(field.name, None, text)
    elif choices:
      flags.DEFINE_enum(field.name, None, choices, text)
    else:
      _DEFINE[field.type](field.name, None, text)


_DEFINE = {
  str: flags.DEFINE_string,
  int: flags.DEFINE_integer,
  bool: flags.DEFINE_bool,
  float: functools.partial(flags.DEFINE, common.Number()),
  float | None: functools.partial(flags.DEFINE, common.Number()),
  tuple[int, ...]: flags.DEFINE_list,
}


def given() -> dict[str, Any]:
  """The settings that flags name.

  Raises:
    ValueError: if a list has something else than integers.
  """
  names = [x.name for x in dataclasses.fields(Config) if x.name in FLAGS]
  found = {name: FLAGS[name].value for name in names if FLAGS[name].present}
  if 'milestones' in found:
    found['milestones'] = tuple(numbers('milestones', int))
  return found


def numbers(name: str, kind: Callable[[str], Any]) -> list[Any] | None:
  """The numbers of a list flag, None if it is not given.

  Raises:
    ValueError: unless they are numbers that differ in the six digits used in
      names of folders.
  """
  texts = FLAGS[name].value
  if texts is None:
    return None
  try:
    values = [kind(text) for text in texts]
  except ValueError as error:
    raise ValueError(f'--{name}={",".join(texts)}: {error}') from None
  if len({f'{value:g}' for value in values}) < len(values):
    raise ValueError(f'--{name} names a number twice: {values}')
  return values


def seeds() -> range:
  """The seeds that the flags ask for."""
  first = FLAGS.seed or 0
  return range(first, first + FLAGS.seeds)


def preset(name: str, dataset: Dataset, method: str) -> dict[str, Any]:
  """The settings of a preset that override the defaults.

  Raises:
    ValueError: if it has none for the data set.
  """
  own = methods.weights(released.METHODS[method])
  known = {
    'quick': {dataset.name: QUICK},
    'paper': paper.SETUPS,
    'short': paper.SHORT,
  }[name]
  if dataset.name not in known:
    raise ValueError(
      f'--preset={name} knows {", ".join(known)}, not {dataset.name!r}'
    )
  of_method = paper.OF_METHOD.get((dataset.name, method), {})
  if name != 'paper':  # the published rates are for the published schedule
    of_method = {k: v for k, v in of_method.items() if k in own}
  found = own | known[dataset.name] | of_method
  if not methods.accepts(released.METHODS[method], 'num_steps'):
    found.pop('inner_steps', None)
  return found


def from_flags(dataset: Dataset, /, **overrides: Any) -> Config:
  """Settings from `overrides`, else flags, else the preset, else the defaults.

  Raises:
    ValueError: for settings that do not fit the data set or one another.
  """
  chosen = given() | overrides
  method = chosen.get('method', Config.method)
  chosen['dataset'] = dataset.source
  chosen['fingerprint'] = dataset.fingerprint
  if 'epsilon' not in chosen:
    chosen['epsilon'] = common.radius(dataset)
  base = preset(FLAGS.preset, dataset, method)
  settings = base | chosen
  for name in WEIGHTS:
    if name in chosen and name not in base:
      raise ValueError(f'--{name} means nothing to --method={method}')
  found = Config(**settings)
  if 'milestones' in given() and found.schedule != 'milestones':
    raise ValueError(
      f'--milestones are of --schedule=milestones, not of {found.schedule}'
    )
  if found.epsilon_warmup > found.epochs:
    raise ValueError(
      f'--epsilon_warmup={found.epsilon_warmup:g} is longer than the '
      f'{found.epochs} epochs: the radius would not reach --epsilon'
    )
  return found


def name(config: Config, dataset: Dataset) -> str:
  """A short name for the folder of a run: settings that the preset lacks."""
  parts = [dataset.name, config.arch, config.method]
  parts += [f'{k}{v:g}' for k, v in config.weights.items()]
  if config.dropout is not None:
    parts.append(f'dropout{config.dropout:g}')
  parts += [f'eps{config.epsilon:g}', f'seed{config.seed}']
  if FLAGS.preset != 'quick':
    parts.append(f'preset{FLAGS.preset}')
  usual = Config(**preset(FLAGS.preset, dataset, config.method))
  said = {'arch', 'method', 'epsilon', 'seed', 'dropout', *config.weights}
  for field in dataclasses.fields(Config):
    value = getattr(config, field.name)
    if not field.metadata['text'] or field.name in said:
      continue
    if value != getattr(usual, field.name):
      value = '_'.join(map(str, value)) if isinstance(value, tuple) else value
      value = pathlib.Path(value).name if field.name == 'start' else value
      parts.append(f'{field.name}{value}'.replace(',', '+'))
  return '-'.join(parts).replace('[', '(').replace(']', ')')
