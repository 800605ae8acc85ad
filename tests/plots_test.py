"""Pictures show the names that users give, whatever is in them."""

from experiments import plots
from robustlip import drawing


def test_a_dollar_is_a_dollar_and_powers_of_ten_are_formulas(tmp_path):
  figure = drawing.figure(3, 3)
  axes = figure.subplots()
  axes.set_title('$broken_{ and \\frac{')
  axes.bar([0, 1], [1, 1000], log=True)
  axes.set_xticks([0, 1], ['$a$', '$b_$'])
  plots.save(figure, tmp_path / 'folder' / 'first')
  plots.save(figure, tmp_path / 'second')
  assert not axes.title.get_parse_math()
  assert not any(x.get_parse_math() for x in axes.get_xticklabels())
  assert all(x.get_parse_math() for x in axes.get_yticklabels())
  first = (tmp_path / 'folder' / 'first.png').read_bytes()
  assert first == (tmp_path / 'second.png').read_bytes()
