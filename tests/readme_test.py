"""No number in the tables of the pages is typed."""

import re

import pytest

from experiments import readme


def test_every_table_is_what_its_records_say():
  pages = [page.read_text() for page in readme.PAGES]
  assert {name for text in pages for name in readme.names(text)} == set(
    readme.TABLES
  )
  assert [readme.rendered(text) for text in pages] == pages


def test_an_unknown_table_is_named():
  with pytest.raises(ValueError, match='no table other'):
    readme.rendered('<!-- results: other -->\nx<!-- end -->')


@pytest.mark.parametrize(
  'page', readme.PAGES, ids=lambda page: page.parent.name
)
def test_every_link_of_a_page_leads_somewhere(page):
  links = re.findall(r'\]\((?!https?:)([^)#]+)', page.read_text())
  assert links
  assert [link for link in links if not (page.parent / link).exists()] == []
