"What both builds of the site are given: the processed notebooks and the style sheets, one test for each fault that Quarto's pages had"
import html, json, os, re, sys
from html.parser import HTMLParser
from urllib.parse import parse_qs, unquote, urlsplit
import pytest
from notebooks import _kind, cells as cells_of, notebooks, root
from bearcls.pages import in_boxes

sys.path.insert(0, str(root/'nbs'/'_sphinx'))
from pages import docname, html_page
from twins import llms, sitemap, to_twin, twin

names = [f.relative_to(root/'nbs').as_posix() for f in notebooks()]
longest = 88  # characters of a line in an example

@pytest.fixture(scope='module')
def processed():
    "Every notebook as nbdev processes it, `bearcls.pages` included: what the site in BEARCLS_SITE was made from, or processed anew"
    if not os.environ.get('BEARCLS_SITE'):
        from nbdev.serve import proc_nbs
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            proc_nbs(n_workers=0, force=True)
    return {name: json.loads((root/'_proc'/name).read_text(encoding='utf-8'))['cells'] for name in names}

def source(cell): return ''.join(cell['source'])

def outputs(cells): return [out for cell in cells for out in cell.get('outputs', [])]

def entries(cells): return [source(c) for c in cells if c['cell_type'] == 'markdown' and '\n\n::: {.api}' in source(c)]

def styles(name): return re.sub(r'/\*.*?\*/|//[^\n]*', '', (root/name).read_text(encoding='utf-8'), flags=re.DOTALL)

def test_no_widget_stands_empty(processed):
    "1: a page has no kernel, so no output is a widget, and each has one form"
    kinds = {name: [set(out['data']) for out in outputs(cells) if 'data' in out] for name, cells in processed.items()}
    assert {n for n, found in kinds.items() if any(len(k) != 1 or 'application/vnd.jupyter.widget-view+json' in k for k in found)} == set()
    cells = processed['clean/07_grid.ipynb']
    begin = next(i for i, c in enumerate(cells) if c['cell_type'] == 'markdown' and source(c).startswith('## Without widgets'))
    assert outputs(cells[begin:begin + 6]), 'the section shows nothing'

def test_names_are_headings_of_the_page(processed):
    "2: in a code cell Quarto would wrap them in a box, and the contents and the search miss them"
    for name, cells in processed.items():
        assert not [c for c in cells if 'execution' in c['metadata']], name
        assert not [c for c in cells if c['cell_type'] == 'code' and 'show_doc(' in source(c) and 'output: asis' in source(c)], name
    found = [re.match(r'#+ (\S+)', e)[1] for e in entries(processed['00_core.ipynb'])]
    assert {'expect', 'sha256'} <= {f.replace('\\', '') for f in found}

def test_signatures_wrap_and_have_comments(processed):
    "3: nothing is wider than the page, no trace of the notebook's own module, and each parameter says what it means"
    silent, bare = [], []
    for name, cells in processed.items():
        for text in entries(cells):
            assert '__main__' not in text and '<factory>' not in text, name
            call = re.search(r'```(?:python|text)\n(.*?)\n```', text, re.DOTALL)
            if not call: bare.append(text.split()[1])
            else: assert max(map(len, call[1].splitlines())) <= longest, (name, call[1])
            silent += [(name, text.split()[1]) for term in re.findall(r'^\*\*`(.+?)`\*\*.*\n:   &nbsp;$', text, re.MULTILINE)]
    assert len(silent) <= 12, silent
    assert all(name[0].isupper() and '.' not in name for name in bare), 'only a class of ours that is a list or an error needs no call'

def test_an_empty_text_is_code(processed, site):
    "'' in a comment would be set as a pair of quotation marks"
    described = [line for cells in processed.values() for e in entries(cells) for line in e.splitlines() if line.startswith(':   ')]
    assert any("`''`" in line for line in described)
    assert not [line for line in described if re.search(r"(?<![\w`'])''(?![\w`'])", line)]
    assert '‘’' not in (site/html_page('rollout/04_stages.ipynb')).read_text(encoding='utf-8')

def test_tables_of_names(processed):
    "3: pages with two names or more say at the top which, and every name in a table has its entry below"
    for name, cells in processed.items():
        headings = [re.match(r'#+ (\S+)', e)[1].replace('\\', '') for e in entries(cells)]
        tables = [source(c) for c in cells if source(c).startswith('::: {.names}')]
        listed = re.findall(r'^\| \[`(.+?)`\]', '\n'.join(tables), re.MULTILINE)
        public = [h for h in headings if '.' not in h]
        assert listed == (public if len(public) > 1 else []), name

def test_long_lines_are_not_cut_off():
    "4: what a cell prints wraps"
    rule = re.search(r'([^{}]*)\{[^{}]*white-space: pre-wrap', styles('nbs/styles.scss'))[1]
    assert '.cell-output pre code' in rule and 'white-space: pre-wrap' in styles('nbs/_sphinx/static/site.css')

