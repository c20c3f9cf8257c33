"""Build the site without Quarto: the notebooks as nbdev processes them, rendered by MyST-NB and Sphinx

python nbs/_sphinx/build.py [--out DIR]"""
import argparse, os, shutil, sys
from pathlib import Path
import nbformat
from nbdev.serve import proc_nbs
from sphinx.cmd.build import main as sphinx
from check import problems
from convert import convert
from pages import SiteError, check_sidebar, config, docname, root, sidebar

def pages_for_sphinx(
    processed: Path,  # Folder that nbdev wrote for Quarto
    dest: Path,       # Folder to make: pages and pictures for Sphinx
):
    "Every processed notebook under the name of its page, and the pictures beside them"
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

def _write_page(name, processed, dest, notebooks):
    ids = [c.get('id') for c in nbformat.read(config.nbs_path/name, 4).cells]
    page = convert(nbformat.read(processed/name, 4), name, ids, notebooks)
    if name == config.readme_nb: page.cells.append(nbformat.v4.new_markdown_cell(toctrees()))
    file = dest/f'{docname(name)}.ipynb'
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(page, file)

def _internal(file, processed):
    return any(part.startswith(('.', '_')) for part in file.relative_to(processed).parts)

def toctrees() -> str:  # Markdown for the end of the home page
    "The sidebar as Sphinx wants it: hidden tables of contents on the home page"
    blocks = []
    for section in sidebar():
        lines = [_entry(n, section.text) for n in section.notebooks]
        caption = [f':caption: {section.caption}'] if section.caption else []
        blocks.append('\n'.join(['```{toctree}', ':hidden:', *caption, '', *lines, '```']))
    return '\n\n'.join(blocks)

def _entry(notebook, text):
    target = 'self' if notebook == config.readme_nb else '/' + docname(notebook)
    return f'{text} <{target}>' if text else target

def build(
    out: Path,  # Folder for the site
) -> list[str]: # Faults found; empty for a good site
    "Process, convert, render with warnings as errors, and check every address"
    if out.exists() and not (out/'.nojekyll').exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SiteError(f'{out} is there and is no site built before: give another --out, or remove it yourself')
    os.chdir(root)
    source, pages = root/'build'/'site', root/'build'/'html'  # MyST-NB leaves its pictures beside the pages, so these are made here
    pages_for_sphinx(proc_nbs(n_workers=0, force=True), source)
    shutil.rmtree(pages, ignore_errors=True)
    here = str(Path(__file__).parent)
    if status := sphinx(['-q', '-W', '--keep-going', '-b', 'html', '-c', here, '-d', str(root/'build'/'doctrees'), '-E', str(source), str(pages)]):
        return [f'Sphinx ended with status {status}; its messages stand above, its pages in {source.relative_to(root)}']
    if (source/'images').is_dir(): shutil.copytree(source/'images', pages/'images', dirs_exist_ok=True)
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

if __name__ == '__main__': sys.exit(main())
