"""The notebooks of the project: how much of each is prose, code and example, how dense the code is, and how the pages talk

python tests/notebooks.py prints one line for each notebook, then the figures of them all."""
import ast, json, re
from pathlib import Path

root = Path(__file__).resolve().parents[1]

def notebooks() -> list[Path]:
    "Every notebook that becomes a page, folder by folder, in the order of numbers"
    return sorted(f for f in (root/'nbs').rglob('*.ipynb') if not any(part[0] in '._' for part in f.relative_to(root).parts))

def cells(
    notebook: Path,
) -> list[dict]:  # Cells with their source as one string
    "The cells of a notebook"
    found = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return [{**c, 'source': ''.join(c['source'])} for c in found]

def output_text(
    cell: dict,
) -> str:  # Everything but images
    "What the outputs of a cell say in words"
    parts = []
    for out in cell.get('outputs', []):
        parts += [''.join(out.get('text', '')), *out.get('traceback', [])]
        parts += [''.join(v) for k, v in out.get('data', {}).items() if k.startswith('text/') or k == 'image/svg+xml']
    return '\n'.join(parts)

def figures(
    notebook: Path,
) -> dict[str, int]:  # Counts of cells by kind, and the size in kilobytes
    "How a notebook divides into prose, exported code, examples and hidden cells"
    counts = dict(cells=0, prose=0, exported=0, examples=0, hidden=0)
    for cell in cells(notebook):
        counts['cells'] += 1
        counts[_kind(cell)] += 1
    return counts | {'kB': notebook.stat().st_size // 1000}

def _kind(cell):
    "What a cell is for its reader"
    directives = set(re.findall(r'^#\|\s*(\w+)', cell['source'], re.MULTILINE))
    if cell['cell_type'] == 'markdown': return 'prose'
    if directives & {'export', 'exports', 'exporti', 'default_exp'}: return 'exported'
    return 'hidden' if directives & {'hide', 'include'} else 'examples'

def exported(notebook: Path) -> str:  # Python
    "The code that a notebook exports, as one text"
    return '\n'.join(c['source'] for c in cells(notebook) if c['cell_type'] == 'code' and _kind(c) == 'exported')

def without_example(
    notebook: Path,
) -> tuple[int, int]:  # Exported cells that define something, and those of them without an example in the two cells after them
    "How often a reader has to wait before a definition is put to use"
    kinds = [_kind(c) for c in cells(notebook)]
    sources = [c['source'] for c in cells(notebook)]
    defining = [i for i, kind in enumerate(kinds) if kind == 'exported' and re.search(r'^(async )?(def|class) ', sources[i], re.MULTILINE)]
    alone = [i for i in defining if 'examples' not in [k for k in kinds[i + 1:] if k != 'prose'][:2]]
    return len(defining), len(alone)

def code_figures(
    sources: list[str],  # Python, one text for each module
) -> dict[str, float]:
    "How dense the code is"
    trees = [ast.parse(re.sub(r'^#\|.*$', '', s, flags=re.MULTILINE)) for s in sources]
    nodes = [n for tree in trees for n in ast.walk(tree)]
    statements = sum(isinstance(n, ast.stmt) for n in nodes)
    packed = sum(isinstance(n, ast.Assign) and isinstance(n.value, ast.Tuple) and isinstance(n.targets[0], ast.Tuple) for n in nodes)
    loops = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    nested = sum(isinstance(n, loops) and (len(n.generators) > 1 or any(isinstance(m, loops) for m in ast.walk(n) if m is not n)) for n in nodes)
    lines = [line for s in sources for line in s.splitlines()]
    return {'exported lines': len(lines), 'lines above 120 characters': _share(sum(len(line) > 120 for line in lines), len(lines)),
        'tuple assignments in 1000 statements': round(1000*packed/statements, 1), 'nested comprehensions in 1000 statements': round(1000*nested/statements, 1),
        'private functions with one caller': _share(*_called_once(trees))}

def _called_once(trees):
    "Private functions that one place names, and all of them"
    once, n = 0, 0
    for tree in trees:
        names = [m.id for m in ast.walk(tree) if isinstance(m, ast.Name)] + [m.attr for m in ast.walk(tree) if isinstance(m, ast.Attribute)]
        private = [m.name for m in ast.walk(tree) if isinstance(m, ast.FunctionDef) and re.match(r'_[a-z]', m.name)]
        n += len(private)
        once += sum(names.count(name) == 1 for name in private)
    return once, n

def prose_figures(
    texts: list[str],  # Cells of markdown
) -> dict[str, float]:
    "How the pages talk"
    plain = [re.sub(r'(?s:```.*?```)|`[^`]*`|\]\([^)]*\)|^[|#>].*$', ' ', t, flags=re.MULTILINE) for t in texts]
    sentences = [s for t in plain for s in re.split(r'(?<=[.!?])\s+|\n\s*\n', t) if re.search(r'\w+ \w+', s)]
    def rate(pattern): return round(1000*sum(len(re.findall(pattern, s, re.IGNORECASE)) for s in sentences)/len(sentences), 1)
    return {'sentences': len(sentences), '"you" in 1000 sentences': rate(r"\byou(r|rs|rself|'re|'ll|'ve)?\b"),
        '"is told, asked, kept, refused" in 1000': rate(r'\b(is|are|was|were|be|been) (told|asked|kept|refused)\b'), '"nobody, whoever, somebody" in 1000': rate(r'\b(nobody|whoever|somebody)\b')}

def _share(part, whole): return f'{part/whole:.1%} ({part} of {whole})'

def main():
    rows = [(f.relative_to(root/'nbs').as_posix(), figures(f)) for f in notebooks()]
    names = list(rows[0][1])
    print(f'{"notebook":42}' + ''.join(f'{n:>10}' for n in names))
    for name, row in rows: print(f'{name:42}' + ''.join(f'{row[n]:>10}' for n in names))
    hidden, total = sum(r['hidden'] for _, r in rows), sum(r['cells'] for _, r in rows)
    files = notebooks()
    defining, alone = (sum(column) for column in zip(*map(without_example, files)))
    print(f'hidden cells: {_share(hidden, total)}')
    print(f'exported cells without an example within two cells: {_share(alone, defining)}')
    reference = [f for f in files if f.parent.name not in ('tutorials', 'explain')]
    pages = {'reference pages': reference, 'tutorials': [f for f in files if f not in reference]}
    for name, value in code_figures([exported(f) for f in reference]).items(): print(f'{name}: {value}')
    for where, some in pages.items():
        texts = [c['source'] for f in some for c in cells(f) if c['cell_type'] == 'markdown']
        print(f'{where}: ' + ', '.join(f'{name} {value}' for name, value in prose_figures(texts).items()))

if __name__ == '__main__': main()
