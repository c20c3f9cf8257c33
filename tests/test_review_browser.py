"The review widget in JupyterLab, Notebook 7 and Voilà, driven by mouse and by keyboard alone, in a real browser"
import os
import pytest

pytest.importorskip('anywidget', reason='anywidget is not installed')
pytest.importorskip('sqlalchemy', reason='SQLAlchemy is not installed')
from bearcls.folders import image_files
from bearcls.monitor.log import LogRow, PredictionLog
from bearcls.rollout.queue import ReviewQueue
from bearcls.sample.bears import draw_bears
from front_ends import (await_output, check_contrasts, check_keys, check_narrow, draw_for_site, idle, image_bytes, in_both_themes, jupyter, open_notebook, run_cells, voila_page, wait_until,
    write_notebook)

labels = ['black', 'grizzly', 'teddy']
cell = '''from bearcls.folders import image_files
from bearcls.monitor.log import PredictionLog
from bearcls.rollout.queue import ReviewQueue
from bearcls.rollout.review import ReviewWidget
ReviewWidget(ReviewQueue(PredictionLog('log.sqlite'), twice=0., images='bears'), 'Anna')'''

def write_log(folder):
    "A new log of 24 answers; the fourth of them is one on which two models disagree, and one image is missing"
    for name in folder.glob('log.sqlite*'): name.unlink()
    log = PredictionLog(folder/'log.sqlite')
    rows = []
    for k, file in enumerate(image_files(folder/'bears')):
        label = file.parent.name
        name = file.name if k != 20 else 'gone.jpg'
        for role in ('', 'shadow') if k == 3 else ('',):
            says = 'teddy' if role else label
            rows.append(LogRow(says, .6, dict.fromkeys(labels, .2) | {says: .6}, False, 'not sure enough', confidence=.5 + k/100, name=name, place='gate',
                role=role, pair=f'pair-{k}', answer=f'{k}{role}'))
    log.write(rows)
    return log

def prepare(folder):
    draw_bears(folder/'bears', n_per_label=8, seed=3, faults=False)
    write_notebook(folder, 'review', cell)

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lab')
    prepare(folder)
    with jupyter(folder) as url: yield folder, url

@pytest.fixture(scope='module')
def voila(tmp_path_factory):
    folder = tmp_path_factory.mktemp('voila')
    prepare(folder)
    with voila_page(folder, 'review') as url: yield folder, url

def shown(page):
    "Wait until the widget shows its first image"
    await_output(page, '.br-image img')
    page.wait_for_function("(i => i && i.complete && i.naturalWidth)(document.querySelector('.br-image img'))")

def open_lab(page, folder, url, theme, front):
    open_notebook(page, folder, url, front, 'review', theme)
    run_cells(page)
    shown(page)
    idle(page)

def facts(page): return page.locator('.br-facts').inner_text()

def name(page): return page.locator('.br-name').inner_text()

class Mouse:
    def __init__(self, page): self.page = page
    def begin(self): pass
    def say(self, words): self.page.locator('.br-answers').get_by_role('button', name=words, exact=True).click()

class Keyboard:
    keys = dict(Right='Enter', Other='o', **{'Cannot tell': '?', 'Undo': 'z'})
    def __init__(self, page): self.page = page
    def begin(self):
        self.page.locator('.br-card').focus()
    def say(self, words): self.page.keyboard.press(self.keys.get(words) or str(1 + labels.index(words)))

def said(log): return {look.answer: look.said for look in ReviewQueue(log, days=1e5).looks()}

def walk(page, log, hand, reload):
    "The whole way: disagreement, right, another label, other, cannot tell, undo, a reload, to the end"
    hand.begin()
    assert 'models: black or teddy' in facts(page)  # the disagreement comes first
    assert not page.locator('.br-right').is_visible()
    first = name(page)
    hand.say('black')
    page.wait_for_function("n => document.querySelector('.br-name').textContent !== n", arg=first)
    wait_until(lambda: said(log) == {'3': 'black'}, 'the label was not stored')
    page.get_by_text('Stored: black.').wait_for()
    for words, stored in (('Right', None), ('teddy', 'teddy'), ('Other', 'other'), ('Cannot tell', 'cannot tell')):
        here, label = name(page), facts(page).split('\n')[0].removeprefix('model: ')
        hand.say(words)
        page.wait_for_function("n => document.querySelector('.br-name').textContent !== n", arg=here)
        wait_until(lambda: list(said(log).values())[-1] == (stored or label), f'{words} was not stored')
    before = len(said(log))
    hand.say('Undo')
    page.wait_for_function("n => document.querySelector('.br-name').textContent === n", arg=here)
    wait_until(lambda: len(said(log)) == before - 1, 'undo did not take back')
    assert len({v.who for v in ReviewQueue(log, days=1e5).looks()}) == 1
    reload()
    shown(page)
    assert name(page) == here, 'the reload shows another image'
    hand.begin()
    for k in range(before - 1, 24):
        here = name(page)
        if here == 'gone.jpg': page.get_by_text('No image: the log keeps no thumbnail').wait_for()
        hand.say('Cannot tell' if here == 'gone.jpg' else 'Right')
        if k < 23: page.wait_for_function("n => document.querySelector('.br-name').textContent !== n", arg=here)
    page.get_by_text('Nothing waits to be looked at.').wait_for()
    wait_until(lambda: len(said(log)) == 24, 'not everything was stored')
    page.get_by_role('button', name='Look for more').click()
    page.get_by_text('24 of 50 images today').wait_for()

