"""The peer: auto_LiRPA, as its examples call it.

This module imports torch, so it is imported only with --peers.
"""

import importlib
import sys
import types
from collections.abc import Callable

import numpy as np
import torch

from experiments.benchmarks import torch_peer
from experiments.benchmarks.problem import Problem

# Version 0.3, the newest on PyPI, expects NumPy and PyTorch as of 2022.
_SETS = types.ModuleType('numpy.lib.arraysetops')
_SETS.isin = np.isin
sys.modules.setdefault(_SETS.__name__, _SETS)
_HELPER = importlib.import_module('torch.onnx.symbolic_helper')
_HELPER._set_opset_version = lambda version: None
torch._C.Node.__getitem__ = lambda node, name: getattr(node, node.kindOf(name))(
  name
)
import auto_LiRPA  # noqa: E402

METHODS = {'interval': 'IBP', 'linear': 'CROWN-IBP', 'crown': 'CROWN'}


def bounding(
  task: Problem, variables, lower: np.ndarray, upper: np.ndarray, *, method: str
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
  """A function that bounds all logits [B, 10] over boxes [B, H, W, C]."""
  low, high = (torch_peer.on_device(np.array(x)) for x in (lower, upper))
  network = torch_peer.twin(task, variables)
  program = auto_LiRPA.BoundedModule(network, torch.empty_like(low))
  program.eval()  # else dropout would be on
  box = auto_LiRPA.PerturbationLpNorm(norm=np.inf, x_L=low, x_U=high)
  inputs = auto_LiRPA.BoundedTensor((low + high) / 2, box)

  def run():
    with torch.no_grad():
      bound = program.compute_bounds(x=(inputs,), method=METHODS[method])
    return tuple(end.cpu().numpy() for end in bound)

  return run
