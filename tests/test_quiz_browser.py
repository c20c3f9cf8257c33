"The quiz in JupyterLab and Voilà by keyboard alone, in a real browser: a hint, answers, marks, a reload, to the end"
import os
import pytest

pytest.importorskip('anywidget', reason='anywidget is not installed')
from bearcls.teach.questions import read_questions
from bearcls.teach.quiz import read_boxes
from front_ends import (await_output, check_contrasts, check_keys, check_narrow, draw_for_site, image_bytes, in_both_themes, jupyter, open_notebook, run_cells, voila_page, wait_until,
    write_notebook)

cell = '''from bearcls.teach.questions import read_questions
from bearcls.teach.quiz import Quiz, QuizWidget
QuizWidget(Quiz('quiz.json', read_questions()[8:13]))'''

@pytest.fixture(scope='module')
def voila(tmp_path_factory):
    folder = tmp_path_factory.mktemp('voila')
    write_notebook(folder, 'quiz', cell)
    with voila_page(folder, 'quiz') as url: yield folder, url

def shown(page): await_output(page, '.bq-question')

def theme(page): return page.locator('.bq-card .bc-muted').inner_text()

def on_show(page, number): page.get_by_text(f'Question {number}: ').wait_for()

def tab_to(page, selector):
    "Reach an element by Tab alone, as someone without a mouse does"
    for _ in range(80):
        if page.evaluate('s => Boolean(document.activeElement?.matches(s))', selector): return
        page.keyboard.press('Tab')
    raise AssertionError(f'Tab does not reach {selector}')

def axe_finds(page):
    "What axe has against the widget"
    axe = pytest.importorskip('axe_playwright_python.sync_playwright').Axe()
    found = axe.run(page, context='.bearcls-quiz').response['violations']
    return [(v['id'], v['help'], [n['html'] for n in v['nodes']][:3]) for v in found]

def test_by_keyboard_in_jupyter(browser, tmp_path):
    "Every question marked without a mouse; what was missed comes back, and a reload forgets nothing"
    write_notebook(tmp_path, 'quiz', cell)
    progress = tmp_path/'quiz.json'
    with jupyter(tmp_path) as url, browser.new_page(viewport=dict(width=1280, height=900)) as page:
        open_notebook(page, tmp_path, url, 'lab', 'quiz', 'JupyterLab Dark')
        run_cells(page)
        shown(page)
        assert page.locator('.bearcls-quiz').get_attribute('data-theme') == 'dark' and not progress.exists()
        check_keys(page, '.bq-card')
        page.keyboard.press('1')  # nothing can be marked before the answer was read
        assert page.locator('.bq-opened').inner_text() == '' and theme(page).startswith('Question 9:')
        page.keyboard.press('h')
        page.locator('.bq-hint').wait_for()
        assert not page.locator('.bq-answer').count()
        page.keyboard.press('Enter')
        page.locator('.bq-answer').wait_for()
        assert not axe_finds(page)
        page.keyboard.press('2')  # missed
        page.get_by_text('Question 9 comes again in 10 minutes.').wait_for()
        for number in (10, 11, 12, 13):
            on_show(page, number)
            assert page.locator('.bq-opened').inner_text() == ''
            tab_to(page, '.bq-buttons .bc-main')  # by Tab and the buttons as well as by keys
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == 'solid', 'the focus can not be seen'
            page.keyboard.press('Enter')
            page.locator('.bq-answer').wait_for()
            page.keyboard.press('1')
        on_show(page, 9)  # missed, so once more before the end
        wait_until(lambda: {n: b.box for n, b in read_boxes(progress).items()} == {9: 1, 10: 2, 11: 2, 12: 2, 13: 2}, 'marks were not kept')
        page.keyboard.press('Enter')
        page.keyboard.press('1')
        page.get_by_text('Nothing is due. The next question comes in').wait_for()
        assert not axe_finds(page)
        tab_to(page, '.bq-buttons .bc-button:not([hidden])')
        page.keyboard.press('Enter')
        page.get_by_text('These come before they are due.').wait_for()
        assert page.locator('.bq-question').inner_text() == read_questions()[9].question.replace('`', '')

