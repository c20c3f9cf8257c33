"""The notebooks of the project, and how much of each is prose, code and example

python tests/notebooks.py prints one line for each notebook."""
import json, re
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
        directives = set(re.findall(r'^#\|\s*(\w+)', cell['source'], re.MULTILINE))
        if cell['cell_type'] == 'markdown': kind = 'prose'
        elif directives & {'export', 'exports', 'exporti', 'default_exp'}: kind = 'exported'
        else: kind = 'hidden' if directives & {'hide', 'include'} else 'examples'
        counts[kind] += 1
    return counts | {'kB': notebook.stat().st_size // 1000}

def main():
    rows = [(f.relative_to(root/'nbs').as_posix(), figures(f)) for f in notebooks()]
    names = list(rows[0][1])
    print(f'{"notebook":42}' + ''.join(f'{n:>10}' for n in names))
    for name, row in rows: print(f'{name:42}' + ''.join(f'{row[n]:>10}' for n in names))
    hidden, total = sum(r['hidden'] for _, r in rows), sum(r['cells'] for _, r in rows)
    print(f'hidden cells: {hidden} of {total}, {hidden/total:.1%}')

if __name__ == '__main__': main()
