"The site built without Quarto, as a reader meets it, and what its converter refuses"
import base64, os, re, subprocess, sys
import pytest
from PIL import Image
from nbdev.showdoc import show_doc
from bearcls.sample.loopback import LoopbackWeb
from bearcls.pages import ApiEntry, entry_markdown, read_entry, with_comments
from bearcls.train.learner import train
from notebooks import notebooks, root

sys.path.insert(0, str(root/'nbs'/'_sphinx'))
from check import problems
from convert import check_links, quarto_divs
from build import toctrees
from pages import SiteError, check_sidebar, docname, earlier_pages, html_page, local_link, sidebar, slug, wings
from addresses import change, problem
from light import in_box, plain_words, shown_size, smallest, with_head, with_size, without_spans
from readme import in_clone, plain_divs
from styles import Names, can_match, parts, selectors, short, used, without_comments, without_idle_motion, without_idle_variables

names = [f.relative_to(root/'nbs').as_posix() for f in notebooks()]

def test_every_address_exists(site):
    assert problems(site) == []

def test_a_folder_that_is_no_site_is_left_alone(tmp_path):
    (tmp_path/'thesis.txt').write_text('keep')
    done = subprocess.run([sys.executable, root/'nbs/_sphinx/build.py', '--out', tmp_path], capture_output=True, text=True, encoding='utf-8')
    assert done.returncode == 1 and 'is no site built before' in done.stdout and os.listdir(tmp_path) == ['thesis.txt']

def test_checker_finds_faults(tmp_path):
    (tmp_path/'a.html').write_text('<a href="b.html">b</a><a href="#here">x</a><img src="c.png"><p id="there">', encoding='utf-8')
    assert problems(tmp_path) == ['a.html: #here: no such anchor', 'a.html: b.html: no such file', 'a.html: c.png: no such file']

def test_a_page_for_every_notebook(site):
    assert sorted(p for p in map(docname, names) if not (site/f'{p}.html').is_file()) == []

def test_earlier_addresses_lead_on(site):
    "Pages that have moved are still found where they were"
    moved = {page: html_page(n) for n in names for page in earlier_pages(n)}
    assert {'inference.html', 'search_module.html', 'likeness.html'} <= moved.keys() and len(moved) > 60
    for page, now in moved.items():
        if page != 'search.html': assert f'<a href="{now}">' in (site/page).read_text(encoding='utf-8'), page

def test_an_earlier_address_keeps_its_anchor(site, browser):
    page = browser.new_page()
    page.goto((site/'inference.html').as_uri() + '#classifier')
    page.wait_for_url('**/inference/classifier.html#classifier')
    page.close()

def test_the_sidebar_is_the_tree():
    "Every notebook once, a section for each wing in the order of dependence, none with more than nine modules"
    check_sidebar(names)
    doors = [s for s in sidebar() if s.index]
    assert [s.index for s in doors] == [f'{wing}/index.ipynb' for wing in wings] and all(s.notebooks == sorted(s.notebooks) for s in doors)
    with pytest.raises(SiteError, match='nbs/attic/01_old.ipynb is in no section'): check_sidebar([*names, 'attic/01_old.ipynb'])
    with pytest.raises(SiteError, match='nbs/gather/index.ipynb is needed, as the front door'): check_sidebar([n for n in names if n != 'gather/index.ipynb'])

def test_tables_of_contents():
    home = toctrees('index.ipynb')
    assert ':caption: Tutorials' in home and '\ngather/index' not in home and '\n/gather/index\n' in home and '/gather/search' not in home
    assert '\n/gather/search\n' in toctrees('gather/index.ipynb') and toctrees('about.ipynb') == ''

def test_search_finds_a_function(site, browser):
    page = browser.new_page()
    page.goto((site/'search.html').as_uri() + '?q=load_image')
    page.wait_for_selector('ul.search li a', timeout=10_000)
    assert any('images.html' in link for link in page.eval_on_selector_all('ul.search li a', 'links => links.map(l => l.href)'))
    page.close()

