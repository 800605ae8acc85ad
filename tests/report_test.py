"""Records as pages: no number is typed, no record is lost."""

import re

import numpy as np
import pytest
import scripts
from PIL import Image

from experiments import common, report, table_figures


def row(name, ours, paper=(), **changes):
  """One row of a table's record."""
  return {
    'dataset': 'mnist5k',
    'arch': 'cnn1',
    'row': name,
    'label': name,
    'settings': {
      'epsilon': 0.1,
      'epochs': 5,
      'measured_train': 500,
      'measured_test': 400,
    },
    'paper_settings': {'epochs': 160, 'dataset': 'mnist'} if paper else {},
    'ours': ours,
    'paper': dict(paper),
  } | changes


@pytest.fixture
def record():
  rows = [
    row(
      'at',
      {'test_acc': [96.0, 98.0], 'strong_adv_test_acc': [90.0, 90.5]},
      {'test_acc': 98.5},
    ),
    row('gr', {'test_acc': [95.0], 'gap': [-0.5], 'adv_gap': [1.0]}),
  ]
  decided = {
    'holds': False,
    'pairs': 3,
    'failing': ['at'],
    'closest': 'at',
    'numbers': [1.0, 2.5],
  }
  findings = {'cnn1 on mnist5k': {'gap_widens': decided}}
  named = {'table': '2'}
  return named | {'rows': rows, 'findings': findings}


def test_a_table_has_means_spread_and_the_papers_numbers(record):
  text = report.markdown(record)
  header, _, at, gr = re.findall(r'^\|.*\|$', text, re.MULTILINE)[:4]
  assert header == (
    '| method | test acc. | adv. test acc., strong | gap | adv. gap |'
  )
  assert at == '| at | 97.00 ± 1.41 / 98.50 / -1.50 | 90.25 ± 0.35 |  |  |'
  assert gr == '| gr | 95.00 / – / – |  | -0.50 | 1.00 |'
  assert '500 training and 400 test examples measured' in text
  assert 'epochs 5 instead of 160; dataset mnist5k instead of mnist.' in text
  assert '| the gap is wider under attack | false | 1 of 3 | at: 1.00' in text


def test_the_heading_of_a_table_names_the_data_that_were_used(record):
  assert report.markdown(record).startswith('## Table 2: mnist5k\n')
  first, second = record['rows']
  first |= {'dataset': 'fashion_mnist'}
  second |= {'dataset': 'mnist.npz'}  # a user's file
  second['settings']['fingerprint'] = 'x'
  text = report.markdown(record | {'table': '3'})
  assert text.startswith('## Table 3: Fashion-MNIST and mnist.npz\n')
  first['settings']['fingerprint'] = 'y'
  text = report.markdown(record | {'table': 'svhn', 'rows': [first]})
  assert text.startswith('## Appendix: Fashion-MNIST, a part\n')


def test_a_column_that_the_first_row_lacks_keeps_its_place():
  rows = [{'method': 'a', 'attacked': '', 'gap': '1', 'none': ''}]
  rows.append({'method': 'b', 'attacked': '2', 'gap': '3', 'none': ''})
  header, _, first, _ = report.grid(rows).splitlines()
  assert header == '| method | attacked | gap |'
  assert first == '| a |  | 1 |'


def test_a_column_says_by_which_attack_or_bounds_it_was_measured():
  ordered = [
    *('adv_test_acc', 'multi_targeted_released_adv_test_acc'),
    *('interval_certified_test_acc', 'linear_certified_test_acc'),
    *('gap', 'adv_gap', 'strong_adv_gap'),
  ]
  measured = row('at', {column: [1.0] for column in reversed(ordered)})
  assert report.columns([measured]) == ordered
  assert [report.heading(x).split('acc., ')[-1] for x in ordered[1:4]] == [
    *('multi-targeted, released', 'interval', 'linear'),
  ]


def test_a_setting_of_some_rows_names_them(record):
  record['rows'][1]['paper'] = {'test_acc': 99.0}
  assert 'epochs 5 instead of 160 (at)' in report.markdown(record)
  record['rows'][1] |= {'paper': {}, 'paper_settings': {'epsilon': 0.3}}
  assert 'epsilon 0.1 instead of 0.3 (gr)' in report.markdown(record)
  record['rows'][0]['paper'] = {}  # nothing is compared
  assert 'epsilon 0.1 instead of 0.3 (gr)' in report.markdown(record)


