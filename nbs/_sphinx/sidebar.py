"""Write nbs/sidebar.yml, the sidebar of the site that Quarto builds, from the tree of notebooks

python nbs/_sphinx/sidebar.py [--check]"""
import argparse, sys
import yaml
from pages import SiteError, check_sidebar, root, sidebar

file = root/'nbs'/'sidebar.yml'
note = '# Made from the tree of notebooks by `python nbs/_sphinx/sidebar.py`; change the tree, not this file\n'

def sidebar_yml() -> str:  # Content of nbs/sidebar.yml
    "The sidebar as Quarto reads it"
    contents = [_entry(s) for s in sidebar()]
    website = dict(website=dict(sidebar=dict(contents=contents)))
    return note + yaml.safe_dump(website, sort_keys=False, allow_unicode=True)

def _entry(section):
    if section.text: return dict(text=section.text, href=section.notebooks[0])
    door = dict(href=section.index) if section.index else {}
    return dict(section=section.caption, **door, contents=section.notebooks)

def main():
    parser = argparse.ArgumentParser(description='Write nbs/sidebar.yml from the tree of notebooks')
    parser.add_argument('--check', action='store_true', help='write nothing; exit with status 1 if it is not in step')
    check = parser.parse_args().check
    found = [f.relative_to(root/'nbs') for f in (root/'nbs').rglob('*.ipynb')]
    notebooks = sorted(f.as_posix() for f in found if not any(part[0] in '._' for part in f.parts))
    try: check_sidebar(notebooks)
    except SiteError as e: sys.exit(str(e))
    stale = not file.exists() or file.read_text(encoding='utf-8') != sidebar_yml()
    if not check: file.write_text(sidebar_yml(), encoding='utf-8', newline='\n')
    if not stale: print('nbs/sidebar.yml is in step with the tree')
    else: print(f'{"Not in step" if check else "Written"}: nbs/sidebar.yml')
    return bool(check and stale)

if __name__ == '__main__': sys.exit(main())
