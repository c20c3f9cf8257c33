"""Write README.md with its images, CONTRIBUTING.md and CHANGELOG.md from their notebooks, as `nbdev-readme` would, without Quarto

python nbs/_sphinx/readme.py [--check]"""
import argparse, base64, os, re, sys
from pathlib import Path
from urllib.parse import urlsplit
from nbdev.doclinks import NbdevLookup
from nbdev.process import NBProcessor
from nbdev.processors import FilterDefaults
from bearcls.pages import CodeBlocks, SitePage
from convert import _div, _options, _outputs, div_title
from pages import SiteError, config, local_link, notebook_of, root

images = 'nbs/images/readme-'
suffixes = {'image/svg+xml': 'svg', 'image/png': 'png', 'image/jpeg': 'jpg', 'image/gif': 'gif'}
texts = {'README.md': config.readme_nb, 'CONTRIBUTING.md': 'contributing.ipynb', 'CHANGELOG.md': 'changelog.ipynb'}  # each made from a notebook in nbs/
note = '<!-- Made from nbs/{} by `python nbs/_sphinx/readme.py`; change the notebook, not this file -->'

class Text:
    "A page as a text for readers of the repository, and the images it shows"
    def __init__(self,
        notebook: Path,  # Page as written
    ):
        os.chdir(root)  # nbdev's processors read the project's settings from the working folder
        self.files, self.lookup = {}, NbdevLookup(incl_libs=config.lib_name)
        nb = self._processed(notebook)
        front = nb.frontmatter_
        parts = [f'# {front["title"]}', note.format(notebook.name), front.get('description', '')]
        for cell in nb.cells:
            if cell.cell_type == 'markdown': parts.append(self.prose(cell.source))
            elif cell.cell_type == 'code': parts += self.code(cell)
        self.text = '\n\n'.join(p.strip('\n') for p in parts if p.strip()) + '\n'

    def _processed(self, notebook):
        steps = [p for p in FilterDefaults().base_procs() if p.__name__ not in ('add_links', 'insert_warning')]
        processor = NBProcessor(notebook, procs=[*steps, SitePage], rm_directives='quarto')
        processor.process()
        return processor.nb

    def prose(self,
        source: str,  # Markdown of a cell
    ) -> str:         # Markdown that GitHub shows
        "Names linked to their notebooks, links from the top of the repository, callouts as quotations"
        source = re.sub(r'<!--.*?-->', '', source, flags=re.DOTALL)
        return plain_divs(outside_code(self.lookup.linkify(source), in_clone))

    def code(self,
        cell: dict,  # Processed code cell
    ) -> list[str]:  # Its source and its outputs
        "A code block, then what it printed and showed"
        options, source = _options(cell.source)
        if options.get('include') == 'false': return []
        shown = [] if options.get('echo') == 'false' or not source.strip() else [f'``` python\n{source.strip()}\n```']
        if options.get('output') == 'false': return shown
        return shown + [self.output(o, options.get('fig-alt', '').strip('"\'')) for o in _outputs(cell.outputs, options)]

    def output(self,
        out: dict,      # Notebook output in one form
        alt: str = '',  # What screen readers say in place of an image
    ) -> str:           # Markdown
        "Images become files, text a block of code, HTML what GitHub lets pass"
        if out.output_type == 'stream': return _indented(out.text)
        (kind, value), = out.data.items()
        value = ''.join(value)
        if kind in suffixes: return f'![{alt}]({self.image(kind, value)})'
        if kind == 'text/html': return self.html(value)
        return self.prose(value) if kind == 'text/markdown' else _indented(value)

    def html(self,
        text: str,  # HTML of an output
    ) -> str:       # HTML without scripts and styles, its images in files
        "GitHub shows neither embedded images nor style sheets"
        text = re.sub(r'<(style|script)\b.*?</\1>', '', text, flags=re.DOTALL)
        text = _figures.sub(lambda m: _table(re.findall(r'(<img\b[^>]*>)<figcaption[^>]*>(.*?)</figcaption>', m[0])), text)
        text = re.sub(r'data:(image/[\w+]+);base64,([\w+/=]+)', lambda m: self.image(m[1], m[2]), text)
        return re.sub(r'\n\s*\n', '\n', text).strip()

    def image(self,
        kind: str,  # Media type
        data: str,  # SVG text, or the bytes in base 64
    ) -> str:       # Path from the top of the repository
        "Keep an image under the next number"
        name = f'{images}{len(self.files) + 1}.{suffixes[kind]}'
        self.files[name] = data.encode() if data.lstrip().startswith('<') else base64.b64decode(data)
        return name

