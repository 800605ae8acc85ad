"""The part of a network on which a few neighboring units depend.

A unit of a convolution depends on a window of each variable before it. A
cropped network applies the steps of the whole one to these windows; their
position is traced, so that one program serves units anywhere.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustlip.bounds import rules
from robustlip.bounds.graph import (
  ELEMENTWISE,
  Network,
  Step,
  Variable,
  rewritten,
)
from robustlip.bounds.rules import Bound


class Span(NamedTuple):
  """`size` positions along an axis, from scale * origin[axis] + shift on.

  The origin is the position of the first unit in its variable, [axes]. A span
  of a whole axis has scale and shift 0: it does not depend on the origin.
  """

  axis: int
  scale: int
  shift: int
  size: int

  def below(
    self, size: int = 1, *, stride: int = 1, start: int = 0, dilation: int = 1
  ) -> Span:
    """The positions of the input that the windows of these positions cover."""
    reach = (self.size - 1) * stride + (size - 1) * dilation + 1
    shift = stride * self.shift + start
    return Span(self.axis, stride * self.scale, shift, reach)

  def start(self, origin: Sequence[chex.Numeric]) -> chex.Numeric:
    """The first position."""
    return self.scale * origin[self.axis] + self.shift


Window = tuple[Span, ...]


def _all(size: int) -> Span:
  return Span(0, 0, 0, size)


def _whole(shape: Sequence[int]) -> Window:
  return tuple(map(_all, shape))


def _sizes(window: Window) -> tuple[int, ...]:
  return tuple(span.size for span in window)


def _union(a: Window, b: Window, shape: Sequence[int]) -> Window:
  """The smallest window around both; an axis is whole where origins differ."""

  def joined(a, b, size):
    if a[:2] != b[:2]:
      return _all(size)
    first, last = min(a.shift, b.shift), max(a.shift + a.size, b.shift + b.size)
    return a._replace(shift=first, size=last - first)

  return tuple(map(joined, a, b, shape))


# --- What a window of the outputs needs -------------------------------------

# The windows of the variables, and the parameters of the step on them.
Needs = tuple[list[Window], Mapping[str, Any]]


def _convolution(step: Step, window: Window) -> Needs | None:
  ours, kernel, theirs = (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)
  if 'dimension_numbers' in step.params:
    ours, kernel, theirs = step.params['dimension_numbers']
  shapes = [v.shape for v in step.operands]
  ones = (1,) * len(ours[2:])
  strides = step.params['window_strides']
  dilations = step.params.get('rhs_dilation', ones)
  features = shapes[1][kernel[0]]
  plain = set(step.params['lhs_dilation']) == {1}
  plain &= step.params.get('batch_group_count', 1) == 1
  if window[theirs[1]] != _all(features) or not plain:
    return None
  found = list(_whole(shapes[0]))
  found[ours[0]] = window[theirs[0]]
  for i, (before, _) in enumerate(step.params['padding']):
    found[ours[2 + i]] = window[theirs[2 + i]].below(
      shapes[1][kernel[2 + i]],
      stride=strides[i],
      start=-before,
      dilation=dilations[i],
    )
  return [tuple(found)], {**step.params, 'padding': ((0, 0),) * len(ones)}


def _dot(step: Step, window: Window) -> Needs | None:
  (contracted, _), (batch, _) = step.params['dimension_numbers']
  shape, produced = step.variables[0].shape, step.outputs[0].shape
  free = [axis for axis in range(len(shape)) if axis not in contracted]
  if batch or window[len(free) :] != _whole(produced[len(free) :]):
    return None
  found = list(_whole(shape))
  for axis, span in zip(free, window, strict=False):
    found[axis] = span
  return [tuple(found)], step.params


def _pad(step: Step, window: Window) -> Needs | None:
  value, config = step.operands[1], step.params['padding_config']
  known = not isinstance(value, Variable | jax.core.Tracer)
  padded = any(before > 0 or behind > 0 for before, behind, _ in config)
  zeros = not padded or (known and np.asarray(value) == 0)
  if not zeros or any(inside for *_, inside in config):
    return None
  found = [
    span.below(start=-before)
    for span, (before, *_) in zip(window, config, strict=True)
  ]
  return [tuple(found)], {'padding_config': ((0, 0, 0),) * len(window)}


def _slice(step: Step, window: Window) -> Needs:
  strides = step.params['strides'] or (1,) * len(window)
  starts = step.params['start_indices']
  found = [
    span.below(stride=stride, start=start)
    for span, stride, start in zip(window, strides, starts, strict=True)
  ]
  return [tuple(found)], {
    'start_indices': (0,) * len(window),
    'limit_indices': _sizes(found),
    'strides': step.params['strides'],
  }


def _broadcast(step: Step, window: Window) -> Needs:
  shape, produced = step.variables[0].shape, step.outputs[0].shape
  kept = step.params['broadcast_dimensions']
  found = [
    window[axis] if produced[axis] == size else _all(size)
    for axis, size in zip(kept, shape, strict=True)
  ]
  return [tuple(found)], {**step.params, 'shape': _sizes(window)}


def _reshape(step: Step, window: Window) -> Needs | None:
  """Axes of length 1 come and go, and one axis may become several."""
  shape, produced = step.variables[0].shape, step.outputs[0].shape
  axes = iter([axis for axis, size in enumerate(produced) if size > 1])
  found = list(_whole(shape))
  for axis, size in enumerate(shape):
    if size == 1:
      continue
    first, inner = next(axes), 1
    while produced[first] * inner < size:
      other = next(axes)
      inner *= produced[other]
      if window[other] != _all(produced[other]):
        return None
    if produced[first] * inner != size:
      return None
    found[axis] = window[first].below(inner, stride=inner)
  return [tuple(found)], {**step.params, 'new_sizes': _sizes(window)}


def _squeeze(step: Step, window: Window) -> Needs:
  found = list(window)
  for axis in sorted(step.params['dimensions']):
    found.insert(axis, _all(1))
  return [tuple(found)], step.params


def _concatenate_or_split(step: Step, window: Window) -> Needs | None:
  """For concatenate and split: takes the whole axis of each array."""
  axis = step.params.get('dimension', step.params.get('axis'))
  if any(window[axis] != _all(v.shape[axis]) for v in step.outputs):
    return None
  found = [
    (*window[:axis], _all(v.shape[axis]), *window[axis + 1 :])
    for v in step.variables
  ]
  return found, step.params


_RULES = {
  'broadcast_in_dim': _broadcast,
  'concatenate': _concatenate_or_split,
  'conv_general_dilated': _convolution,
  'convolution': _convolution,
  'dot_general': _dot,
  'pad': _pad,
  'reshape': _reshape,
  'slice': _slice,
  'split': _concatenate_or_split,
  'squeeze': _squeeze,
}


def _needs(step: Step, window: Window) -> Needs | None:
  """What a window of the outputs needs; None: the variables as a whole."""
  if step.name in ELEMENTWISE:
    return [window] * len(step.variables), step.params
  variables = len(step.operands) if step.name == 'concatenate' else 1
  known = not all(isinstance(v, Variable) for v in step.operands[:variables])
  if known or step.name not in _RULES:
    return None
  return _RULES[step.name](step, window)


# --- The cropped network ----------------------------------------------------

_ZEROS_AROUND = {'pad', 'convolution', 'conv_general_dilated'}  # pad with zeros


class Part(NamedTuple):
  """The windows on which units of one variable depend.

  `steps` are those that lead from window to window, each with its needs.
  """

  input: Variable
  units: Variable
  windows: dict[Variable, Window]
  steps: list[tuple[Step, Needs]]
  origins: np.ndarray  # of the units: [N, axes]

  def cut(
    self, array: chex.Array, window: Window, origin: chex.Array
  ) -> chex.Array:
    """The window of an array, which repeats its edges outside."""
    beyond = self._beyond(window, array.shape)
    starts = [
      span.start(origin) + before
      for span, (before, _) in zip(window, beyond, strict=True)
    ]
    array = jnp.pad(array, beyond, mode='edge')
    return lax.dynamic_slice(array, starts, _sizes(window))

  def at(
    self, bounds: Mapping[Variable, Bound], origin: chex.Array
  ) -> tuple[Network, dict[Variable, Bound]]:
    """The cropped network, whose output is the units, and its bounds."""
    small = {self.input: Variable(_sizes(self.windows[self.input]))}
    steps = []
    for step, (needs, params) in self.steps:
      needs, inputs = iter(needs), []
      for operand in step.operands:
        if isinstance(operand, Variable):
          need = next(needs)
          move = functools.partial(self._moved, step, operand, need, origin)
          (operand,) = rewritten(move, {}, [small[operand]], steps, step.where)
        elif step.name in ELEMENTWISE and jnp.ndim(operand):
          operand = self.cut(operand, self.windows[step.outputs[0]], origin)
        inputs.append(operand)
      bind = functools.partial(step.primitive.bind, **params)
      outputs = rewritten(bind, {}, inputs, steps, step.where)
      small |= dict(zip(step.outputs, outputs, strict=True))
    found = {
      small[v]: tuple(self.cut(end, window, origin) for end in bounds[v])
      for v, window in self.windows.items()
    }
    for step in steps:
      if not found.keys() >= set(step.outputs):
        outputs = rules.interval(step, [found[v] for v in step.variables])
        found |= dict(zip(step.outputs, outputs, strict=True))
    return Network(small[self.input], steps, small[self.units]), found

  def _moved(self, step, variable, need, origin, x) -> chex.Array:
    """Cuts what a step needs of a variable out of the variable's window `x`."""
    have, shape = self.windows[variable], variable.shape
    beyond = self._beyond(need, shape)
    if [span[:2] for span in have] == [span[:2] for span in need]:
      starts = [b.shift - a.shift for a, b in zip(have, need, strict=True)]
      ends = np.add(starts, _sizes(need)).tolist()
      x = x if have == need else lax.slice(x, starts, ends)
    else:
      starts = [
        b.start(origin) - a.start(origin) + before
        for a, b, (before, _) in zip(have, need, beyond, strict=True)
      ]
      x = lax.dynamic_slice(jnp.pad(x, beyond), starts, _sizes(need))
    if step.name not in _ZEROS_AROUND:
      return x
    for axis, (span, amounts) in enumerate(zip(need, beyond, strict=True)):
      if any(amounts):
        places = lax.broadcasted_iota(jnp.int32, x.shape, axis)
        places += span.start(origin)
        x *= jnp.where((places >= 0) & (places < shape[axis]), 1.0, 0.0)
    return x

  def _beyond(self, window, shape) -> list[tuple[int, int]]:
    """How far, at most, the window lies before and behind an array."""
    amounts = []
    for span, size in zip(window, shape, strict=True):
      starts = span.start(self.origins.T)
      ends = starts + span.size
      amounts.append((max(0, -np.min(starts)), max(0, np.max(ends) - size)))
    return [(int(before), int(behind)) for before, behind in amounts]


