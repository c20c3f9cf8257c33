"""From a notebook that nbdev has processed, `bearcls.pages` included, to one that MyST-NB reads: directives, callouts, raw HTML"""
import html, posixpath, re
from markdown_it import MarkdownIt
from urllib.parse import urlsplit
import nbformat, yaml
from bearcls.pages import CodeBlocks
from pages import SiteError, config

callouts = dict(note='Note', tip='Tip', warning='Warning', important='Important', caution='Caution')
_div = re.compile(r'^( *)(:{3,})[ \t]*(.*?)[ \t]*$')
_layout = re.compile(r'\.(panel-|column-|grid\b|g-col|content-|aside|notes\b|incremental)|layout|=')

def convert(
    nb: nbformat.NotebookNode,  # Processed notebook
    name: str,                  # Its path below nbs/, for error messages
    source_ids: list[str],      # Cell ids of the notebook as written, in order
    notebooks: list[str],       # All notebooks of the site, targets of links
) -> nbformat.NotebookNode:     # The notebook for MyST-NB
    "One page: its title and description first, then its cells"
    cells, front, faults = [], {}, []
    for cell in nb.cells:
        number = source_ids.index(cell.id) + 1 if cell.get('id') in source_ids else None
        where = f'nbs/{name}, cell {number} (id {cell.id})' if number else f'nbs/{name}, a cell that nbdev made (id {cell.get("id")})'
        try:
            if cell.cell_type == 'raw': front.update(_front_matter(cell.source))
            elif cell.cell_type == 'markdown': cells += _markdown(cell.source, name, notebooks)
            else: cells += _code(cell, name, notebooks)
        except SiteError as e: faults.append(f'{where}: {e}')
    if 'title' not in front: faults.append(f'nbs/{name}: the first cell must be `# Title`, followed by `> one-line description`')
    if faults: raise SiteError('\n'.join(faults))
    return nbformat.v4.new_notebook(cells=[_heading(front), *cells], metadata=dict(kernelspec=nb.metadata.get('kernelspec', {})))

def _front_matter(source):
    return yaml.safe_load(source.strip().strip('-'))

def _heading(front):
    lead = f'\n\n{{.lead}}\n{front["description"]}' if front.get('description') else ''
    return nbformat.v4.new_markdown_cell(f'# {front["title"]}{lead}')

def _markdown(source, name, notebooks):
    check_links(source, name, notebooks)
    source = quarto_divs(re.sub(r'<!--.*?-->', '', source, flags=re.DOTALL))
    return [nbformat.v4.new_markdown_cell(source)] if source.strip() else []

def check_links(
    source: str,           # Markdown
    name: str,             # Notebook that holds it
    notebooks: list[str],  # Notebooks that exist
):
    "Every link to a notebook leads to one, and none leads to a page that only one of the two builds would make"
    for token in MarkdownIt().parse(source):
        if broken := next((c.content for c in token.children or [] if c.type == 'text' and '](' in c.content), ''):
            raise SiteError(f'link that is none, {broken[:60]}: a name in backquotes becomes a link by itself, and cannot be the words of another')
        for link in (c.attrs['href'] for c in token.children or [] if c.type == 'link_open'):
            url = urlsplit(link)
            if url.scheme or url.netloc or not url.path: continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), url.path))
            if not target.endswith('.ipynb'): raise SiteError(f'link to {link}: link to the notebook (`.ipynb`) or to a full address')
            if target not in notebooks: raise SiteError(f'link to {link}: there is no notebook nbs/{target}')

# Callouts

def quarto_divs(
    source: str,  # Markdown with Quarto's fenced divs
) -> str:         # Markdown with HTML around the same text
    "Callouts become admonitions, divs with classes become divs; any other form is an error"
    lines, open_divs, in_code = [], [], CodeBlocks()
    todo = source.splitlines()
    while todo:
        line = todo.pop(0)
        m = None if in_code(line) else _div.match(line)
        if not m: lines.append(line)
        elif m[1]: raise SiteError(f'{line.strip()!r} is indented; a div must begin at the start of the line')
        elif m[3]:
            before, after = _open_div(m[3], todo)
            lines += ['', before, '']
            open_divs.append(after)
        elif open_divs: lines += ['', open_divs.pop(), '']
        else: raise SiteError('`:::` closes a div that was never opened')
    if open_divs: raise SiteError('a div that was opened with `:::` is not closed in the same cell')
    return '\n'.join(lines)

def _open_div(attributes, following):
    "The HTML that opens a div and the HTML that closes it"
    kind, options = _callout(attributes)
    if not kind: return _plain_div(attributes)
    title = re.sub(r'`([^`]+)`', r'<code>\1</code>', html.escape(div_title(attributes, following)))
    if 'collapse' not in options: return f'<div class="admonition {kind}"><p class="admonition-title">{title}</p>', '</div>'
    opened = ' open' if options['collapse'] == 'false' else ''
    return f'<details class="admonition {kind}"{opened}><summary class="admonition-title">{title}</summary>', '</details>'

