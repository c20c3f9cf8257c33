"""Train the gallery's models, put their pages into a built site, and link them from the cards of its page

python nbs/_sphinx/gallery.py SITE"""
import argparse, re, sys, tempfile
from pathlib import Path
from pages import html_page
from bearcls.teach.gallery import build_gallery, write_try_pages

folder = 'gallery'  # beside the page of the gallery

def add_links(
    text: str,         # HTML of the gallery's page
    names: list[str],  # Problems that have a page to try
) -> str:              # The same with a link in each card
    "Fill the place that each card keeps for its links; `SystemExit` if a card has none"
    for name in names:
        links = f'<a href="{folder}/{name}/index.html">Try it in your browser</a> · <a href="{folder}/{name}/report.html">Its report</a>'
        text, found = re.subn(rf'(<p\b[^>]*\bclass="?try-{name}"?[^>]*>)\s*(?:<a.*?)?(?=</p>)', lambda m: m[1] + links, text, flags=re.DOTALL)
        if not found: sys.exit(f'The page of the gallery keeps no place for the links of {name}')
    return text

def main():
    parser = argparse.ArgumentParser(description='Put the pages of the gallery into a built site')
    parser.add_argument('site', type=Path, help='folder of the site, built before')
    site = parser.parse_args().site
    page = site/html_page('teach/08_gallery.ipynb')
    if not page.is_file(): sys.exit(f'{page} is not there; build the site first')
    with tempfile.TemporaryDirectory() as work:
        sizes = write_try_pages(build_gallery(work), page.parent/folder)
    names = [name for name in sizes if name != 'runtime']
    page.write_text(add_links(page.read_text(encoding='utf-8'), names), encoding='utf-8', newline='\n')
    print(', '.join(f'{name} {size/1e6:.2f} MB' for name, size in sizes.items()))

if __name__ == '__main__': main()