@pytest.mark.parametrize('notebook', names)
def test_examples_fit_the_page(notebook):
    "4: code is not wrapped, so the lines of examples are short; only a single string or comment may be longer"
    found = [line for c in cells_of(root/'nbs'/notebook) if c['cell_type'] == 'code' and _kind(c) == 'examples'
        for line in c['source'].splitlines() if len(line) > longest and not line.startswith('#|') and not re.search(r'[\'"#][^\'"]{40,}', line)]
    assert found == []

def test_look():
    "5: images for previews, a logo with a size, words that stay whole, code that can be read in the dark"
    quarto, rules, shared = (root/'_quarto.yml').read_text(encoding='utf-8'), styles('nbs/styles.scss'), styles('nbs/design.css')
    assert re.search(r'open-graph:\s+image: images/report\.png', quarto) and (root/'nbs/images/report.png').is_file()
    assert re.search(r'<svg[^>]* width="\d+" height="\d+"', (root/'nbs/images/logo.svg').read_text(encoding='utf-8'))
    assert 'main table a { word-break: normal !important' in shared
    assert 'main code:not(.sourceCode)' in rules and 'main pre code { background-color: transparent !important; }' in rules
    assert '.cell { margin-bottom: 1rem; }' in rules and 'a:has(> code) { text-underline-offset' in rules and 'code-copy: hover' in quarto
    assert 'main pre:not(.sourceCode)' in rules

def test_tables_have_their_own_boxes(processed):
    "6: a wide table scrolls by itself, and a long heading wraps"
    css = styles('nbs/design.css')
    assert re.search(r'\.scroll, \.names\b[^{]*{ overflow-x: auto', css) and 'overflow-wrap: anywhere' in css
    for name, cells in processed.items():
        for cell in cells:
            text = source(cell)
            if cell['cell_type'] == 'markdown' and not text.startswith('::: {.names}') and '::: {.api}' not in text:
                assert in_boxes(re.sub(r'^::: \{\.scroll\}\n\n|\n:::$', '', text, flags=re.MULTILINE)).count('{.scroll}') == text.count('{.scroll}'), name

def test_headings_of_results_are_not_those_of_the_page(processed):
    "7: a page may show a README"
    shown = [(name, ''.join(out['data']['text/markdown'])) for name, cells in processed.items() for out in outputs(cells) if 'text/markdown' in out.get('data', {})]
    assert len(shown) > 100
    outside = [(name, re.sub(r'(`{3,}).*?\n\1', '', text, flags=re.DOTALL)) for name, text in shown]
    assert [name for name, text in outside if re.search(r'^#{1,6} ', text, re.MULTILINE)] == []

