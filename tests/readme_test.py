"""No number in the README's tables is typed."""

import pytest

from experiments import readme


def test_every_table_is_what_its_records_say():
  text = readme.README.read_text()
  assert {match[1] for match in readme.BLOCK.findall(text)} == set(
    readme.TABLES
  )
  assert readme.rendered(text) == text


def test_an_unknown_table_is_named():
  with pytest.raises(ValueError, match='no table other'):
    readme.rendered('<!-- results: other -->\nx<!-- end -->')
