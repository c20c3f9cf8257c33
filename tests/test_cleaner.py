"The Python half of the cleaner: what it answers to a browser, to a hostile one too, and to the book's two loops"
import json, os, shutil, threading
from dataclasses import asdict
import numpy as np
import pytest

pytest.importorskip('anywidget', reason='anywidget is not installed')
import torch
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from bearcls.clean.cleaning import Cleaning
from bearcls.clean.grid import CleanerWidget, Query
from bearcls.clean.widget import ImageClassifierCleaner, cleaner
from bearcls.core import DataError
from bearcls.folders import image_files
from bearcls.data.loaders import image_dls
from bearcls.interpret.evaluate import tabulate
from bearcls.verify.quarantine import quarantine_folder
from bearcls.sample.bears import draw_bears
from hostile import snapshot

labels = ['black', 'grizzly', 'teddy']

@pytest.fixture(scope='module')
def drawn(tmp_path_factory): return draw_bears(tmp_path_factory.mktemp('drawn')/'bears', n_per_label=15, seed=3, faults=False)

@pytest.fixture
def path(drawn, tmp_path): return shutil.copytree(drawn, tmp_path/'bears')

def predictions(path, wrong=(2, 15, 30)):
    "Made-up predictions, with some that contradict the label"
    files = image_files(path)
    targets = np.array([labels.index(f.parent.name) for f in files])
    p = np.random.default_rng(0).dirichlet([1, 1, 1], len(files))*.2
    p[np.arange(len(files)), targets] += .8
    for k in wrong: p[k] = np.roll(p[k], 1)
    return tabulate(files, ['valid' if k % 4 == 0 else 'train' for k in range(len(files))], p, targets, labels, np.eye(3)[p.argmax(1)] + .1)

@pytest.fixture
def widget(path): return CleanerWidget(Cleaning(path, predictions(path)))  # `cleaner` may leave predictions for later on a busy machine

@pytest.fixture(scope='module')
def untouched(drawn, tmp_path_factory):
    "A widget that no test changes"
    path = shutil.copytree(drawn, tmp_path_factory.mktemp('untouched')/'bears')
    return CleanerWidget(Cleaning(path, predictions(path)))

@pytest.fixture
def learn(path):
    small = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 3))
    return Learner(image_dls(path, size=32, bs=16, augment=()), small, loss_func=CrossEntropyLossFlat())

def ask(widget, do, **fields): return widget.answer(dict(do=do, id=7, **fields))[0]
def names(widget): return [i.file for i in widget.cleaning.view(order='name', per_page=1000).items]

# ---------------------------------------------------------------- messages

@pytest.mark.parametrize('message', [None, 7, 'delete', [], {}, {'do': None}, {'do': ['page']}, {'do': '__init__'}, {'do': 'cleaning'}, {'do': 'page'},
    {'do': 'page', 'query': []}, {'do': 'page', 'query': {'page': 1.5}}, {'do': 'page', 'query': {'page': True}}, {'do': 'page', 'query': {'page': -1}}, {'do': 'page', 'query': {'label': None}},
    {'do': 'page', 'query': {'order': 'random'}}, {'do': 'page', 'query': {'show': '<script>'}}, {'do': 'page', 'query': {'per_page': 10**9}}, {'do': 'page', 'query': {'label': 'x'*100_000}},
    {'do': 'images', 'files': 'black'}, {'do': 'images', 'files': [None]}, {'do': 'images', 'files': [{}]}, {'do': 'images', 'files': [['black/a.jpg']]}, {'do': 'images', 'files': ['../../etc/passwd']}, {'do': 'images', 'files': ['/etc/passwd']},
    {'do': 'large', 'file': '..'}, {'do': 'large', 'file': 3}, {'do': 'mark', 'files': ['manifest.csv'], 'action': 'delete', 'to': ''}, {'do': 'mark', 'files': [None], 'action': 'delete', 'to': ''},
    {'do': 'mark', 'files': [['a']], 'action': 'delete', 'to': ''}, {'do': 'mark', 'files': [], 'action': 'burn', 'to': ''}, {'do': 'mark', 'files': []}, {'do': 'mark', 'files': ['black/black_0000.jpg'], 'action': 'relabel', 'to': '../..'},
    {'do': 'apply'}, {'do': 'apply', 'token': 1}, {'do': 'apply', 'token': ''}], ids=lambda m: str(m)[:60])