@pytest.mark.parametrize('front, hand, theme', [('lab', Mouse, 'JupyterLab Light'), ('lab', Keyboard, 'JupyterLab Dark'), ('notebook', Keyboard, 'JupyterLab Light')],
    ids=['lab-mouse', 'lab-keyboard', 'notebook-keyboard'])
def test_in_jupyter(browser, lab, front, hand, theme):
    folder, url = lab
    log = write_log(folder)
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        open_lab(page, folder, url, theme, front)
        assert page.locator('.bearcls-review').get_attribute('data-theme') == theme.split()[1].lower()
        check_keys(page, '.br-card')
        def reload():
            page.locator('.jp-NotebookPanel .jp-InputArea-editor').first.click()
            page.keyboard.press('Control+s')
            idle(page)
            page.reload()
            page.locator('.jp-Notebook .jp-Cell').first.wait_for(timeout=120_000)
            idle(page)
            if not page.locator('.br-image img').count(): run_cells(page)  # a widget comes back only where its state was kept
        walk(page, log, hand(page), reload)

@pytest.mark.parametrize('hand', [Mouse, Keyboard], ids=['mouse', 'keyboard'])
def test_in_voila(browser, voila, hand):
    folder, url = voila
    log = write_log(folder)
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        page.goto(url, timeout=120_000)
        shown(page)
        walk(page, log, hand(page), lambda: page.reload(timeout=120_000))

def test_quick_fingers(browser, voila):
    "Ten keys faster than Python answers: each is about the image that was on show, and none is lost"
    folder, url = voila
    log = write_log(folder)
    with browser.new_page(viewport=dict(width=1280, height=900)) as page:
        page.goto(url, timeout=120_000)
        shown(page)
        page.locator('.br-card').focus()
        pressed = {}
        for k in range(4):
            pressed[name(page)] = labels[k % 3]
            page.keyboard.press(str(1 + k % 3))
        wait_until(lambda: len(said(log)) == 4, 'keys were lost')
        columns = next(log.read(['answer', 'name', 'correct']))
        stored = {n: c for n, c in zip(columns['name'], columns['correct']) if c}
        assert stored == pressed

def test_looks_and_sizes(browser, voila):
    "Text can be read on light and on dark pages, and nothing is cut off on a telephone"
    folder, url = voila
    write_log(folder)
    with browser.new_page(viewport=dict(width=900, height=700)) as page:
        page.goto(url, timeout=120_000)
        shown(page)
        page.locator('.br-card').focus()
        page.keyboard.press('1')
        page.get_by_text('Stored: black.').wait_for()
        shown(page)
        for theme in in_both_themes(page, 'bearcls-review'):
            check_contrasts(page)
            image_bytes(page, f'review-{theme}')
        check_narrow(page, 360)
        image_bytes(page, 'review-360')

@pytest.mark.skipif('BEARCLS_IMAGES' not in os.environ, reason='BEARCLS_IMAGES names no folder for images of the page')
def test_image_for_the_site(browser, voila):
    "BEARCLS_IMAGES=nbs/images pytest tests/test_review_browser.py -k site draws the site's review.png anew"
    folder, url = voila
    write_log(folder)
    with browser.new_page(viewport=dict(width=800, height=700)) as page:
        page.goto(url, timeout=120_000)
        shown(page)
        page.locator('.br-card').focus()
        page.keyboard.press('1')
        page.get_by_text('Stored: black.').wait_for()
        shown(page)
        draw_for_site(page.locator('.bearcls-review'), 'review.png')
