"""Gradients through steps that have none, which round or compress an image."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax


def straight_through(
  function: Callable[[chex.Array], chex.Array],
  like: Callable[[chex.Array], chex.Array] = lambda inputs: inputs,
) -> Callable[[chex.Array], chex.Array]:
  """`function` with the gradient of another, by default of the identity.

      defended = lambda images: network(straight_through(quantise)(images))

  The gradient of `network(quantise(images))` is 0, so an attack on it cannot
  move and the network looks robust. `defended` has the same logits and a useful
  gradient: attack it; its adversarial points fool both.

  Args:
    function: [B, ...] -> [B, ...], with finite values.
    like: a differentiable function close to it, of the same shapes.

  Source: Athalye et al. 2018, arXiv:1802.00420, Section 4.1 (BPDA).
  """

  def through(inputs):
    smooth = like(inputs)
    zero = smooth - jax.lax.stop_gradient(smooth)
    return jax.lax.stop_gradient(function(inputs)) + zero

  return through