def test_bad_messages_are_refused_in_words(untouched, message):
    folder = untouched.cleaning.path.parent
    before = snapshot(folder)
    answer, buffers = untouched.answer(message)
    assert answer['refused'] and len(answer['refused']) < 1000 and not buffers
    assert 'Traceback' not in answer['refused'] and '/etc/passwd' not in answer['refused'].replace("'/etc/passwd'", '').replace("'../../etc/passwd'", '')
    assert snapshot(folder) == before and not untouched.cleaning.marks
    json.dumps(answer)

def test_answers_carry_the_number_of_the_request(untouched):
    assert ask(untouched, 'page', query={})['id'] == 7 and ask(untouched, 'nonsense')['id'] == 7
    assert untouched.answer({'do': 'page', 'query': {}, 'id': {'a': 1}})[0]['id'] is None

def test_pages_filters_and_orders(widget):
    files = names(widget)
    page = ask(widget, 'page', query=asdict(Query(order='name')))['page']
    assert [i['file'] for i in page['items']] == files[:30] and (page['pages'], page['total'], page['first']) == (2, 45, 0)
    last = ask(widget, 'page', query=asdict(Query(order='name', page=99)))['page']
    assert (last['page'], last['first'], len(last['items'])) == (1, 30, 15), 'a page beyond the last is the last'
    assert widget.query.page == 1
    for name, of in (('label', 'label'), ('split', 'split')):
        [options] = [f['options'] for f in ask(widget, 'undo')['state']['filters'] if f['name'] == name]
        for value, words in options[1:]:
            found = ask(widget, 'page', query={name: value})['page']
            assert {i[of] for i in found['items']} == {value} and words == f'{value} ({found["total"]})'
    for kind, n in widget.cleaning.reasons.items(): assert ask(widget, 'page', query=dict(reason=kind))['page']['total'] == n

def test_everything_sent_is_json(widget):
    "NaN and numpy's numbers are no JSON; a browser would refuse the whole message"
    widget.cleaning.mark(names(widget)[:2], 'delete')
    for do, fields in (('page', dict(query={})), ('plan', {}), ('undo_mark', {}), ('stay', dict(query={}))): json.loads(json.dumps(ask(widget, do, **fields), allow_nan=False))
    bare = CleanerWidget(Cleaning(widget.cleaning.path))
    json.dumps({k: v for k, v in bare.now_answer().items() if k != 'bytes'}, allow_nan=False)

def test_light_on_the_wire(widget):
    "The state that opens the widget: thirty images, their words, and the widget's own code"
    state = widget.get_state()
    images = sum(map(len, state['now'].pop('bytes')))
    words = len(json.dumps(state, default=str))
    assert len(state['now']['images']) == 30 and 50_000 < images + words <= 200_000, (images, words)

def test_marks_are_those_of_the_disk(widget, path):
    "Another object, as after a restarted kernel, shows the same marks; and so does a reloaded page"
    a, b, c = names(widget)[:3]
    ask(widget, 'mark', files=[a, b], action='delete', to='')
    said = ask(widget, 'mark', files=[c], action='relabel', to='teddy')
    assert said['state']['summary'] == dict(keep=0, delete=2, relabel=1, undecided=42) and said['said'] == '1 image to be relabelled to teddy.'
    after = cleaner(path)
    shown = {i['file']: i['mark'] for i in after.get_state()['now']['page']['items'] if i['mark']}
    assert shown == {a: dict(action='delete', to=''), b: dict(action='delete', to=''), c: dict(action='relabel', to='teddy')}
    ask(widget, 'page', query=dict(show='marked'))
    assert widget.get_state()['now']['page']['query']['show'] == 'marked', 'a reloaded page begins where one was'
    ask(widget, 'undo_mark')
    assert set(widget.cleaning.marks) == {a, b}

def test_an_unsaved_mark_is_taken_back(widget, monkeypatch):
    "Where the mark cannot be kept the browser hears so, and what is true"
    [file] = names(widget)[:1]
    def full(*args): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as patched:
        patched.setattr(os, 'replace', full)
        answer = ask(widget, 'mark', files=[file], action='delete', to='')
    assert 'No space left on device' in answer['refused'] and answer['marks'] == {file: None}
    assert not widget.cleaning.marks