def part(network: Network, units: Variable, count: int) -> Part | None:
  """Windows for `count` units of a variable, or slightly more.

  The units span the whole last axis, and a few positions of the axes before.

  Returns:
    None if these windows are not much smaller than the network.
  """
  *axes, last = units.shape
  side = math.ceil((count / last) ** (1 / max(sum(n > 1 for n in axes), 1)))
  sizes = [min(side, size) for size in axes]
  window = [
    Span(axis, 1, 0, size) if size < whole else _all(whole)
    for axis, (size, whole) in enumerate(zip(sizes, axes, strict=True))
  ]
  windows, steps = {units: (*window, _all(last))}, []
  for step in reversed(_merge_flattened_products(network.steps)):
    wanted = [windows[v] for v in step.outputs if v in windows]
    if not wanted:
      continue
    shape = step.outputs[0].shape
    window = functools.reduce(lambda a, b: _union(a, b, shape), wanted)
    needs = None if window == _whole(shape) else _needs(step, window)
    if needs is None:
      windows |= {v: _whole(v.shape) for v in step.outputs}
      needs = [_whole(v.shape) for v in step.variables], step.params
    else:
      windows |= dict.fromkeys(step.outputs, window)
    for variable, need in zip(step.variables, needs[0], strict=True):
      known = windows.get(variable, need)
      windows[variable] = _union(known, need, variable.shape)
    steps.append((step, needs))
  cost = sum(math.prod(_sizes(window)) for window in windows.values())
  if cost > sum(math.prod(v.shape) for v in windows) / 2:
    return None
  starts = [
    np.minimum(np.arange(0, whole, size), whole - size)
    for whole, size in zip((*axes, last), (*sizes, last), strict=True)
  ]
  origins = np.array([*itertools.product(*starts)], np.int32)
  return Part(network.input, units, windows, steps[::-1], origins)


def _merge_flattened_products(steps: Sequence[Step]) -> list[Step]:
  """Replaces flatten, matrix product, unflatten by one product step."""
  made, found = {v: step for step in steps for v in step.outputs}, []

  def source(step, name):
    step = made.get(step.variables[0])
    return step if step and step.name == name else None

  for step in steps:
    product = source(step, 'dot_general') if step.name == 'reshape' else None
    flat = source(product, 'reshape') if product else None
    if flat:
      (features,), (output,) = flat.variables, step.outputs
      matrices = (((1,), (0,)), ((), ()))
      rows = features.shape[:-1] == output.shape[:-1]
      columns = features.shape[-1] == product.variables[0].shape[-1]
      plain = product.params['dimension_numbers'] == matrices
      plain &= product.operands[0] is product.variables[0]
      if rows and columns and plain:
        last = (((len(features.shape) - 1,), (0,)), ((), ()))
        step = product._replace(
          operands=(features, product.operands[1]),
          params={**product.params, 'dimension_numbers': last},
          outputs=(output,),
        )
    found.append(step)
  return found
