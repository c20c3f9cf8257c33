"""Make the pages that Sphinx has written light: a reader sees words after one page, one style sheet and no script

A page of Sphinx and its theme waits for 16 files before it shows anything, the index of the search among them. Here every page gets one style sheet, which holds only
the rules that some page uses, and one script that waits until the page stands. The search has a page of its own, and only that loads the index."""
import base64, hashlib, html, io, posixpath, re
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from PIL import Image
from pages import SiteError
from styles import Names, used, without_idle_motion, without_idle_variables

smallest = 1000  # characters of an image that is cheaper as a file than inside its page
unneeded = ('fontawesome.js', 'bootstrap.js')  # icons are in icons.css, the one menu is in menu.js
of_search = ('language_data.js', 'searchtools.js')
_tag = r'<{}\b(?:[^>"\']|"[^"]*"|\'[^\']*\')*>'
_style = re.compile(r'[ \t]*<link\b(?=[^>]*\brel="stylesheet")[^>]*\bhref="(?!https?:)([^"]*)"[^>]*>\n?')
_script = re.compile(r'[ \t]*<script\b[^>]*\bsrc="(?!https?:)([^"]*)"[^>]*></script>\n?')
_early = re.compile(r'[ \t]*<link rel="preload" as="script"[^>]*>\n?')
_first = re.compile(r'<script data-cfasync="false">.*?</script>', re.DOTALL)  # the theme's: colours as they were chosen, before anything is drawn
_options = re.compile(r'[ \t]*<script>DOCUMENTATION_OPTIONS\.[^<]*</script>\n?')  # for versions and for answers while typing, which this site has not
_colours = """<script>{
  const mode = localStorage.getItem("mode") || "auto"
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"
  Object.assign(document.documentElement.dataset, {mode, theme: mode == "auto" ? system : mode})
}</script>"""

def lighten(
    site: Path,  # Folder that Sphinx has written
):
    "Rewrite every page, and leave in `_static` only what pages ask for"
    files = sorted(f for f in site.rglob('*.html') if '_static' not in f.parts)
    pages = {f: f.read_text(encoding='utf-8') for f in files}
    sheets, scripts = _addresses(pages, _style), _addresses(pages, _script)
    plain = plain_words((site/'_static'/'pygments.css').read_text(encoding='utf-8'))
    for file in files:
        pages[file] = _with_images(without_spans(pages[file], plain), file, site)
    shared = [s for s in scripts if s.name not in (*unneeded, *of_search, 'searchindex.js')]
    script = _write(site, 'pages.js', joined(shared))
    after = 1 + [s.name for s in shared].index('doctools.js')  # searching takes what doctools offers, and highlighting asks whether a page searches
    found = [s for s in scripts if s.name in of_search]
    search = _write(site, 'search.js', joined([*shared[:after], *found, *shared[after:]]))
    names = Names()
    for text in pages.values(): names.add_page(text)
    for file in (script, search): names.add_script((site/file.partition('?')[0]).read_text(encoding='utf-8'))
    rules = without_idle_motion(''.join(_sheet(s, names) for s in sheets))
    rules = without_idle_variables(rules, '\n'.join(pages.values()))
    style = _write(site, 'pages.css', licences([s.read_text(encoding='utf-8') for s in sheets]) + rules)
    for file, text in pages.items():
        is_search = bool(found) and file == site/'search.html'
        own = [style, search, 'searchindex.js'] if is_search else [style, script]
        file.write_text(with_head(text, [_from(a, file, site) for a in own]), encoding='utf-8', newline='\n')
    _remove_unused(site, files)

def _addresses(pages, pattern):
    "Files of the site that a page asks for, in the order in which it does"
    found = {}
    for file, text in pages.items():
        for address in pattern.findall(text): found[(file.parent/urlsplit(address).path).resolve()] = None
    return list(found)

def joined(
    scripts: list[Path],  # In the order in which they shall run
) -> str:                 # JavaScript
    "Several scripts as one, without the addresses of their sources"
    texts = [re.sub(r'^//# sourceMappingURL=.*$', '', s.read_text(encoding='utf-8'), flags=re.MULTILINE) for s in scripts]
    return '\n;'.join(t.strip() for t in texts) + '\n'

def _sheet(file, names):
    text = file.read_text(encoding='utf-8')
    imported = [file.parent/a for a in re.findall(r'@import "([^"]*)";', text)]
    of_theme = file.parent.name == 'styles'
    return ''.join(_sheet(f, names) for f in imported) + used(text, names, skip=r'(:is\()?\.fa[\w-]*' if of_theme else '')

def licences(
    sheets: list[str],  # CSS as others wrote it
) -> str:               # CSS comments, a line for each
    "Whose work is in a style sheet, as its comments say: those that begin with `!`"
    found = [c for text in sheets for c in re.findall(r'/\*!.*?\*/', text, re.DOTALL) if 'Font Awesome' not in c]  # no icon of theirs is left
    return ''.join(' '.join(c.split()) + '\n' for c in dict.fromkeys(found))

def _write(site, name, text):
    "A file for all pages. Its address changes with it, so that a browser may keep it for as long as it likes"
    (site/'_static'/name).write_text(text, encoding='utf-8', newline='\n')
    return f'_static/{name}?v={hashlib.sha256(text.encode()).hexdigest()[:8]}'

def _from(address, file, site): return posixpath.relpath(address, file.parent.relative_to(site).as_posix())

