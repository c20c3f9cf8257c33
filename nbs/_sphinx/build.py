"""Build the site without Quarto: the notebooks as nbdev processes them, rendered by MyST-NB and Sphinx

python nbs/_sphinx/build.py [--out DIR]"""
import argparse, html, json, os, posixpath, re, shutil, sys
from pathlib import Path
import nbformat
from nbdev.serve import proc_nbs
from sphinx.cmd.build import main as sphinx
from check import problems
from convert import convert
from light import lighten
from pages import SiteError, check_sidebar, config, docname, earlier_pages, front_matter, html_page, root, sidebar
from twins import write_twins

def pages_for_sphinx(
    processed: Path,  # Folder that nbdev wrote for Quarto
    dest: Path,       # Folder to make: pages and images for Sphinx
) -> list[str]:       # The notebooks, as paths below nbs/
    "Every processed notebook under the name of its page, and the images beside them"
    notebooks = sorted(f.relative_to(processed).as_posix() for f in processed.rglob('*.ipynb') if not _internal(f, processed))
    check_sidebar(notebooks)
    if twice := {n for n in notebooks if [docname(m) for m in notebooks].count(docname(n)) > 1}:
        raise SiteError(f'These notebooks would have the same address: {", ".join(sorted(twice))}')
    shutil.rmtree(dest, ignore_errors=True)
    if (processed/'images').is_dir(): shutil.copytree(processed/'images', dest/'images')
    faults = []
    for name in notebooks:
        try: _write_page(name, processed, dest, notebooks)
        except SiteError as e: faults.append(str(e))
    if faults: raise SiteError('\n'.join(faults))
    return notebooks

def _write_page(name, processed, dest, notebooks):
    ids = [c.get('id') for c in nbformat.read(config.nbs_path/name, 4).cells]
    page = convert(nbformat.read(processed/name, 4), name, ids, notebooks)
    if text := toctrees(name): page.cells.append(nbformat.v4.new_markdown_cell(text))
    file = dest/f'{docname(name)}.ipynb'
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(page, file)

def _internal(file, processed):
    return any(part.startswith(('.', '_')) for part in file.relative_to(processed).parts)

def toctrees(
    notebook: str,  # Path below nbs/
) -> str:           # Markdown for the end of its page; empty for most
    "The sidebar as Sphinx wants it: hidden tables of contents, on the home page and on the front page of each wing"
    sections = sidebar()
    if notebook != config.readme_nb:
        return next((_toctree('', s.notebooks) for s in sections if s.index == notebook), '')
    doors = [s.index for s in sections if s.index]
    blocks = []
    for s in sections:
        if not s.index: blocks.append(_toctree(s.caption, s.notebooks, s.text))
        elif s.index == doors[0]: blocks.append(_toctree('Modules', doors))
    return '\n\n'.join(blocks)

def _toctree(caption, notebooks, text=''):
    head = [f':caption: {caption}'] if caption else []
    return '\n'.join(['```{toctree}', ':hidden:', *head, '', *[_entry(n, text) for n in notebooks], '```'])

def _entry(notebook, text):
    target = 'self' if notebook == config.readme_nb else '/' + docname(notebook)
    return f'{text} <{target}>' if text else target

_moved = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><link rel="canonical" href="{to}">
<script>location.replace({script} + location.hash)</script><meta http-equiv="refresh" content="0; url={to}"></head>
<body><p>This page has moved to <a href="{to}">{title}</a>.</p></body></html>
"""

def write_stubs(
    notebooks: list[str],  # Paths below nbs/
    out: Path,             # Built site
):
    "A page at each address that a page had before, which leads on to where it is, with the anchor"
    for name in notebooks:
        for page in earlier_pages(name):
            if page == 'search.html': continue  # Sphinx's own, the form that searches the site
            if (out/page).exists(): raise SiteError(f'nbs/{name} claims the earlier address {page}, which is a page')
            to = posixpath.relpath(html_page(name), posixpath.dirname(page) or '.')
            (out/page).parent.mkdir(parents=True, exist_ok=True)
            title = html.escape(front_matter(name)['title'])
            text = _moved.format(title=title, to=html.escape(to, quote=True), script=json.dumps(to))
            (out/page).write_text(text, encoding='utf-8')

_toggle = re.compile(r'(<a [^>]*class="(?:current )?reference internal"[^>]*>\s*([^<]+?)\s*</a>\s*<details[^>]*>\s*)<summary>')

def name_toggles(
    pages: Path,  # Folder of the site
):
    "In the sidebar, the theme's buttons that open a section have no name that a screen reader could say"
    for file in pages.rglob('*.html'):
        text = file.read_text(encoding='utf-8')
        named = _toggle.sub(r'\1<summary aria-label="Pages of \2">', text)
        if named != text: file.write_text(named, encoding='utf-8', newline='\n')

def build(
    out: Path,  # Folder for the site
) -> list[str]: # Faults found; empty for a good site
    "Process, convert, render with warnings as errors, and check every address"
    if out.exists() and not (out/'.nojekyll').exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SiteError(f'{out} is there and is no site built before: give another --out, or remove it yourself')
    os.chdir(root)
    source, pages = root/'build'/'site', root/'build'/'html'  # MyST-NB leaves its images beside the pages, so these are made here
    notebooks = pages_for_sphinx(proc_nbs(n_workers=0, force=True), source)
    shutil.rmtree(pages, ignore_errors=True)
    here = str(Path(__file__).parent)
    if status := sphinx(['-q', '-W', '--keep-going', '-b', 'html', '-c', here, '-d', str(root/'build'/'doctrees'), '-E', str(source), str(pages)]):
        return [f'Sphinx ended with status {status}; its messages stand above, its pages in {source.relative_to(root)}']
    if (source/'images').is_dir(): shutil.copytree(source/'images', pages/'images', dirs_exist_ok=True)
    name_toggles(pages)
    lighten(pages)
    write_stubs(notebooks, pages)
    write_twins(pages)
    (pages/'.nojekyll').touch()
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(pages, out)
    return problems(out)

def main():
    parser = argparse.ArgumentParser(description='Build the site without Quarto')
    parser.add_argument('--out', type=Path, default=root/'_site', help='folder for the site (default: _site)')
    out = parser.parse_args().out.resolve()
    try: found = build(out)
    except SiteError as e: found = [str(e)]
    print('\n'.join(found) or f'{len(list(out.rglob("*.html")))} pages in {out}: no warnings, every internal address exists')
    return bool(found)

if __name__ == '__main__':
    failed = main()
    sys.stdout.flush()
    os._exit(failed)  # each page leaves a shell of IPython, which would collect the garbage of all once more: minutes
