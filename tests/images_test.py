"""Bytes, floats, and what is no image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustlip import images
from robustlip.images import check_least


def test_within_jit_an_image_out_of_range_is_nan():
  inputs = np.full((4, 2, 2, 1), 0.5, np.float32)
  inputs[1, 0, 0], inputs[2, 1, 1], inputs[3, 0, 1] = 1.01, -0.01, np.nan
  checked = jax.jit(images.check_images)(inputs)
  expected = np.where(np.arange(4) > 0, np.nan, 0.5)[:, None, None, None]
  np.testing.assert_array_equal(
    checked, np.broadcast_to(expected, inputs.shape)
  )


def test_bytes_are_the_same_floats_on_the_host_and_compiled():
  every = np.arange(256, dtype=np.uint8)
  expected = np.arange(256, dtype=np.float32) / np.float32(255)
  np.testing.assert_array_equal(images.from_bytes(every), expected)
  np.testing.assert_array_equal(jax.jit(images.from_bytes)(every), expected)


@pytest.mark.parametrize('number', [2.0, 2.5, np.nan, '2', None])
def test_a_count_is_an_integer(number):
  with pytest.raises(ValueError, match='num_steps must be an integer, got'):
    check_least(1, num_steps=number)
  with pytest.raises(ValueError, match='num_steps must be an integer, got'):
    jax.jit(lambda count: check_least(1, num_steps=count))(2)
  for count in (2, np.int16(2), jnp.uint8(2)):
    check_least(2, num_steps=count)
    with pytest.raises(ValueError, match='num_steps must be at least 3, got 2'):
      check_least(3, num_steps=count)