def with_head(
    text: str,            # HTML page
    needed: list[str],    # Addresses of its style sheet and its scripts
) -> str:                 # HTML page
    "A page that asks for one style sheet, and for scripts only when it stands"
    if not _first.search(text): raise SiteError('The theme no longer begins a page with the script that `light.py` replaces: look at what it does now')
    for pattern in (_style, _script, _early, _options): text = pattern.sub('', text)
    style, *scripts = [html.escape(a, quote=True) for a in needed]
    lines = [f'<link rel="stylesheet" href="{style}">', *[f'<script defer src="{s}"></script>' for s in scripts]]
    return _first.sub(lambda m: _colours + '\n  ' + '\n  '.join(lines), text, count=1)

def plain_words(
    styles: str,     # Style sheet of the highlighted code
) -> set[str]:       # Classes
    "Kinds of words that look like the text around them: they have no rule, or one that gives the colour of the whole"
    looks = {}
    for theme, kind, body in re.findall(r'data-theme="(\w+)"\] \.highlight(?: \.(\w+))? \{ ([^}]*) \}', styles):
        looks.setdefault(kind, {})[theme] = body.partition(';')[2].strip() if kind == '' else body
    base = looks.pop('', {})
    known = {kind for kind, found in looks.items() if found != base}
    return {kind for kind in ('n', 'p', 'w', 'nn', 'nb', 'o', 'x', 'esc') if kind not in known}

def without_spans(
    text: str,        # HTML page
    plain: set[str],  # Classes of spans that change nothing
) -> str:             # HTML page
    "In code every word and every space is an element, most of which look like their neighbours"
    return re.sub(rf'<span class="(?:{"|".join(sorted(plain))})">([^<]*)</span>', r'\1', text) if plain else text

def _with_images(text, file, site):
    begin = text.find('<article')
    count = 0
    def image(match):
        nonlocal count
        in_article = match.start() > begin >= 0
        count += in_article
        tag = with_size(match[0], file, site, lazy=in_article and count > 1)
        return in_box(tag) if in_article else tag
    text = re.sub(_tag.format('img'), image, text)
    def drawn(match): return match[1] + _from(_extract(match[2], site).relative_to(site).as_posix(), file, site) + '"'
    return re.sub(rf'(<image\b[^>]*?\bhref=")(data:[^"]{{{smallest},}})"', drawn, text)

def with_size(
    tag: str,     # `<img ...>`
    file: Path,   # Page that holds it
    site: Path,   # Folder of the site
    lazy: bool,   # Load it when the reader comes near
) -> str:         # `<img ...>`
    "An image keeps its place free before it is there, and stands in a file of its own"
    attributes = dict(re.findall(r'\b([\w-]+)="([^"]*)"', tag))
    source = html.unescape(attributes.get('src', ''))
    if source.startswith('data:'):
        if len(source) < smallest: return tag
        path = _extract(source, site)
        tag = tag.replace(attributes['src'], _from(path.relative_to(site).as_posix(), file, site))
    else: path = file.parent/unquote(urlsplit(source).path)
    if urlsplit(source).scheme in ('http', 'https') or not path.is_file(): return tag
    added = ''
    if not {'width', 'height'} & attributes.keys() and (size := shown_size(path, attributes.get('style', ''))):
        added = f' width="{size[0]}" height="{size[1]}"'
    if lazy and 'loading' not in attributes: added += ' loading="lazy"'
    return re.sub(r'\s*/?>$', lambda m: added + m[0], tag)

def in_box(
    tag: str,  # `<img ...>`
) -> str:      # The same; a wide figure in a box
    "On a phone, a wide figure scrolls in its box, since its words would be too small"
    attributes = dict(re.findall(r'\b([\w-]+)="([^"]*)"', tag))
    if 'style' in attributes or not attributes.get('src', '').endswith('.png') or float(attributes.get('width') or 0) < 600: return tag
    return f'<span class="wide-box" tabindex="0" role="group" aria-label="Wide figure">{tag}</span>'

def _extract(source, site):
    head, _, data = source[len('data:'):].partition(',')
    content = base64.b64decode(unquote(data)) if head.endswith(';base64') else unquote_to_bytes(data)
    ending = head.partition(';')[0].rpartition('/')[2].replace('jpeg', 'jpg').replace('svg+xml', 'svg')
    path = site/'_images'/f'{hashlib.sha256(content).hexdigest()[:20]}.{ending}'
    path.parent.mkdir(exist_ok=True)
    if not path.exists(): path.write_bytes(content)
    return path

def shown_size(
    path: Path,   # Image file
    style: str,   # Its own style on the page
) -> tuple[int, int] | None:  # Width and height on a page wide enough, in pixels; None where the style or nothing says them
    "How large an image is shown: within the bounds of its style, as a browser would fit it"
    given = dict(p.replace(' ', '').split(':', 1) for p in style.split(';') if ':' in p)
    if given.get('width', '').endswith('px') and 'height' in given: return None
    size = _size(path)
    if not size: return None
    bounds = [float(b[:-2])/s for b, s in zip((given.get('max-width', ''), given.get('max-height', '')), size) if b.endswith('px')]
    scale = min([1, *bounds])
    return max(1, round(size[0]*scale)), max(1, round(size[1]*scale))

def _size(path):
    if path.suffix == '.svg':
        tag = re.search(r'<svg[^>]*>', path.read_text(encoding='utf-8'))[0]
        found = re.search(r' width="([\d.]+)(?:px)?"[^>]*? height="([\d.]+)', tag) or re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', tag)
        return (float(found[1]), float(found[2])) if found else None
    with Image.open(io.BytesIO(path.read_bytes())) as image: return image.size

def _remove_unused(site, files):
    asked = set()
    for file in files:
        for address in re.findall(r'(?:src|href)="([^"]*_static/[^"]*)"', file.read_text(encoding='utf-8')):
            asked.add((file.parent/urlsplit(address).path).resolve())
    for path in sorted((site/'_static').rglob('*'), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()): path.rmdir()
        elif path.resolve() not in asked: path.unlink()