def test_the_picture_shows_every_kind_of_number(record, tmp_path):
  table_figures.draw(record, tmp_path / 'table')
  with Image.open(tmp_path / 'table.png') as picture:
    pixels = np.asarray(picture.convert('RGB'))
  for colour in ((31, 119, 180), (214, 39, 40)):  # a column, a false finding
    assert (pixels == colour).all(axis=2).any()


@pytest.fixture
def results(tmp_path, monkeypatch):
  folder = tmp_path / 'results'
  folder.mkdir()
  monkeypatch.setattr(common, 'RESULTS', folder)
  return folder


ORIGIN = {'command': 'c', 'commit': 'abc', 'machine': 'm', 'date': 'today'}
MNIST = ORIGIN | {'dataset': 'mnist'}


def test_a_finished_run_is_published_under_the_name_of_its_folder(
  tmp_path, results
):
  run = tmp_path / 'runs' / 'mnist-rst'
  common.write_json(MNIST | {'test_acc': 1.0}, run / 'result.json')
  target = report.publish(run / 'result.json', overwrite=False)
  assert target == results / 'train_mnist-rst.json'
  assert target.read_bytes() == (run / 'result.json').read_bytes()
  assert report.publish(run, overwrite=False) == target  # the same again
  evaluation = run / 'evaluations' / 'pgd-newest.json'
  common.write_json(MNIST, evaluation)
  evaluation.with_suffix('.png').write_text('shown on no page')
  target = report.publish(evaluation, overwrite=False)
  assert target.name == 'evaluation_mnist-rst_pgd-newest.json'
  assert not list(results.glob('*.png'))
  row = tmp_path / 'runs' / 'mnist-cnn2' / 'at' / 'seed0'
  common.write_json(MNIST, row / 'result.json')
  target = report.publish(row, overwrite=False)
  assert target.name == 'train_mnist-cnn2-at-seed0.json'


def test_a_table_is_published_with_its_markdown_and_picture(tmp_path, results):
  common.write_json(ORIGIN, tmp_path / 'table_2.json')
  for name in ('table_2.md', 'table_2.png', 'table_2.pdf', 'other.md'):
    (tmp_path / name).write_text(name)
  report.publish(tmp_path / 'table_2.json', overwrite=False)
  found = sorted(path.name for path in results.iterdir())
  assert found == ['table_2.json', 'table_2.md', 'table_2.png']


def test_another_record_is_replaced_only_when_asked_to(tmp_path, results):
  target = results / 'theory_mnist.json'
  common.write_json(MNIST | {'command': 'older'}, target)
  source = tmp_path / 'theory_mnist.json'
  common.write_json(MNIST, source)
  with pytest.raises(ValueError, match='of today: older; --overwrite'):
    report.publish(source, overwrite=False)
  assert common.read_json(target)['command'] == 'older'
  target.with_suffix('.png').write_text('of the older')
  report.publish(source, overwrite=True)
  assert common.read_json(target) == MNIST
  assert not target.with_suffix('.png').exists()


def test_a_record_without_an_origin_is_not_published(tmp_path, results):
  common.write_json({'command': 'c', 'date': 'today'}, tmp_path / 'a.json')
  with pytest.raises(ValueError, match='no commit, machine'):
    report.publish(tmp_path / 'a.json', overwrite=True)
  with pytest.raises(ValueError, match='there is no .*result.json'):
    report.publish(tmp_path, overwrite=True)  # a run that is not finished
  (tmp_path / 'a.npz').write_bytes(b'PK\x8b')
  with pytest.raises(ValueError, match='a.npz is not JSON'):
    report.publish(tmp_path / 'a.npz', overwrite=True)
  assert list(results.iterdir()) == []


@pytest.mark.parametrize(
  ('name', 'record', 'message'),
  [
    ('train_x', {}, "'data'"),
    ('benchmark_x', {}, "'cases'"),
    ('benchmark_x', {'device': '', 'cases': [{'candidates': []}]}, 'TypeError'),
    ('separation_speed', {'cases': []}, "'data'"),
    ('speed', {'cases': []}, 'no page would show speed.json'),
  ],
)
def test_what_no_page_can_show_is_not_published(
  tmp_path, results, name, record, message
):
  common.write_json(ORIGIN | record, tmp_path / f'{name}.json')
  with pytest.raises(ValueError, match=message):
    report.publish(tmp_path / f'{name}.json', overwrite=True)
  assert list(results.iterdir()) == []


