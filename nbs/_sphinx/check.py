"""Check a folder of built pages: every address inside it exists, anchors included, and no page is heavy

python nbs/_sphinx/check.py FOLDER"""
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from pages import config, site_url

heaviest = 1_000_000  # Bytes of a page with its images

class Page(HTMLParser):
    "What a page offers (`ids`) and what it asks for (`links`, `files`)"
    def __init__(self,
        path: Path,  # HTML file
    ):
        super().__init__()
        self.path, self.ids, self.links, self.files = path, set(), set(), set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.update(attrs[k] for k in ('id', 'name') if attrs.get(k))
        if attrs.get('href') is not None: (self.links if tag == 'a' else self.files).add(attrs['href'])
        if attrs.get('src'): self.files.add(attrs['src'])

def problems(
    folder: Path,  # Built site
) -> list[str]:    # One line for each fault; empty for a good site
    "Addresses that lead nowhere, links that leave the folder for the published site, and heavy pages"
    pages = {p.resolve(): Page(p) for p in sorted(folder.rglob('*.html')) if '_static' not in p.parts}
    if not pages: return [f'{folder} holds no HTML page']
    lines = []
    for page in pages.values():
        name = page.path.relative_to(folder).as_posix()
        for address in sorted(page.links | page.files):
            if fault := _fault(address, page, pages): lines.append(f'{name}: {address}: {fault}')
        size = page.path.stat().st_size + sum(_image_size(f, page) for f in page.files)
        if size > heaviest: lines.append(f'{name}: {size/1e6:.1f} MB with its images, more than {heaviest/1e6:.1f}')
    return lines

def _fault(address, page, pages):
    url = urlsplit(address)
    if address.startswith(site_url): return 'leads to the published site instead of the page beside this one'
    if url.scheme or url.netloc: return ''
    target = (page.path.parent/unquote(url.path)).resolve() if url.path else page.path.resolve()
    if not target.exists(): return 'no such file'
    if url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids: return 'no such anchor'
    return ''

def _image_size(address, page):
    file = page.path.parent/unquote(urlsplit(address).path)
    return file.stat().st_size if '_images' in address and file.is_file() else 0

if __name__ == '__main__':
    found = problems(Path(sys.argv[1]))
    print('\n'.join(found) or f'{config.title}: every internal address exists')
    sys.exit(bool(found))