def test_a_state_never_fails(widget, path):
    "The browser asks for the states of all widgets at once; one that fails would take the others along"
    shutil.rmtree(path)
    assert 'refused' in widget.get_state()['now'] or widget.get_state()['now']['page'] is not None

# ---------------------------------------------------------------- plan, apply, undo

def test_apply_does_what_was_shown_and_undo_brings_back(widget, path):
    before = snapshot(path)
    times = {f: os.stat(path/f).st_mtime_ns for f in before}
    a, b, c = names(widget)[:3]
    ask(widget, 'mark', files=[a, b], action='delete', to='')
    ask(widget, 'mark', files=[c], action='relabel', to='teddy')
    plan = ask(widget, 'plan')['plan']
    assert {r['file'] for r in plan['rows']} == {a, b, c} and plan['words'] == '2 to the quarantine and 1 to another label.'
    ask(widget, 'mark', files=names(widget)[3:4], action='delete', to='')
    assert 'review it again' in ask(widget, 'apply', token=plan['token'])['refused']
    assert snapshot(path) == before
    ask(widget, 'undo_mark')
    done = ask(widget, 'apply', token=plan['token'])
    assert done['forget'] and done['state']['can_undo'] and done['state']['revision'] == 1 and done['said'].startswith('3 files moved')
    assert (path/'teddy'/c.split('/')[1]).exists() and (quarantine_folder(path)/a).exists() and not (path/a).exists()
    back = ask(widget, 'undo')
    assert snapshot(path) == before and times == {f: os.stat(path/f).st_mtime_ns for f in before}
    assert not back['state']['can_undo']
    assert ask(widget, 'undo')['said'] == 'Nothing was brought back.'

def test_nothing_marked(widget): assert ask(widget, 'plan')['said'] == 'Nothing is marked to be deleted or relabelled.'

def test_a_long_plan_is_cut_and_counted(path):
    for n in range(230): shutil.copy(path/'black'/'black_0000.jpg', path/'black'/f'copy_{n}.jpg')
    widget = cleaner(path)
    widget.cleaning.mark([f for f in names(widget) if 'copy' in f], 'delete')
    plan = ask(widget, 'plan')['plan']
    assert (len(plan['rows']), plan['more']) == (200, 30) and plan['words'].startswith('230 to the quarantine')

def test_names_of_strangers_are_text(path):
    (path/'black'/'<img src=x onerror=alert(1)>.jpg').write_bytes((path/'black'/'black_0000.jpg').read_bytes())
    widget = cleaner(path, seen=None)
    shown = widget.table_html(100)
    assert '<img src=x' not in shown and '&lt;img src=x' in shown

def test_names_that_are_not_utf8(path):
    "They reach the browser as text that it can send back, and take no other image with them"
    if os.name == 'nt': pytest.skip('names are Unicode there')
    try: os.makedirs(os.fsencode(path/'na')+b'\xefve')
    except OSError: pytest.skip('this disk keeps no such names')
    name = os.fsdecode(b'na\xefve/\xe4r.jpg')
    shutil.copy(path/'black'/'black_0000.jpg', path/name)
    widget, sent = cleaner(path), []
    widget._send = lambda message, buffers=None: sent.append(message)
    def wire(do, **fields):
        widget._handle_custom_msg(dict(do=do, id=1, **fields), [])
        answer = json.loads(json.dumps(sent.pop()['content'], ensure_ascii=False).encode())
        assert 'refused' not in answer, answer['refused']
        return answer
    shown = widget.get_state()['now']
    json.dumps({k: v for k, v in shown.items() if k != 'bytes'}, ensure_ascii=False).encode()
    [label] = [l for l in wire('undo')['state']['labels'] if l.startswith('na')]
    [file] = [i['file'] for i in wire('page', query=dict(label=label))['page']['items']]
    assert wire('images', files=[file, 'black/black_0000.jpg'])['images'][0] == file and wire('large', file=file)['large'] == file
    assert wire('mark', files=[file, 'black/black_0001.jpg'], action='relabel', to='teddy')['marks'][file] and name in widget.cleaning.marks
    assert wire('mark', files=['black/black_0000.jpg'], action='relabel', to=label)['marks']
    plan = wire('plan')['plan']
    assert file in [r['file'] for r in plan['rows']]
    wire('apply', token=plan['token'])
    assert (path/'teddy'/name.split('/')[1]).exists()
    str(widget._repr_mimebundle_()[0]).encode()