def test_callouts():
    text = quarto_divs('::: {.callout-tip title="Use `n`"}\nBody\n:::')
    assert '<div class="admonition tip"><p class="admonition-title">Use <code>n</code></p>\n\nBody\n\n</div>' in text
    assert '<details class="admonition note"><summary' in quarto_divs('::: {.callout-note collapse="true"}\n## Title\n\nBody\n:::')
    assert quarto_divs('```\n::: {.callout-odd}\n```') == '```\n::: {.callout-odd}\n```'
    assert plain_divs('::: {.callout-note}\n## Title\n\nBody\n:::') == '> **Title**\n>\n>\n> Body'

@pytest.mark.parametrize('source,words', [
    ('::: {.callout-odd}\nx\n:::', 'callout-odd is none of'), ('::: {.callout-note}\nx', 'not closed'), (':::', 'never opened'),
    ('::: {.panel-tabset}\nx\n:::', 'only Quarto knows'), ('::: {layout-ncol=2}\nx\n:::', 'only Quarto knows'), ('- x\n\n  ::: {.callout-note}', 'indented')])
def test_refused_divs(source, words):
    with pytest.raises(SiteError, match=words): quarto_divs(source)

def test_links():
    known = ['00_core.ipynb', 'tutorials/01_first.ipynb']
    check_links('[a](../00_core.ipynb#x) and [b](https://example.org/x.html) and [c](#here)', 'tutorials/01_first.ipynb', known)
    with pytest.raises(SiteError, match='no notebook nbs/tutorials/00_core.ipynb'): check_links('[a](00_core.ipynb)', 'tutorials/01_first.ipynb', known)
    with pytest.raises(SiteError, match='becomes a link by itself'): check_links('[[`load_image`](https://example.org/core.html)](00_core.ipynb)', 'index.ipynb', known)
    with pytest.raises(SiteError, match='link to the notebook'): check_links('[a](core.html)', 'index.ipynb', known)
    assert local_link('../00_core.ipynb#load_image', 'tutorials/first') == '../core.html#load_image'
    assert local_link('https://bearcls.github.io/bearcls/core.html#flatten', 'core') == '#flatten'
    assert local_link('https://bearcls.github.io/bearcls/gather/search.html#x', 'gather/fetch') == 'search.html#x'
    assert local_link('../03_core.ipynb#flatten', 'gather/search') == '../core.html#flatten'
    assert local_link('../verify/03_report.ipynb', 'gather/search') == '../verify/report.html'

