"""Beside each page of a built site its text in Markdown, which tools and assistants read, a list of all pages in llms.txt, and a sitemap

python nbs/_sphinx/twins.py [FOLDER]

Quarto runs it after it has rendered (`post-render` in _quarto.yml), the Sphinx build calls it. Texts are made from the notebooks that nbdev has processed,
so both builds have the same: links lead to other texts, images are their descriptions."""
import html, json, os, re, sys
from pathlib import Path
import yaml
from convert import _options
from pages import SiteError, config, docname, front_matter, html_page, local_link, root, sidebar, site_url
from readme import outside_code, plain_divs

def to_twin(
    line: str,  # Of Markdown or HTML
    page: str,  # `docname` of the page that holds it
) -> str:       # Links to pages lead to their texts, images that are part of the page are their descriptions
    "One line of a text"
    def target(address):
        path, mark, anchor = local_link(address, page).partition('#')
        is_page = path.endswith('.html') and '://' not in path
        return f'{path}.md{mark}{anchor}' if is_page else path + mark + anchor
    line = re.sub(r'!\[([^\]]*)\]\(data:[^)]*\)', lambda m: f'[image: {m[1]}]' if m[1] else '', line)
    line = re.sub(r'<img\b[^>]*\bsrc="data:[^"]*"[^>]*>', lambda m: html.unescape((re.search(r'\balt="([^"]*)"', m[0]) or [0, ''])[1]), line)
    line = re.sub(r'(\]\()([^)\s]+)(\)(?:\{[^}]*\})?)', lambda m: m[1] + target(m[2]) + ')', line)
    return re.sub(r'(<a\b[^>]*\bhref=")([^"]+)', lambda m: m[1] + target(m[2]), line)

def twin(
    cells: list[dict],  # Of a processed notebook
    page: str,          # Its `docname`
) -> str:               # Markdown
    "The text of a page"
    parts = []
    for cell in cells:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'raw':
            front = yaml.safe_load(source.strip().strip('-'))
            parts += [f'# {front["title"]}', f'> {front["description"]}' if front.get('description') else '']
        elif cell['cell_type'] == 'markdown':
            text = re.sub(r'<!--.*?-->', '', source, flags=re.DOTALL)
            parts.append(outside_code(plain_divs(text), lambda line: to_twin(line, page)))
        else: parts += _code(cell, source, page)
    return '\n\n'.join(p.strip('\n') for p in parts if p.strip()) + '\n'

def _code(cell, source, page):
    options, source = _options(source)
    if options.get('include') == 'false': return []
    parts = [] if options.get('echo') == 'false' or not source.strip() else [f'```python\n{source.strip()}\n```']
    for out in cell.get('outputs', []) if options.get('output') != 'false' else []:
        if out['output_type'] == 'stream': parts.append(f'```\n{"".join(out["text"])}\n```')
        elif out['output_type'] != 'error':
            (kind, value), = out['data'].items()
            text = ''.join(value) if isinstance(value, (str, list)) else ''
            if kind == 'text/markdown':
                text = re.sub(r'^(`{3,})\{=html\}\n(.*)\n\1$', r'\2', text, flags=re.DOTALL)
                text = re.sub(r'<svg\b.*?</svg>', lambda m: html.unescape((re.search(r'\baria-label="([^"]*)"', m[0]) or [0, ''])[1]), text, flags=re.DOTALL)
                parts.append('\n'.join(to_twin(line, page) for line in text.splitlines()))
            elif kind == 'text/plain': parts.append(f'```\n{text}\n```')
            else: parts.append(f'[image: {options["fig-alt"].strip(chr(34))}]' if 'fig-alt' in options else '[image]')
    return parts

def llms() -> str:  # Markdown
    "All pages with their descriptions, in the order of the sidebar"
    home = front_matter(config.readme_nb)
    lines = [f'# {config.title}', '', f'> {home.get("description", config.description)}']
    for section in sidebar():
        notebooks = [n for n in [section.index, *section.notebooks] if n]
        lines += ['', f'## {section.caption or section.text}', '']
        for name in notebooks:
            front = front_matter(name)
            lines.append(f'- [{front["title"]}]({site_url}{html_page(name)}.md): {front.get("description", "")}'.rstrip(': '))
    return '\n'.join(lines) + '\n'

def sitemap(notebooks: list[str]) -> str:  # XML
    "The address of every page"
    rows = ''.join(f'<url><loc>{html.escape(site_url + html_page(n))}</loc></url>\n' for n in notebooks)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{rows}</urlset>\n'

def write_twins(
    out: Path,  # Built site
) -> int:       # Texts written
    "A text for every page, llms.txt and sitemap.xml"
    notebooks = [n for s in sidebar() for n in [s.index, *s.notebooks] if n]
    for name in notebooks:
        page = html_page(name)
        if not (out/page).is_file(): raise SiteError(f'{out} has no page {page}: build the site first')
        cells = json.loads((root/'_proc'/name).read_text(encoding='utf-8'))['cells']
        (out/f'{page}.md').write_text(twin(cells, docname(name)), encoding='utf-8')
    (out/'llms.txt').write_text(llms(), encoding='utf-8')
    (out/'sitemap.xml').write_text(sitemap(notebooks), encoding='utf-8')
    return len(notebooks)

if __name__ == '__main__':
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get('QUARTO_PROJECT_OUTPUT_DIR') or root/config.doc_path)
    print(f'{write_twins(folder)} texts in {folder}')