def test_a_label_that_goes(path):
    "Its last image moves while it is the filter, and the page is loaded anew"
    widget, other = cleaner(path), Cleaning(path, labels=['polar'])
    [file] = names(widget)[:1]
    other.mark(file, 'relabel', 'polar')
    other.apply()
    assert ask(widget, 'page', query=dict(label='polar'))['page']['total'] == 1
    assert ask(widget, 'undo')['said'] == '1 file brought back.'
    now = widget.get_state()['now']
    assert (now['page']['query']['label'], now['page']['total'], now['state']['filters'][0]['name']) == ('', 45, 'label')

def test_an_offered_label_without_images(path):
    widget = cleaner(path, labels=['polar'])
    assert ask(widget, 'page', query=dict(label='polar'))['page']['total'] == 0
    assert ['polar', 'polar (0)'] in widget.state_answer()['filters'][0]['options']

def test_told_what_another_window_moved(widget, path):
    "With whatever answer comes next, once; marks and pages are those of now"
    a, b, c = names(widget)[:3]
    other = cleaner(path)
    ask(widget, 'mark', files=[a], action='delete', to='')
    ask(other, 'apply', token=ask(other, 'plan')['plan']['token'])
    told = ask(widget, 'mark', files=[b], action='keep', to='')
    assert told['forget'] and told['said'] == '1 image to be kept.' and told['marks'] == {b: dict(action='keep', to='')}
    assert (told['state']['revision'], told['state']['can_undo'], told['state']['summary']['undecided']) == (1, True, 43)
    assert 'forget' not in ask(widget, 'page', query={}) and a not in names(widget)
    ask(other, 'undo')
    told = ask(widget, 'mark', files=['nothing.jpg'], action='keep', to='')
    assert told['refused'] and told['forget'] and a in names(widget)
    other.cleaning.apply()
    now = widget.get_state()['now']
    assert now['state']['can_undo'] and now['page']['total'] == 44

def test_suggestions_are_one_stroke(widget):
    suggested = [i.file for i in widget.cleaning.items if i.proposal == 'relabel']
    ask(widget, 'mark', files=suggested[:1], action='keep', to='')
    others = [f for f in names(widget) if f not in suggested][:2]
    said = ask(widget, 'accept', files=[*suggested, *others])
    assert len(suggested) >= 3 and said['said'] == f'{len(suggested)} images marked as suggested.'
    assert {f: m and m['to'] for f, m in said['marks'].items()} == {i.file: i.to if i.proposal == 'relabel' else None for i in widget.cleaning.items if i.file in said['marks']}
    ask(widget, 'undo_mark')
    assert {f: m.action for f, m in widget.cleaning.marks.items()} == {suggested[0]: 'keep'}
    assert 'Nothing is suggested' in ask(widget, 'accept', files=others)['said'] and 'is none of the images' in ask(widget, 'accept', files=['a.jpg'])['refused']

# ---------------------------------------------------------------- predictions, and where they come from

def test_images_at_once_predictions_later(path, learn):
    free = threading.Event()
    widget = cleaner(path)
    def work():
        free.wait(30)
        return predictions(path)
    sent = []
    widget.send = lambda answer, buffers=None: sent.append(answer)
    thread = widget.predict(work)
    assert sent[0]['state']['predictions'] == 'Predictions are on their way.'
    first = names(widget)[0]
    assert widget.get_state()['now']['bytes'] and widget.state_answer()['predictions'] == 'Predictions are on their way.'
    ask(widget, 'mark', files=[first], action='keep', to='')
    free.set()
    thread.join(30)
    assert widget.state_answer()['predictions'] == '' and widget.page_answer(Query())['items'][0]['predicted'] and first in widget.cleaning.marks
    assert sent[-1]['state']['revision'] == 1 and sent[-1]['state']['predictions'] == '', 'the browser is told to ask again'