def test_readme_leads_into_the_clone():
    "There may be no published site, and a clone works without a network"
    line = '[a](gather/07_search.ipynb) ![b](images/b.png) [`c`](https://bearcls.github.io/bearcls/images.html#c) [d](https://nodejs.org)'
    assert in_clone(line) == '[a](nbs/gather/07_search.ipynb) ![b](nbs/images/b.png) [`c`](nbs/03_images.ipynb) [d](https://nodejs.org)'
    with pytest.raises(SiteError, match='a page that no notebook makes'): in_clone('[a](gather/01_nothing.ipynb)')
    text = (root/'README.md').read_text(encoding='utf-8')
    targets = re.findall(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"', text)
    paths = [a or b for a, b in targets if not (a or b).startswith(('https://', '#'))]
    assert len(paths) >= 30 and [p for p in paths if not (root/p).is_file()] == []
    anchors = {a[1:] for a, _ in targets if a.startswith('#')}
    assert anchors <= {slug(title) for title in re.findall(r'^#+ (.+)$', text, re.MULTILINE)}, 'a link within the page leads nowhere'

def test_addresses_are_changed_everywhere(tmp_path):
    "From pyproject.toml on; not in what is made of these files, and not where an address only begins alike"
    texts = {'a.md': 'https://old.example/bears/issues and https://old.example/bears-of-others', 'bearcls/b.py': 'https://old.example/bears', 'c.md': 'none'}
    for name, text in texts.items():
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text(text, encoding='utf-8')
    assert change(tmp_path, list(texts), {'Repository': 'https://old.example/bears'}, {'Repository': r'https://new.example/\1'}) == ['a.md']
    assert (tmp_path/'a.md').read_text(encoding='utf-8') == r'https://new.example/\1/issues and https://old.example/bears-of-others'
    assert (tmp_path/'bearcls/b.py').read_text(encoding='utf-8') == texts['bearcls/b.py']

def test_what_is_not_published_is_said():
    with LoopbackWeb({'/here': b'x'}) as web: assert problem(f'{web.url}/here') == '' and problem(f'{web.url}/gone') == 'answers 404 Not Found'
    assert problem(web.url).startswith('does not answer: ')
    assert problem('nonsense').startswith('does not answer: unknown url type')

def test_anchors_are_those_of_quarto():
    assert [slug(t) for t in ('load_image', 'Classifier.predict', 'One way, to open', '3 bears')] == \
        ['load_image', 'classifier.predict', 'one-way-to-open', 'bears']

def test_api_entry_without_parameters():
    text = entry_markdown(ApiEntry('f', 'def f()->list: # What comes out', 'Does it'))
    assert '```python\nf()\n```\n\nDoes it' in text and '**returns** `list`\n:   What comes out' in text and '<a' not in text

def test_api_entry():
    text = entry_markdown(ApiEntry('f', "def f(\n    a:int, # First\n    b:str='x, y', # Second\n)->pathlib.Path: # Where", 'Does it', url='https://example.org'))
    assert "```python\nf(a, b='x, y')\n```\n\nDoes it" in text
    assert '**`a`** `int`\n:   First' in text and "**`b`** `str` = `'x, y'`\n:   Second" in text and '**returns** `Path`\n:   Where' in text

def test_api_entry_tells_what_further_arguments_are():
    "nbdev leaves out the comment on `**dls_kwargs`"
    entry = read_entry(show_doc(train)._repr_markdown_())
    assert '**dls_kwargs' in entry.signature and 'For `image_dls`' not in entry.signature
    assert 'For `image_dls`, when `data` is a folder' in entry_markdown(with_comments(entry)).split('**`**dls_kwargs`**')[1]

def test_api_entry_with_a_bare_star():
    text = entry_markdown(ApiEntry('f', 'def f(\n    a:int, # First\n    *, b:str, # By name only\n):', ''))
    assert '```python\nf(a, *, b)\n```' in text and '**`b`** `str`\n:   By name only' in text and '**`*' not in text

def test_api_entry_names_objects():
    "Defaults that are classes, functions or enums print as something that is no Python; their names are"
    signature = "def f(\n    a:type=<class 'OSError'>, # One\n    b:tuple=(<Kind.X: 3>,), # Two\n    c=<function g at 0x7f00>, # Three\n    d=<object>, # Four\n):"
    text = entry_markdown(ApiEntry('f', signature, ''))
    assert '**`a`** `type` = `OSError`' in text and '**`b`** `tuple` = `(Kind.X,)`' in text and '**`c`** = `g`' in text
    assert '```text\nf(a=OSError, b=(Kind.X,), c=g, d=<object>)\n```' in text

def test_api_entry_without_the_modules_of_types():
    text = entry_markdown(ApiEntry('f', 'def f(\n    a:bearcls.inference.classifier.Prediction, # One\n    b:bearcls.core.Html, # Two\n):', ''))
    assert '**`a`** `Prediction`' in text and '**`b`** `Html`' in text

@pytest.fixture(scope='module')
def texts(site):
    "Every page as it is sent, without those that only lead to another"
    found = {f.relative_to(site).as_posix(): f.read_text(encoding='utf-8') for f in site.rglob('*.html') if '_static' not in f.parts}
    return {name: text for name, text in found.items() if 'http-equiv="refresh"' not in text[:2000]}

def test_a_page_waits_for_one_style_sheet_and_no_script(texts):
    "The index of the search is as large as ten pages: only the page that searches loads it"
    assert len(texts) >= len(names)
    for name, text in texts.items():
        up = '../' * name.count('/')
        assert re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="([^"?]*)', text) == [f'{up}_static/pages.css'], name
        scripts = re.findall(r'<script\b([^>]*)\bsrc="([^"?]*)', text)
        expected = ['_static/search.js', 'searchindex.js'] if name == 'search.html' else [f'{up}_static/pages.js']
        assert [address for _, address in scripts] == expected and all('defer' in before for before, _ in scripts), name
        assert 'rel="preload"' not in text and len(re.findall(r'<script\b(?![^>]*\bsrc=)', text.partition('</head>')[0])) == 1, name