def test_no_other_host(processed):
    "8: HTML as an output would bring two scripts from another host, a theme its fonts, mathematics a script"
    for name, cells in processed.items():
        assert not [out for out in outputs(cells) if {'text/html', 'application/javascript'} & set(out.get('data', {}))], name
        for out in outputs(cells):
            text = html.unescape(''.join(out.get('data', {}).get('text/markdown', '')))
            assert not re.search(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="https?://(?!127\.|localhost)', text), name
    assert '$web-font-path: false' in styles('nbs/styles.scss') and 'html-math-method: mathml' in (root/'_quarto.yml').read_text(encoding='utf-8')

def test_tutorials_open_elsewhere(processed):
    "Each tutorial links to itself in Colab and in Binder, at the repository's own address, and to a file that is there"
    from nbdev.config import get_config
    config = get_config(root)
    owner_name = urlsplit(config.git_url).path.strip('/')
    for name, cells in processed.items():
        links = [link for c in cells if c['cell_type'] == 'markdown' for link in re.findall(r'\[Open in (?:Colab|Binder)\]\(([^)]+)\)', source(c)) if owner_name in link]
        assert len(links) == (2 if name.startswith('tutorials/') else 0), name
        if not links: continue
        colab, binder = map(urlsplit, links)
        assert (colab.netloc, binder.netloc) == ('colab.research.google.com', 'mybinder.org')
        file = unquote(colab.path.removeprefix(f'/github/{owner_name}/blob/{config.branch}/'))
        assert file == parse_qs(binder.query)['urlpath'][0].removeprefix('lab/tree/') == f'nbs/{name}' and (root/file).is_file()
        assert binder.path == f'/v2/gh/{owner_name}/{config.branch}'
        first = next(c for c in cells if c['cell_type'] == 'markdown')
        assert 'Open in Colab' in source(first), f'{name}: the links stand below the title'

def test_no_script_for_notes_that_are_not_there(processed):
    "Quarto loads two more scripts on every page for footnotes, citations and references that open under the pointer"
    quarto = (root/'_quarto.yml').read_text(encoding='utf-8')
    assert all(f'{kind}-hover: false' in quarto for kind in ('citations', 'crossrefs', 'footnotes'))
    texts = {name: '\n'.join(source(c) for c in cells if c['cell_type'] == 'markdown') for name, cells in processed.items()}
    assert [n for n, text in texts.items() if re.search(r'^\[\^\w+\]:', text, re.MULTILINE)] == [], 'a footnote that could open under the pointer'

def test_one_set_of_variables():
    "10: both builds take colours and sizes from the same file"
    assert 'css: design.css' in (root/'_quarto.yml').read_text(encoding='utf-8') and "'design.css'" in (root/'nbs/_sphinx/conf.py').read_text(encoding='utf-8')
    colours = [set(re.findall(r'#[0-9a-f]{6}\b', styles(f))) for f in ('nbs/styles.scss', 'nbs/_sphinx/static/site.css')]
    assert colours == [set(), set()], 'colours have one home'

def test_a_text_beside_each_page(processed):
    "9: links lead to other texts, no image is part of a text, and nothing leads to a notebook"
    assert to_twin('[a](../04_show.ipynb#x) ![b](data:image/png;base64,AA) [c](https://example.org/d.html)', 'gather/search') == \
        '[a](../show.html.md#x) [image: b] [c](https://example.org/d.html)'
    texts = {name: twin(cells, docname(name)) for name, cells in processed.items()}
    assert [n for n, t in texts.items() if re.search(r'\]\((?!https?:)[^)]*\.ipynb', t) or ';base64,' in t or len(t) > 100_000 or not t.startswith('# ')] == []
    assert llms().count('.html.md)') == sitemap(names).count('<loc>') == len(names)

def test_tutorials_say_what_they_take():
    for name in [n for n in names if n.startswith('tutorials/')]:
        begin = ' '.join(c['source'] for c in cells_of(root/'nbs'/name)[:6] if c['cell_type'] == 'markdown')
        assert re.search(r'\bminutes?\b', begin) and re.search(r'\binternet\b', begin), name

class Shown(HTMLParser):
    "Headings, images and tables of a built page; headings of results are not counted"
    def __init__(self, text):
        super().__init__()
        self.headings, self.images, self.tables = [], 0, 0
        self.level, self.inside, self.in_output, self.in_link = '', False, 0, False
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        classes = dict(attrs).get('class') or ''
        if tag == 'article': self.inside = True
        if not self.inside: return
        if tag == 'div' and (self.in_output or 'cell_output' in classes): self.in_output += 1
        if re.fullmatch('h[1-6]', tag) and not self.in_output:
            self.level = tag
            self.headings.append('')
        if tag == 'a': self.in_link = 'headerlink' in classes
        self.images += tag == 'img'
        self.tables += tag == 'table'
    def handle_endtag(self, tag):
        if tag == 'article': self.inside = False
        if tag == 'div' and self.in_output: self.in_output -= 1
        if tag == self.level: self.level = ''
        if tag == 'a': self.in_link = False
    def handle_data(self, data):
        if self.inside and self.level and not self.in_link: self.headings[-1] += data

def without_code(text): return re.sub(r'`[^`\n]+`', '`', re.sub(r'^(`{3,}|~{3,})[^{].*?^\1', '', text, flags=re.DOTALL | re.MULTILINE))

def counts(text):
    "Images and tables in Markdown, with the HTML in it"
    if not re.match(r'`{3,}\{=html\}', text): text = without_code(text)  # a backquote in HTML is a character
    return (len(re.findall(r'!\[|<img\b', text)), len(re.findall(r'^\|[-:| ]+\|\s*$|<table\b', text, re.MULTILINE)))

def given(cells):
    "Headings, images and tables of a processed notebook; the heading in a callout is its title, in both builds"
    headings, shown = [], []
    for cell in cells:
        text = re.sub(r'<!--.*?-->', '', source(cell), flags=re.DOTALL)
        if cell['cell_type'] == 'raw': headings.append(re.search(r'^title: (.*)$', text, re.MULTILINE)[1])
        elif cell['cell_type'] == 'markdown':
            prose = re.sub(r'(^:::+ *\{\.callout[^\n]*\n+)#+ [^\n]*', r'\1', re.sub(r'^(`{3,}).*?^\1', '', text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)
            headings += re.findall(r'^#{1,6} +(.*)$', prose, re.MULTILINE)
            shown.append(counts(text))
        elif not re.search(r'^#\| *(include|output): *false', text, re.MULTILINE):
            for out in cell['outputs']:
                for kind, value in out.get('data', {}).items():
                    shown.append((1, 0) if kind.startswith('image/') else counts(''.join(value)) if kind == 'text/markdown' else (0, 0))
    return headings, *(sum(column) for column in zip(*shown))

def letters(text): return re.sub(r'[\W_]+', '', re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text)).lower()

def test_both_builds_show_the_same(processed, site):
    "Addresses, headings, images and tables of the Sphinx pages are those of the cells that Quarto is given"
    different = {}
    for name, cells in processed.items():
        headings, images, tables = given(cells)
        page = Shown((site/html_page(name)).read_text(encoding='utf-8'))
        mine, theirs = ([*map(letters, headings)], images, tables), ([*map(letters, page.headings)], page.images, page.tables)
        if mine != theirs: different[name] = [(a, b) for a, b in zip(mine, theirs) if a != b]
    assert different == {}
