"""The tutorials with tasks as practice notebooks, which travel with the package: bearcls/static/practice/

python nbs/_sphinx/practice.py [--check]"""
import argparse, json, sys
from pathlib import Path
from bearcls.book.notebooks import read_notebook
from bearcls.teach.practice import strip_notebook
from pages import numbered, root

def practice_notebooks() -> dict[Path, str]:  # Text by file
    "What the folder should hold"
    found = {}
    for name in numbered('tutorials'):
        notebook = read_notebook(root/'nbs'/name)
        if not any('<!-- task:' in ''.join(cell['source']) for cell in notebook['cells']): continue
        file = root/'bearcls'/'static'/'practice'/Path(name).name.partition('_')[2]
        found[file] = json.dumps(strip_notebook(notebook), indent=1, ensure_ascii=False) + '\n'
    return found

def main():
    parser = argparse.ArgumentParser(description='Write the practice notebooks of the package from the tutorials')
    parser.add_argument('--check', action='store_true', help='write nothing; exit with status 1 if they are not in step')
    check = parser.parse_args().check
    stale = [f for f, text in practice_notebooks().items() if not f.exists() or f.read_text(encoding='utf-8') != text]
    for file in stale:
        if not check:
            file.parent.mkdir(exist_ok=True)
            file.write_text(practice_notebooks()[file], encoding='utf-8', newline='\n')
        print(f'{"Not in step" if check else "Written"}: {file.relative_to(root).as_posix()}')
    if not stale: print('bearcls/static/practice is in step with the tutorials')
    return bool(check and stale)

if __name__ == '__main__': sys.exit(main())