def test_from_a_learner(path, learn):
    weights = [p.clone() for p in learn.model.parameters()]
    widget = cleaner(learn)
    widget.thread.join(60)
    assert widget.predictions == '' and {i.split for i in widget.cleaning.items} == {'train', 'valid'} and all(i.predicted for i in widget.cleaning.items)
    assert all((a == b).all() for a, b in zip(weights, learn.model.parameters())) and widget.cleaning.path == path

def test_slow_suspicions_do_not_keep_images_waiting(path, monkeypatch):
    free, add = threading.Event(), Cleaning.add_predictions
    def slowly(self, seen, report=None):
        free.wait(30)
        add(self, seen, report)
    monkeypatch.setattr(Cleaning, 'add_predictions', slowly)
    widget = cleaner(path, seen=predictions(path))
    assert widget.get_state()['now']['bytes'] and widget.predictions
    free.set()
    widget.thread.join(30)
    assert widget.predictions == '' and widget.page_answer(Query())['items'][0]['predicted']

def test_predictions_about_other_images(path):
    seen = predictions(path)
    seen.table['file'] = [f'elsewhere/images/{k}/{k}.jpg' for k in range(len(seen))]
    with pytest.raises(DataError, match='None of the 45 predictions'): cleaner(path, seen=seen)

def test_a_failing_model_is_told(path, learn):
    learn.model[2] = torch.nn.Linear(5, 3)
    widget = cleaner(learn)
    widget.thread.join(60)
    assert widget.predictions.startswith('There are no predictions: ') and 'shapes' in widget.predictions

def test_pages_of_a_wrong_size(path):
    for n in (0, -1, 1.5, 10**6):
        with pytest.raises(ValueError, match='per_page'): cleaner(path, per_page=n)
    with pytest.raises(DataError, match='There is no folder|is not a folder'): cleaner(path/'nowhere')

# ---------------------------------------------------------------- the book

def test_the_books_two_loops(path, learn):
    "On the whole set, whatever is shown, and on the right files"
    seen = predictions(path)
    book = ImageClassifierCleaner(learn, seen=seen)
    before = {f.relative_to(path).as_posix(): f.read_bytes() for f in image_files(path)}
    assert [f.name for f in book.fns] == [os.path.basename(f) for f in seen.table.sort_values('loss', ascending=False, kind='stable').file]
    gone = ['black/black_0003.jpg', 'teddy/teddy_0005.jpg', 'grizzly/grizzly_0001.jpg']
    ask(book, 'page', query=dict(label='black', split='valid'))
    book.cleaning.mark(gone, 'delete')
    book.cleaning.mark(['teddy/teddy_0007.jpg'], 'relabel', 'black')
    for idx in book.delete(): book.fns[idx].unlink()
    for idx, cat in book.change(): shutil.move(str(book.fns[idx]), path/cat)
    after = {f.relative_to(path).as_posix(): f.read_bytes() for f in image_files(path)}
    expected = {f: b for f, b in before.items() if f not in gone}
    expected['black/teddy_0007.jpg'] = expected.pop('teddy/teddy_0007.jpg')
    assert after == expected
    assert not list(book.delete()) and not list(book.change())

def test_positions_never_change_their_file(path, learn):
    "Not when predictions come, not when files go, not when new ones come"
    book = ImageClassifierCleaner(learn)
    first = list(book.fns)  # waits for the predictions
    book.cleaning.add_predictions(predictions(path, wrong=(5, 6, 7)))
    shutil.copy(first[0], path/'black'/'aaa.jpg')
    first[3].unlink()
    book.refresh()
    assert list(book.fns)[:len(first)] == first and book.fns[len(first)].name == 'aaa.jpg'

def test_called_as_fastais(path, learn):
    seen = predictions(path)
    assert ImageClassifierCleaner(learn, (), 128, 256, 20, seen=seen).per_page == ImageClassifierCleaner(learn, height=128, width=256, max_n=20, seen=seen).per_page == 20
    with pytest.raises(ValueError, match='`max_n` must lie between 1 and 200, got 500'): ImageClassifierCleaner(learn, max_n=500, seen=seen)

def test_positions_are_not_worked_out_again(path, learn, monkeypatch):
    "The book's loop asks for them once for each deleted image"
    book = ImageClassifierCleaner(learn, seen=predictions(path))
    first = list(book.fns)
    with monkeypatch.context() as patched:
        patched.setattr(Cleaning, 'view', None)
        book.fns.clear()
        assert list(book.fns) == first
