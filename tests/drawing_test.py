"""Pictures have the rows, images and lines that they are given."""

import io

import numpy as np
import pytest

from robustlip import drawing


def test_a_row_of_images_for_each_name():
  rng = np.random.default_rng(0)
  rows = {
    'bytes $x$': rng.integers(0, 256, (3, 4, 4, 3), np.uint8),
    'floats': rng.random((2, 4, 4, 1)),
    'perturbations': rng.uniform(-0.1, 0.1, (3, 4, 4, 3)),
  }
  figure = drawing.images(rows, {'floats': ['one', '$2']})
  titles = [axes.get_title() for axes in figure.axes]
  assert titles == [''] * 3 + ['one', '$2'] + [''] * 4
  shown = [axes.images for axes in figure.axes]
  assert [len(x) for x in shown] == [1, 1, 1, 1, 1, 0, 1, 1, 1]
  np.testing.assert_array_equal(shown[0][0].get_array(), rows['bytes $x$'][0])
  np.testing.assert_allclose(
    shown[6][0].get_array(), rows['perturbations'][0].mean(-1)
  )
  low, high = shown[6][0].get_clim()
  assert low == -high
  figure.savefig(io.BytesIO())
  with pytest.raises(ValueError, match='1 or 3'):
    drawing.images({'two channels': np.zeros((1, 4, 4, 2))})


@pytest.mark.parametrize('shape', [(1, 5, 1), (5, 1, 1), (1, 1, 1), (1, 1, 3)])
def test_an_image_may_be_one_pixel_wide(shape):
  figure = drawing.images({'a': np.zeros((2, *shape), np.uint8)})
  (shown,) = figure.axes[0].images
  assert shown.get_array().shape[:2] == shape[:2]


def test_a_line_for_each_curve():
  figure = drawing.curves(
    [0, 1], {'a': [1, 2], 'b': [3, 4]}, xlabel='x', ylabel='y'
  )
  (axes,) = figure.axes
  assert [line.get_label() for line in axes.lines] == ['a', 'b']
  np.testing.assert_array_equal(axes.lines[1].get_ydata(), [3, 4])
