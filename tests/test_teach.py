"Questions that lead somewhere, and practice notebooks whose checks hold: solved they all pass, empty they all fail with a hint"
import json, os, re, subprocess, sys
import pytest
from bearcls.book.notebooks import read_notebook, run_notebook
from bearcls.core import package_file
from bearcls.teach.practice import fill_notebook, practice_names, practise, task_results
from bearcls.teach.questions import read_questions, site_address
from notebooks import cells, root

sys.path.insert(0, str(root/'nbs'/'_sphinx'))
from pages import html_page, numbered, site_url, slug

questions = read_questions()

def headings(notebook):
    "Title first; lines of code are none"
    text = '\n\n'.join(c['source'] for c in cells(notebook) if c['cell_type'] == 'markdown')
    return re.findall(r'^#{1,6} (.+)$', re.sub(r'^(`{3,}).*?^\1', '', text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)

# ---------------------------------------------------------------- questions

def test_the_chapters_questions():
    assert [q.number for q in questions] == list(range(1, 28))
    for part in ('question', 'hint', 'answer'): assert len({getattr(q, part) for q in questions}) == 27, part
    assert [q.number for q in questions if len(q.answer.split()) >= 80] == []
    for q in questions: assert all(len(text.split()) > 2 for text in (q.question, q.hint, q.answer)) and q.answer.endswith('.'), q.number

@pytest.mark.parametrize('question', questions, ids=lambda q: str(q.number))
def test_each_leads_to_a_section(question):
    page, _, anchor = question.page.partition('#')
    titles = headings(root/'nbs'/page)
    assert question.title == titles[0] and question.section in titles[1:]
    assert anchor == slug(question.section)
    assert question.url == f'{site_url}{html_page(page)}#{anchor}' and site_address == site_url

def test_a_question_has_its_own_section_or_shares_it_with_a_reason():
    "A page that answers half of the list would show nothing at work"
    pages = [q.page for q in questions]
    assert max(pages.count(page) for page in pages) <= 3

# ---------------------------------------------------------------- practice

solved = {name: root/'nbs'/path for path in numbered('tutorials') if (name := path.partition('_')[2].removesuffix('.ipynb')) in practice_names()}

def test_practice_notebooks_in_step():
    done = subprocess.run([sys.executable, root/'nbs/_sphinx/practice.py', '--check'], capture_output=True, text=True, encoding='utf-8')
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(solved) == practice_names() and len(solved) >= 2

def run_all(notebook, folder):
    "Run every cell, also those behind an error"
    import nbclient, nbformat
    page = nbformat.reads(json.dumps(notebook), as_version=4)
    env = {**os.environ, 'TQDM_DISABLE': '1', 'BEARCLS_OFFLINE': '1'}
    nbclient.NotebookClient(page, timeout=300, allow_errors=True, kernel_name='python3', resources=dict(metadata=dict(path=str(folder)))).execute(env=env)
    return json.loads(nbformat.writes(page))

def n_checks(notebook): return sum(cell['id'].startswith('check-') for cell in notebook['cells'])

@pytest.mark.parametrize('name', practice_names())
def test_empty_each_check_fails_with_its_hint(name, tmp_path):
    stripped = read_notebook(practise(name, tmp_path))
    results = task_results(run_all(stripped, tmp_path))
    hints = {int(c['id'].removeprefix('check-')): re.search(r'hint=(.*)\)$', ''.join(c['source']))[1] for c in stripped['cells'] if c['id'].startswith('check-')}
    assert sorted(results) == sorted(hints) == list(range(1, n_checks(stripped) + 1)) and len(hints) >= 7
    for number, said in results.items():
        assert said.startswith(f'Task {number}: ') and 'not yet: ' in said, said
        assert said.endswith(f'Hint: {eval(hints[number])}'), said

@pytest.mark.parametrize('name', practice_names())
def test_solved_each_check_passes(name, tmp_path):
    "The tutorial's own cells are an answer"
    stripped = read_notebook(package_file(f'static/practice/{name}.ipynb'))
    ran, words, ok = run_notebook(fill_notebook(stripped, read_notebook(solved[name])), folder=tmp_path)
    assert ok, words
    results = task_results(ran)
    assert len(results) == n_checks(stripped)
    for number, said in results.items(): assert re.fullmatch(rf'Task {number}: (\d+) of \1 right', said), said

def test_the_tasks_are_not_seen_on_the_site(site):
    "Neither in the pages nor in the texts beside them"
    for name, file in solved.items():
        assert '<!-- task:' in file.read_text(encoding='utf-8')
        for kind in ('html', 'html.md'):
            assert 'hint:' not in (site/'tutorials'/f'{name}.{kind}').read_text(encoding='utf-8')