def test_every_rule_of_style_is_of_some_page(site, texts):
    names = Names()
    for text in texts.values(): names.add_page(text)
    for name in ('pages.js', 'search.js'): names.add_script((site/'_static'/name).read_text(encoding='utf-8'))
    style = (site/'_static'/'pages.css').read_text(encoding='utf-8')
    assert used(style, names) == short(without_comments(style)), 'a rule that no page uses'
    assert 'Bootstrap' in style[:500], 'a licence asks to be kept'
    assert style.count('data-theme') > 50 and '.bd-sidebar' in style and '.copybtn' in style
    assert '@font-face' not in style and not re.search(r'url\((?!"data:image/svg)', style) and len(style.encode()) < 100_000
    wanted = {c for text in texts.values() for c in re.findall(r'\bfa-(?!solid|brands|lg)[\w-]+', ' '.join(re.findall(r'class="([^"]*)"', text)))}
    drawn = set(re.findall(r'\.(fa-[\w-]+)\{--icon:', style))
    assert wanted and wanted <= drawn, 'an icon without a drawing'

def test_what_no_page_asks_for_is_not_published(site, texts):
    asked = {re.sub(r'^(?:\.\./)*_static/', '', a) for text in texts.values() for a in re.findall(r'(?:src|href)="([^"?]*_static/[^"?]*)', text)}
    assert {f.relative_to(site/'_static').as_posix() for f in (site/'_static').rglob('*') if f.is_file()} == asked

def test_images_keep_their_place_and_come_when_they_are_near(site, texts):
    "A page shows its words before its images, which are files of their own, and nothing moves when they arrive"
    found = 0
    for name, text in texts.items():
        images = re.findall(r'<img\b(?:[^>"]|"[^"]*")*>', text.partition('<article')[2])
        found += len(images)
        for image in images:
            assert len((re.search(r'src="(data:[^"]*)', image) or ['', ''])[1]) < smallest, (name, image[:200])
            sized = re.search(r' width="\d+" height="\d+"', image) or re.search(r'width:\d+px;height:\d+px', image)
            assert sized or 'src="data:' in image, (name, image[:200])
        assert all('loading="lazy"' in i for i in images[1:] if 'src="data:' not in i), name
        assert not re.search(rf'<image\b[^>]*href="data:[^"]{{{smallest},}}', text), name
    assert found > 500

def test_rules_that_no_page_uses_are_left_out():
    names = Names()
    names.add_page('<main class="note wide" id="top"><p data-kind="x">a &lt;table class="gone"&gt;</p></main>')
    names.add_script("e.classList.add('open-menu'); e.dataset.bigTheme = 'x'")
    css = """/* .note { } */ @charset "utf-8"; .note, .gone > p { color: red; content: "/* { ; } */" } .gone { a: b } #top p:not(.gone)::after { a: b }
    @media (min-width: 9px) { .gone { a: b } table { a: b } } @media print { p { a: b } } @font-face { font-family: X } @keyframes spin { to { a: b } }
    .open-menu[data-big-theme] p:is(.gone, .wide) { a: b } [data-none] { a: b } .skip-me { a: b }"""
    assert used(css, names) == '.note{color: red;content: "/* { ; } */"}#top p:not(.gone)::after{a: b}@media print{p{a: b}}@keyframes spin{to{a: b}}' \
        '.open-menu[data-big-theme] p:is(.gone,.wide){a: b}'
    assert used('.note { a: b }', names, skip=r'\.no') == '' and without_comments('a{b:"/*c*/"}/* d */') == 'a{b:"/*c*/"} '
    assert selectors('a, b:is(c, d:not(e, f)) > g') == ['a', 'b:is(c, d:not(e, f)) > g']
    assert can_match(r'p.note', names) and not can_match(r'a\:b.w-50\%', names) and parts('a{b:c}@x;d{e{f:g}}') == [('a', 'b:c'), ('@x', ''), ('d', 'e{f:g}')]
    assert without_idle_motion('@keyframes a{x{y:z}}@keyframes b{x{y:z}}p{animation:b 1s}') == '@keyframes b{x{y:z}}p{animation:b 1s}'