def _callout(attributes):
    "Kind and options of a callout; an empty kind for another div"
    m = re.match(r'\{\s*\.callout-(\w+)(.*)\}$', attributes)
    if not m: return '', {}
    options = {key: value.strip('"\'') for key, value in re.findall(r'([\w-]+)=("[^"]*"|\'[^\']*\'|[^\s}]+)', m[2])}
    if m[1] not in callouts: raise SiteError(f'callout-{m[1]} is none of {", ".join(callouts)}')
    if unknown := set(options) - {'title', 'collapse', 'appearance', 'icon'}: raise SiteError(f'callout option {unknown.pop()} is not supported')
    return m[1], options

def div_title(
    attributes: str,       # What follows `:::`
    following: list[str],  # Lines after it; a heading that serves as the title is taken away
) -> str:                  # Title of a callout; empty for any other div
    "The title of a callout: its option, else the heading it begins with, else its kind"
    kind, options = _callout(attributes)
    if not kind: return ''
    if options.get('title'): return options['title']
    text = next((i for i, line in enumerate(following) if line.strip()), None)
    if text is not None and re.match(r'#+ ', following[text]): return following.pop(text).strip('# \t')
    return callouts[kind]

def _plain_div(attributes):
    inner = attributes[1:-1].strip() if attributes.startswith('{') else '.' + attributes
    if _layout.search(inner): raise SiteError(f'the div {attributes} is a layout that only Quarto knows')
    if not re.fullmatch(r'(\.[\w-]+\s*)+', inner): raise SiteError(f'the div {attributes} is not understood')
    return f'<div class="{" ".join(c.strip(".") for c in inner.split())}">', '</div>'

# Code cells

_directive = re.compile(r'^#\|\s*([\w-]+)\s*:\s*(.*?)\s*$')
_known = {'echo', 'output', 'include', 'eval', 'warning', 'error', 'code-fold', 'code-summary', 'fig-alt', 'fig-cap', 'label', 'filter_stream'}
_known |= set(config.tst_flags.split())  # flags of cells that tests leave out, such as `slow`

def _code(cell, name, notebooks):
    options, source = _options(cell.source)
    if unknown := set(options) - _known: raise SiteError(f'the directive `#| {unknown.pop()}` is not supported')
    if options.get('include') == 'false': return []
    outputs = [] if options.get('output') == 'false' else _outputs(cell.outputs, options)
    if options.get('output') == 'asis': return _as_is(outputs, name, notebooks)
    if options.get('echo') == 'false' and not outputs: return []
    return [_code_cell(source, outputs, options)] if source.strip() or outputs else []

def _code_cell(source, outputs, options):
    tags, settings = [], {}
    if options.get('echo') == 'false': tags.append('remove-input')
    if options.get('code-fold') in ('true', 'show'): tags.append('hide-input')
    if 'code-summary' in options: settings['code_prompt_show'] = options['code-summary'].strip('"\'')
    if 'fig-alt' in options: settings['image'] = dict(alt=options['fig-alt'].strip('"\''))
    if 'fig-cap' in options: settings['figure'] = dict(caption=options['fig-cap'].strip('"\''))
    cell = nbformat.v4.new_code_cell(source, outputs=outputs)
    cell.metadata = nbformat.from_dict({'tags': tags, **({'mystnb': settings} if settings else {})})
    return cell

def _options(source):
    "Quarto's `#| key: value` lines at the top of a cell, and the code below them"
    options, lines = {}, source.splitlines()
    while lines and (m := _directive.match(lines[0])):
        options[m[1]] = m[2]
        lines.pop(0)
    return options, '\n'.join(lines)

_raw = re.compile(r'(`{3,})\{=html\}\n(.*)\n\1', re.DOTALL)  # as `bearcls.pages` writes it

def _outputs(outputs, options):
    "Outputs as MyST-NB takes them, without those that a directive leaves out"
    kept = []
    for o in outputs:
        if o.output_type == 'error': raise SiteError(f'the output is a traceback: {o.ename}: {o.evalue}')
        if o.output_type == 'stream':
            if o.name != 'stderr' or options.get('warning') != 'false': kept.append(o)
            continue
        (kind, value), = o.data.items()
        if raw := _raw.fullmatch(value) if kind == 'text/markdown' else None: kind, value = 'text/html', raw[2]
        kept.append(nbformat.v4.new_output('display_data', data={kind: value}))
    return kept

def _as_is(outputs, name, notebooks):
    "Outputs that are Markdown themselves"
    cells = []
    for o in outputs:
        if o.output_type != 'stream' and 'text/html' in o.data: cells.append(nbformat.v4.new_markdown_cell(o.data['text/html']))
        else: cells += _markdown(o.text if o.output_type == 'stream' else next(iter(o.data.values())), name, notebooks)
    return cells