_figures = re.compile(r'<div style="display:flex[^>]*>(?:<figure[^>]*><img\b[^>]*><figcaption[^>]*>[^<]*</figcaption></figure>)+</div>')

def _table(figures, width=6):
    "A wall of images as a table, since GitHub ignores how a style would place them"
    rows = [figures[i:i+width] for i in range(0, len(figures), width)]
    cells = [''.join(f'<td align="center">{image}<br>{caption}</td>' for image, caption in row) for row in rows]
    return '<table>' + ''.join(f'<tr>{row}</tr>' for row in cells) + '</table>'

def _indented(text): return '\n'.join('    ' + line if line else '' for line in text.rstrip().splitlines())

def in_clone(
    line: str,  # Line of markdown outside code
) -> str:       # The line with addresses from the top of the repository
    "Pages by their notebooks, images by their files: they open in a clone, and on the page of the repository"
    line = re.sub(r'(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)(\{[^}]*\})?', lambda m: f'[{m[1]}]({repository_link(m[2])})', line)
    line = re.sub(r'!\[([^\]]*)\]\((?!\w+:|/)([^)\s]+)\)(\{[^}]*\})?', r'![\1](nbs/\2)', line)
    line = re.sub(r'(<img\b[^>]*\bsrc=")(?!\w+:|/)', r'\1nbs/', line)
    return re.sub(r'(<a\b[^>]*\bhref=")([^"]+)', lambda m: m[1] + repository_link(m[2]), line)

def repository_link(
    target: str,  # Address as the home page has it, or as nbdev wrote it for a name in backquotes
) -> str:         # Path from the top of the repository; other addresses as they are
    "The notebook of a page of the site; without an anchor, which a notebook on a repository's page does not have"
    page = urlsplit(local_link(target, 'index'))
    if page.scheme or page.netloc or not page.path.endswith('.html'): return target
    notebook = notebook_of(page.path)
    if not notebook: raise SiteError(f'A page of the repository links to {target}, a page that no notebook makes')
    return f'nbs/{notebook}'

def outside_code(
    source: str,  # Markdown
    change,       # Function from line to line
) -> str:         # Markdown
    "Apply `change` to every line that is not in a block of code"
    in_code = CodeBlocks()
    return '\n'.join(line if in_code(line) else change(line) for line in source.splitlines())

def plain_divs(
    source: str,  # Markdown with Quarto's fenced divs
) -> str:         # Markdown that any reader understands
    "Callouts become quotations under a bold title, other divs leave only their content"
    lines, depth, in_code, todo = [], [], CodeBlocks(), source.splitlines()
    while todo:
        line = todo.pop(0)
        m = None if in_code(line) else _div.match(line)
        if m and m[3]:
            title = div_title(m[3], todo)
            if title: lines.append(''.join(depth) + f'> **{title}**'); todo.insert(0, '')
            depth.append('> ' if title else '')
        elif m: depth.pop()
        else: lines.append((''.join(depth) + line).rstrip())
    return re.sub(r'\n{3,}', '\n\n', '\n'.join(lines))  # where a div was, one empty line is enough

def wanted() -> dict[str, bytes]:  # Content by path from the top of the repository
    "All that is made from the notebooks"
    found = {}
    for name, notebook in texts.items():
        text = Text(config.nbs_path/notebook)
        found |= {name: text.text.encode(), **text.files}
    return found

def outdated(
    want: dict[str, bytes],  # What `wanted` gives
) -> list[str]:              # Files that differ on disk
    "What a new run would change"
    stale = [n for n, data in want.items() if not (root/n).exists() or (root/n).read_bytes().replace(b'\r\n', b'\n') != data.replace(b'\r\n', b'\n')]
    return stale + [f.relative_to(root).as_posix() for f in sorted((root/images).parent.glob('readme-*'))
                    if f.relative_to(root).as_posix() not in want]

def write(
    want: dict[str, bytes],  # What `wanted` gives
):
    "Write the texts and their images; images of earlier versions go"
    for f in (root/images).parent.glob('readme-*'): f.unlink()
    for name, data in want.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(data)

def main():
    parser = argparse.ArgumentParser(description='Write README.md, CONTRIBUTING.md and CHANGELOG.md from their notebooks')
    parser.add_argument('--check', action='store_true', help='write nothing; exit with status 1 if one of them is not in step')
    check = parser.parse_args().check
    want = wanted()
    stale = outdated(want)
    if not check: write(want)
    print(f'{"Not in step" if check else "Written"}: {", ".join(stale)}' if stale else f'{", ".join(texts)} are in step with their notebooks')
    return bool(check and stale)

if __name__ == '__main__': sys.exit(main())