def test_by_keyboard_on_the_site(browser, site):
    "The page of questions needs no kernel: every hint and answer unfolds by keyboard, and axe finds nothing in them"
    axe = pytest.importorskip('axe_playwright_python.sync_playwright').Axe()
    with browser.new_page(viewport=dict(width=400, height=800)) as page:
        page.goto((site/'teach'/'questions.html').as_uri() + '#limits-of-models')
        folded = page.locator('section:not(#one-question) details').filter(has=page.locator('summary', has_text='question'))
        summaries = folded.locator('summary')
        assert summaries.count() >= 2*27
        summaries.get_by_text('Hint for question 27', exact=True).focus()
        for words in ('Hint for question 27', 'Answer to question 27'):
            here = page.locator('details', has=page.get_by_text(words, exact=True))
            assert page.evaluate('document.activeElement.textContent') == words and here.get_attribute('open') is None
            page.keyboard.press('Enter')
            assert here.get_attribute('open') is not None
            page.keyboard.press('Tab')
        anchor = read_questions()[26].page.partition('#')[2]
        assert page.evaluate('document.activeElement.href').endswith(f'#{anchor}'), 'what shows it at work comes next'
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth'), 'the page is wider than the screen'
        found = [v for v in axe.run(page).response['violations'] if v['impact'] in ('serious', 'critical')]
        assert found == [], [(v['id'], [n['html'] for n in v['nodes']][:3]) for v in found]

def test_damaged_file(browser, voila):
    "The message stands in the widget, and the file stays"
    folder, url = voila
    progress = folder/'quiz.json'
    progress.unlink(missing_ok=True)
    with browser.new_page(viewport=dict(width=900, height=700)) as page:
        page.goto(url, timeout=120_000)
        shown(page)
        progress.write_text('garbled')
        page.locator('.bq-card').focus()
        for key in ('Enter', '1'): page.keyboard.press(key)
        page.get_by_role('alert').get_by_text("can't be read as the progress of a quiz").wait_for()
        assert progress.read_text() == 'garbled' and page.locator('.bq-answer').count()
    progress.unlink()

def test_looks_and_sizes(browser, voila):
    "Text can be read on light and on dark pages, axe finds nothing, and nothing is cut off at 400 pixels"
    folder, url = voila
    (folder/'quiz.json').unlink(missing_ok=True)
    with browser.new_page(viewport=dict(width=900, height=700)) as page:
        page.goto(url, timeout=120_000)
        shown(page)
        page.locator('.bq-card').focus()
        for key in ('h', 'Enter'): page.keyboard.press(key)
        page.locator('.bq-answer').wait_for()
        for theme in in_both_themes(page, 'bearcls-quiz'):
            check_contrasts(page)
            assert not axe_finds(page)
            image_bytes(page, f'quiz-{theme}')
        check_narrow(page, 400)
        image_bytes(page, 'quiz-400')

@pytest.mark.skipif('BEARCLS_IMAGES' not in os.environ, reason='BEARCLS_IMAGES names no folder for images of the page')
def test_image_for_the_site(browser, voila):
    "BEARCLS_IMAGES=nbs/images pytest tests/test_quiz_browser.py -k site draws the site's quiz.png anew"
    folder, url = voila
    (folder/'quiz.json').unlink(missing_ok=True)
    with browser.new_page(viewport=dict(width=760, height=700)) as page:
        page.goto(url, timeout=120_000)
        shown(page)
        page.locator('.bq-card').focus()
        for key in ('Enter', '1'): page.keyboard.press(key)
        on_show(page, 10)
        for key in ('h', 'Enter'): page.keyboard.press(key)
        page.locator('.bq-answer').wait_for()
        page.evaluate("document.querySelector('.bq-file').textContent = 'Your progress is kept in quiz.json'")
        draw_for_site(page.locator('.bearcls-quiz'), 'quiz.png')
