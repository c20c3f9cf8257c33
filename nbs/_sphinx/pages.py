"""Pages of the site as both builds see them: the sidebar of `_quarto.yml`, page addresses, and links between pages"""
import posixpath, re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
import yaml
from nbdev.config import get_config, nbpath2html

root = Path(__file__).resolve().parents[2]
config = get_config(root)
site_url = config.doc_url.rstrip('/') + '/'

class SiteError(Exception):
    "A page cannot be built as it is written; the message names the notebook and the cell"

@dataclass
class Section:
    "A part of the sidebar: a caption over its pages, or one page with its own text and no caption"
    caption: str          # Empty for a page that stands alone
    notebooks: list[str]  # Paths below nbs/
    text: str = ''        # Words in the sidebar instead of the page's title

def sidebar() -> list[Section]:
    "The sidebar, in the order that `_quarto.yml` gives"
    settings = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))
    return [_section(entry) for entry in settings['website']['sidebar']['contents']]

def _section(entry):
    if isinstance(entry, str): return Section('', [entry])
    if set(entry) == {'text', 'href'}: return Section('', [entry['href']], entry['text'])
    if set(entry) == {'section', 'contents'} and all(isinstance(c, str) for c in entry['contents']):
        return Section(entry['section'], entry['contents'])
    raise SiteError(f'_quarto.yml: sidebar entry {entry} is neither a page, nor `text` with `href`, nor `section` with `contents`')

def check_sidebar(
    notebooks: list[str],  # Every notebook found below nbs/
):
    "Every notebook stands in the sidebar once, and every entry has its notebook"
    listed = [n for section in sidebar() for n in section.notebooks]
    twice = sorted({n for n in listed if listed.count(n) > 1})
    lines = [f'_quarto.yml: {n} stands in the sidebar, but there is no such notebook' for n in listed if n not in notebooks]
    lines += [f'_quarto.yml: {n} is missing from the sidebar' for n in notebooks if n not in listed]
    lines += [f'_quarto.yml: {n} stands in the sidebar more than once' for n in twice]
    if lines: raise SiteError('\n'.join(lines))

taken = {'search.html': 'search_module.html'}  # Sphinx writes its own search.html, the form that searches the site

def html_page(
    notebook: str,  # Path below nbs/, such as `tutorials/01_first_classifier.ipynb`
) -> str:           # Page, such as `tutorials/first_classifier.html`
    "Where the page of a notebook stands: where nbdev and Quarto put it, unless Sphinx needs the name itself"
    page = nbpath2html(notebook).as_posix()
    return taken.get(page, page)

def docname(
    notebook: str,  # Path below nbs/
) -> str:           # Page without its ending
    "What Sphinx calls the page of a notebook"
    return html_page(notebook).removesuffix('.html')

def local_link(
    target: str,  # Address as it stands in the notebook, or as nbdev wrote it
    page: str,    # `docname` of the page that holds it
) -> str:         # Address that works in a folder of HTML pages
    "Links to notebooks and to the published site, made relative; all others as they are"
    url = urlsplit(target)
    if target.startswith(site_url): path = url.path[len(urlsplit(site_url).path):] or 'index.html'
    elif not url.scheme and not url.netloc and url.path.endswith('.ipynb'):
        path = html_page(posixpath.normpath(posixpath.join(posixpath.dirname(page), url.path)))
    else: return target
    path = taken.get(path, path)
    if path == page + '.html' and url.fragment: return '#' + url.fragment
    return urlunsplit(('', '', posixpath.relpath(path, posixpath.dirname(page) or '.'), url.query, url.fragment))

def slug(
    title: str,  # Text of a heading
) -> str:        # Its anchor
    "The anchor that Pandoc, and so Quarto, gives a heading"
    words = re.sub(r'[^\w\s.-]', '', title.strip().lower())
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', words)) or 'section'
