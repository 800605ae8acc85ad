"""Gradients for what has none: steps that round, cut or compress an image."""

from collections.abc import Callable

import chex
import jax


def straight_through(
  function: Callable[[chex.Array], chex.Array],
  like: Callable[[chex.Array], chex.Array] = lambda inputs: inputs,
) -> Callable[[chex.Array], chex.Array]:
  """`function` with the gradient of another, by default of the identity.

      defended = lambda images: network(straight_through(quantise)(images))

  An attack on `network(quantise(images))` stands still where the gradient is 0,
  and looks like robustness; one on `defended`, of equal logits, does not. Count
  what still stands by attacking `defended`: the points serve both.

  Args:
    function: of finite values, [B, ...] -> [B, ...].
    like: a differentiable function close to it, of the same shapes.

  Source: Athalye et al. 2018, arXiv:1802.00420, Section 4.1 (BPDA).
  """

  def through(inputs):
    smooth = like(inputs)
    zero = smooth - jax.lax.stop_gradient(smooth)
    return jax.lax.stop_gradient(function(inputs)) + zero

  return through
