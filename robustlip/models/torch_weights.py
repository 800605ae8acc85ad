"""Weights of PyTorch networks for the residual networks here."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

_KEY = re.compile(
  r'(?:module\.)?'  # of DataParallel
  r'(?:(block|layer)(\d)\.(?:layer\.)?(\d+)\.)?'
  r'(?!(?:conv\w+|downsample\.0)\.bias)'  # of other networks' convolutions
  r'(conv\d|bn\d|convShortcut|downsample\.[01]|fc)\.'
  r'(weight|bias|running_mean|running_var)'
)
_UNUSED = re.compile(r'(module\.)?sub_block1\..*|.*\.num_batches_tracked')
_BLOCKS = {'block': 'Block', 'layer': 'Bottleneck'}
_LAYERS = {
  **{f'conv{i + 1}': f'Conv_{i}' for i in range(3)},
  **{f'bn{i + 1}': f'BatchNorm_{i}' for i in range(3)},
  'convShortcut': 'Conv_2',
  'downsample.0': 'Conv_3',
  'downsample.1': 'BatchNorm_3',
  'fc': 'Dense_0',
}
# Number of axes (of a scale, affine map, convolution) -> name, transposition.
_WEIGHTS = {
  1: ('scale', (0,)),
  2: ('kernel', (1, 0)),
  4: ('kernel', (2, 3, 1, 0)),
}
_STATISTICS = {'running_mean': 'mean', 'running_var': 'var'}


def from_torch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
  """Variables of `WideResNet` or `ResNet` from a PyTorch state dict.

  The names are those of the wide residual networks of TRADES and RobustBench
  (`block1.layer.0.conv1.weight`), or of torchvision's ResNets of bottlenecks
  (`layer1.0.conv1.weight`). A network that was trained on standardised images
  needs the standardisation in front:

      variables = models.from_torch(torch.load(path, weights_only=True))
      network = models.logits_fn(models.build('resnet50', 1000), variables)
      logits_fn = lambda images: network((images - mean) / std)

  Args:
    state_dict: name -> NumPy array, or tensor on any device.

  Raises:
    ValueError: if it has names of another network.
  """
  names = {
    key: _KEY.fullmatch(key) for key in state_dict if not _UNUSED.fullmatch(key)
  }
  unknown = [key for key, match in names.items() if match is None]
  kinds = {(match[1], match[4]) for match in names.values() if match}
  if ('layer', 'conv1') in kinds and ('layer', 'conv3') not in kinds:
    unknown.append('layers without conv3')
  if unknown or not names:
    raise ValueError(
      f'the state dict has {", ".join(unknown[:3]) or "no weights"}, expected '
      'one of a wide residual network (block1.layer.0.conv1.weight) or of a '
      'torchvision ResNet of bottlenecks (layer1.0.conv3.weight).'
    )
  blocks = sorted({_place(match) for match in names.values() if match[1]})
  variables = {'params': {}, 'batch_stats': {}}
  for key, match in names.items():
    array = state_dict[key]
    array = np.asarray(array.cpu() if hasattr(array, 'cpu') else array)
    collection, leaf = 'params', match[5]
    if leaf in _STATISTICS:
      collection, leaf = 'batch_stats', _STATISTICS[leaf]
    elif leaf == 'weight':
      leaf, axes = _WEIGHTS[array.ndim]
      array = array.transpose(axes)
    node = variables[collection]
    if match[1]:
      name = f'{_BLOCKS[match[1]]}_{blocks.index(_place(match))}'
      node = node.setdefault(name, {})
    node.setdefault(_LAYERS[match[4]], {})[leaf] = jnp.asarray(array)
  return variables


def _place(match: re.Match) -> tuple[int, int]:
  """Stage and index in it of a block."""
  return int(match[2]), int(match[3])