def test_variables_that_nothing_reads_are_left_out():
    css = 'html{--a:1;--b:rgba(var(--c),.5);--c:2;--d:url("x;y");color:var(--b)}p{--e:3}'
    assert without_idle_variables(css) == 'html{--b:rgba(var(--c),.5);--c:2;color:var(--b)}'
    assert '--a:1' in without_idle_variables(css, '<p style="top: var(--a)">')

def test_head_of_a_light_page():
    head = """<script data-cfasync="false">old</script>
    <link href="_static/t.css" rel="stylesheet" /><link rel="preload" as="script" href="_static/b.js" /><script>DOCUMENTATION_OPTIONS.pagename = 'a';</script>
    <script src="searchindex.js"></script><link rel="icon" href="i.svg"/>"""
    light = with_head(head, ['p.css?v=1', 'p.js?v=2'])
    assert 'old' not in light and 'prefers-color-scheme' in light and '<link rel="stylesheet" href="p.css?v=1">' in light and '<script defer src="p.js?v=2">' in light
    assert not re.search('t.css|b.js|pagename|searchindex', light) and 'i.svg' in light
    with pytest.raises(SiteError, match='The theme no longer begins a page'): with_head('<head></head>', ['p.css', 'p.js'])

def test_words_of_code_that_look_alike_need_no_element():
    css = ''.join(f'html[data-theme="{t}"] .highlight {{ background: #fff; color: {c} }}\nhtml[data-theme="{t}"] .highlight .n {{ color: {c} }} /* Name */\n'
        f'html[data-theme="{t}"] .highlight .k {{ color: #00f }}\n' for t, c in [('light', '#000'), ('dark', '#eee')])
    plain = plain_words(css)
    assert {'n', 'w'} <= plain and 'k' not in plain
    assert without_spans('<span class="k">if</span><span class="w"> </span><span class="n">a</span>', plain) == '<span class="k">if</span> a'

def test_images_are_shown_as_large_as_their_styles_allow(tmp_path):
    Image.effect_noise((200, 100), 50).save(tmp_path/'wide.png')
    assert shown_size(tmp_path/'wide.png', '') == (200, 100)
    assert shown_size(tmp_path/'wide.png', 'max-width: 100px; max-height:80px') == (100, 50)
    assert shown_size(tmp_path/'wide.png', 'max-width:100%;max-height:50px') == (100, 50)
    assert shown_size(tmp_path/'wide.png', 'width:44px;height:44px') is None
    (tmp_path/'a.html').touch()
    source = 'data:image/png;base64,' + base64.b64encode((tmp_path/'wide.png').read_bytes()).decode()
    tag = with_size(f'<img alt="a" src="{source}"/>', tmp_path/'a.html', tmp_path, lazy=True)
    name = re.fullmatch(r'<img alt="a" src="_images/(\w+\.png)" width="200" height="100" loading="lazy"/>', tag)[1]
    assert (tmp_path/'_images'/name).read_bytes() == (tmp_path/'wide.png').read_bytes()
    assert in_box(tag) == tag and 'tabindex="0"' in in_box('<img src="a.png" width="800" height="200"/>')
    assert in_box(photo := '<img src="a.jpg" width="800" height="200"/>') == photo
    small = f'<img src="data:image/png;base64,{"A"*100}">'
    assert with_size(small, tmp_path/'a.html', tmp_path, lazy=True) == small
