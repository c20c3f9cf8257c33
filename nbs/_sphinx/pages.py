"""Pages of the site as both builds see them: sidebar, addresses, and links between pages"""
import json, posixpath, re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from fastcore.nbio import md_frontmatter
from nbdev.config import get_config, nbpath2html, tomllib

root = Path(__file__).resolve().parents[2]
config = get_config(root)
site_url = config.doc_url.rstrip('/') + '/'
wings = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['tool']['bearcls']['wings']
first_of_roof = 18  # modules at the top of nbs/: those below this number are used by all wings, the others use them all
most_modules = 9    # in a wing

class SiteError(Exception):
    "A page cannot be built as it is written; the message names the notebook and the cell"

@dataclass
class Section:
    "A part of the sidebar: a caption over its pages, or one page with its own text and no caption"
    caption: str          # Empty for a page that stands alone
    notebooks: list[str]  # Paths below nbs/
    text: str = ''        # Words in the sidebar instead of the page's title
    index: str = ''       # The page of the section itself; a section with one is closed until the reader is in it

def numbered(
    folder: str = '',  # Below nbs/; empty for nbs/ itself
) -> list[str]:        # Paths below nbs/
    "The numbered notebooks of a folder, in order"
    found = [f for f in (root/'nbs'/folder).glob('*.ipynb') if re.match(r'\d+_', f.name)]
    return [f.relative_to(root/'nbs').as_posix() for f in sorted(found)]

def sidebar() -> list[Section]:
    "The sidebar: tutorials, what all wings use, the wings in the order of dependence, and what uses them all"
    top = numbered()
    is_roof = [int(n.partition('_')[0]) >= first_of_roof for n in top]
    return [
        Section('', ['index.ipynb'], 'Start'),
        Section('Tutorials', numbered('tutorials')),
        Section('Foundations', [n for n, roof in zip(top, is_roof) if not roof]),
        *[_wing_section(wing) for wing in wings],
        Section('All in one', [n for n, roof in zip(top, is_roof) if roof]),
        Section('Explanation', numbered('explain')),
        Section('About', ['about.ipynb', 'contributing.ipynb', 'changelog.ipynb'])]

def _wing_section(wing):
    index = f'{wing}/index.ipynb'
    return Section(front_matter(index)['title'], numbered(wing), index=index)

def check_sidebar(
    notebooks: list[str],  # Every notebook found below nbs/
):
    "Every notebook stands in the sidebar once, and no wing is too large to be looked through"
    sections = sidebar()
    listed = [n for section in sections for n in [section.index, *section.notebooks] if n]
    homeless = [n for n in notebooks if n not in listed]
    lines = [f'nbs/{n} is in no section: number it, and list its folder as one of `wings` in pyproject.toml'
             for n in homeless]
    lines += [f'nbs/{n} is needed, as the front door of a wing' for n in listed if n not in notebooks]
    large = [s for s in sections if s.index and len(s.notebooks) > most_modules]
    lines += [f'{s.caption} has {len(s.notebooks)} modules, more than {most_modules}: divide it' for s in large]
    if lines: raise SiteError('\n'.join(lines))

def front_matter(
    notebook: str,  # Path below nbs/
) -> dict:          # Title, description, and what else stands there
    "What the first cell of markdown says about a page"
    cells = json.loads((root/'nbs'/notebook).read_text(encoding='utf-8'))['cells']
    return md_frontmatter(''.join(next(c['source'] for c in cells if c['cell_type'] == 'markdown')))

def earlier_pages(
    notebook: str,  # Path below nbs/
) -> list[str]:     # Pages from the top of the site, such as `search.html`
    "Where the page of a notebook stood before, as its first cell says for Quarto: `- aliases: [/search.html]`"
    return [address.lstrip('/') for address in front_matter(notebook).get('aliases', [])]

def html_page(
    notebook: str,  # Path below nbs/, such as `tutorials/01_first_classifier.ipynb`
) -> str:           # Page, such as `tutorials/first_classifier.html`
    "Where the page of a notebook stands: where nbdev and Quarto put it"
    return nbpath2html(notebook).as_posix()

def notebook_of(
    page: str,    # Page from the top of the site, such as `tutorials/first_classifier.html`
) -> str | None:  # Path below nbs/; None where the page is made from no notebook
    "The notebook behind a page: `html_page` the other way round"
    folder = posixpath.dirname(page)
    found = (f.relative_to(root/'nbs').as_posix() for f in (root/'nbs'/folder).glob('*.ipynb'))
    return next((n for n in found if html_page(n) == page), None)

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
    if path == page + '.html' and url.fragment: return '#' + url.fragment
    return urlunsplit(('', '', posixpath.relpath(path, posixpath.dirname(page) or '.'), url.query, url.fragment))

def slug(
    title: str,  # Text of a heading
) -> str:        # Its anchor
    "The anchor that Pandoc, and so Quarto, gives a heading"
    words = re.sub(r'[^\w\s.-]', '', title.strip().lower())
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', words)) or 'section'