def test_a_block_has_a_line_for_each_record_and_split(results):
  run = {'dataset': 'mnist', 'arch': 'cnn2', 'epochs': 3, 'method': 'rst'}
  run |= {'measured_train': 60000, 'measured_test': 10000, 'test_acc': 98.25}
  run |= {'eq3_lipschitz': 81.6, 'released_lipschitz': None}
  common.write_json(run, results / 'train_b.json')
  for name, dataset in (('c', 'mnist5k'), ('a', '/home/me/own.npz')):
    path = results / f'train_{name}.json'
    common.write_json(run | {'dataset': dataset}, path)
  text = report.block('training', '')
  first, second, third = text.splitlines()[2:]
  assert first.startswith('| mnist5k |') and third.startswith('| own |')
  assert second == (
    '| MNIST | cnn2 | rst | 3 | 60,000 + 10,000 | 98.2 | 82 '
    '| [JSON](train_b.json) |'
  )
  assert 'Lipschitz, Eq. (3)' in text and 'released' not in text
  common.write_json(run | ORIGIN | {'seconds': 7.4}, results / 'train_b.json')
  text = report.block('run', 'train_b')
  assert '| test | 98.2 | 82 |' in text
  assert '7 seconds of training and measuring on m, today.' in text


def test_a_finding_is_said_once_with_every_table_that_decides_it(results):
  names = '2-short-mnist', '5-quick-cifar10-250examples'
  for name, holds in zip(names, (True, False), strict=True):
    found = {'gap_widens': {'holds': holds}, 'separated': {'holds': True}}
    record = {'findings': {'cnn1': found}}
    common.write_json(record, results / f'table_{name}.json')
  where = (
    '[cnn1, table_2-short](table_2-short-mnist.md)',
    '[cnn1, table_5-quick-250examples](table_5-quick-cifar10-250examples.md)',
  )
  assert report.published('findings') == [
    {
      'finding': report.FINDINGS['separated'],
      'true': ', '.join(where),
      'false': '',
    },
    {
      'finding': report.FINDINGS['gap_widens'],
      'true': where[0],
      'false': where[1],
    },
  ]


def test_a_case_is_compared_with_its_fastest_peer(results):
  def candidate(name, ratio):
    return {'candidate': name, 'per_second': 5.0, 'ratio_of_ours': ratio}

  ours = candidate('robustlip', 1.0)
  peers = [candidate('slow', 3.0), candidate('fast', 0.5)]
  cases = [
    {'case': 'one', 'unit': 'images', 'candidates': [ours, *peers]},
    {
      'case': 'two',
      'unit': 'images',
      'candidates': [ours, candidate('cold', 2.0)],
    },
  ]
  record = {'suite': 'train', 'jax_version': '1', 'cases': cases}
  devices = {'train': '2 x cpu', 'gpu': '1 x H100', 'train_too': '2 x cpu'}
  for name, device in devices.items():
    path = results / f'benchmark_{name}.json'
    common.write_json(record | {'device': device}, path)
  assert report.speeds() == {
    'train, one, jax 1': ('fast', 0.5),
    'train, one, jax 1, train_too': ('fast', 0.5),
    'train, one, 1 x H100, jax 1': ('fast', 0.5),
  }


def test_the_pages_are_what_their_records_say():
  pages = [page.read_text() for page in report.PAGES]
  assert [report.rendered(text) for text in pages] == pages
  shown = {
    name for text in pages for _, name, _ in re.findall(report.BEGIN, text)
  }
  assert shown == set(report.BLOCKS)


def test_published_tables_are_what_their_records_say():
  paths = sorted(common.RESULTS.glob('table_*.json'))
  assert paths
  for path in paths:
    text = report.markdown(common.read_json(path))
    assert path.with_suffix('.md').read_text() == text, path.name


def test_an_unknown_block_is_named():
  with pytest.raises(ValueError, match='no block other'):
    report.rendered('<!-- results: other -->\nx<!-- end -->')


@pytest.mark.parametrize(
  'page', report.PAGES, ids=lambda page: page.parent.name
)
def test_every_link_of_a_page_leads_somewhere(page):
  links = re.findall(r'\]\((?!https?:)([^)#]+)', page.read_text())
  assert links
  assert [link for link in links if not (page.parent / link).exists()] == []


def test_flags_that_do_not_go_together_are_refused(call):
  for words, message in (
    (['--check', '--publish=x'], '--check writes nothing'),
    (['--publish='], '--publish names nothing'),
    (['--overwrite'], '--overwrite needs --publish'),
  ):
    assert message in scripts.error(call('experiments.report', *words))


def test_the_script_checks_the_pages(call):
  finished = call('experiments.report', '--check')
  assert scripts.last_json(finished) == {'published': None, 'changed': []}
