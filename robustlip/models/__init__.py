"""The networks: functions from images in [0, 1] to logits, and nothing else.

A network is a Linen module; `module.apply(variables, inputs)` gives float32
logits in inference mode. With `train=True` it normalises by the statistics of
the batch (`mutable=['batch_stats']`) and drops units (`rngs={'dropout': key}`).
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from robustlip.images import check_least
from robustlip.models import cnn, resnet, wide_resnet
from robustlip.models.torch_weights import from_torch
from robustlip.types import LogitsFn

__all__ = [
  'ACTIVATIONS',
  'MODELS',
  'WITH_DROPOUT',
  'build',
  'from_torch',
  'init',
  'logits_fn',
]

Factory = Callable[..., nn.Module]

WITH_DROPOUT = ('cnn1', 'cnn2')  # by default
ACTIVATIONS = {'relu': jax.nn.relu, 'silu': jax.nn.silu}


# Name -> factory(num_classes, *, dropout_rate, dtype, activation).
MODELS: dict[str, Factory] = {
  'cnn1': cnn.CNN1,
  'cnn2': cnn.CNN2,
  'resnet26': functools.partial(resnet.ResNet, stage_sizes=(2, 2, 2, 2)),
  'resnet50': functools.partial(resnet.ResNet, stage_sizes=(3, 4, 6, 3)),
}


def build(
  name: str,
  num_classes: int,
  *,
  dropout_rate: float | None = None,
  dtype: jnp.dtype = jnp.float32,
  activation: str = 'relu',
  remat: bool = False,
) -> nn.Module:
  """The network of that name: one of `MODELS` or any 'wrn_<depth>_<width>'.

  Args:
    dropout_rate: rate in [0, 1) of all dropout layers; None is that of the
      paper's standard network (0.25 and 0.5 in cnn1, 0.5 in cnn2, else 0).
    dtype: type to compute in; parameters and logits stay float32.
    activation: one of `ACTIVATIONS`; relu is the paper's.
    remat: whether to recompute the features of each block in the backward
      pass: a third more time, far less memory; residual networks only.

  Raises:
    ValueError: if the name is unknown or a number is out of range.
  """
  check_least(2, num_classes=num_classes)
  if dropout_rate is not None and not 0 <= dropout_rate < 1:
    raise ValueError(f'dropout_rate must be in [0, 1), got {dropout_rate}.')
  if activation not in ACTIVATIONS:
    raise ValueError(
      f'activation must be one of {", ".join(ACTIVATIONS)}, got {activation!r}.'
    )
  factory = MODELS.get(name) or _wide_resnet(name)
  if remat:
    if name.startswith('cnn'):
      raise ValueError(f'remat needs blocks, which {name} has none of.')
    factory = functools.partial(factory, remat=True)
  return factory(
    num_classes,
    dropout_rate=dropout_rate,
    dtype=dtype,
    activation=ACTIVATIONS[activation],
  )


def _wide_resnet(name: str) -> Factory:
  match = re.fullmatch(r'wrn_(\d+)_([1-9]\d*)', name)
  if not match:
    raise ValueError(
      f'no network {name!r}; there are {", ".join(MODELS)} and every '
      'wrn_<depth>_<width>.'
    )
  depth, width = map(int, match.groups())
  wide_resnet.blocks_per_group(depth)  # raises where the depth is wrong
  return functools.partial(wide_resnet.WideResNet, depth=depth, width=width)


# Arguments that set the mode -> their value in inference mode.
_INFERENCE = {'train': False, 'training': False, 'deterministic': True}


def logits_fn(module: nn.Module, variables: Mapping[str, Any]) -> LogitsFn:
  """The network in inference mode as a function of images alone.

  Raises:
    ValueError: if the module is not Linen, or needs arguments besides images.
  """
  arguments = _arguments(module)
  if not isinstance(variables, Mapping):
    raise ValueError(
      f'variables must be a dict as {type(module).__name__}.init returns it, '
      f'got {type(variables).__name__}.'
    )
  settings = {k: v for k, v in _INFERENCE.items() if k in arguments}
  wanted = [
    name
    for name, argument in arguments.items()
    if argument.default is argument.empty and name not in settings
  ]
  if wanted:
    raise ValueError(
      f'{type(module).__name__} wants {", ".join(wanted)} besides images; in '
      'place of logits_fn take functools.partial(module.apply, variables, '
      f'{wanted[0]}=...).'
    )
  return functools.partial(module.apply, variables, **settings)


def init(
  module: nn.Module, key: chex.PRNGKey, inputs: chex.Array
) -> dict[str, Any]:
  """Freshly drawn variables of a module that `training` can train.

  Training calls the module with `train=True` and keeps its `params` and
  `batch_stats`.

  Raises:
    ValueError: if the module takes no `train`, or has other variables.
  """
  name, arguments = type(module).__name__, _arguments(module)
  if 'train' not in arguments:
    raise ValueError(
      f'{name}.__call__ takes {", ".join(arguments) or "nothing"} besides '
      'images, expected train: wrap it in a Linen module whose __call__(self, '
      f'inputs, train=False) calls {name}.'
    )
  variables = module.init(key, inputs, train=False)
  others = set(variables) - {'params', 'batch_stats'}
  if others:
    raise ValueError(
      f'{name} has variables in {", ".join(sorted(others))}; only params and '
      'batch_stats are trained and kept.'
    )
  return variables


def _arguments(module: nn.Module) -> dict[str, inspect.Parameter]:
  """The arguments that the module takes besides images."""
  if not isinstance(module, nn.Module):
    raise ValueError(
      f'expected a Linen module, got {type(module).__name__}: any other '
      'network is given as a function from images to logits, of NNX '
      '`lambda images: network(images)`, of Equinox `jax.vmap(network)`.'
    )
  arguments = list(inspect.signature(type(module).__call__).parameters.values())
  named = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
  )
  return {a.name: a for a in arguments[2:] if a.kind in named}
