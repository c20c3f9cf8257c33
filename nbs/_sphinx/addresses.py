"""Where the project is published: what is still missing, and how to change it everywhere

python nbs/_sphinx/addresses.py                               what does not answer yet; exit status 1 if anything
python nbs/_sphinx/addresses.py --set REPOSITORY DOCUMENTATION  write two other addresses into pyproject.toml, notebooks and texts"""
import argparse, re, subprocess, sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from pages import config, root

made = ('bearcls/', 'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'nbs/nbdev.yml', 'nbs/_proc/')  # written by a command, from the files that are changed here

def addresses() -> dict[str, str]:  # Address by its name in pyproject.toml, without a slash at the end
    "The two addresses as pyproject.toml has them"
    return {'Repository': config.git_url, 'Documentation': config.doc_url.rstrip('/')}

def problem(
    url: str,             # Address of a page
    timeout: float = 10,  # Seconds
) -> str:                 # Why nobody can follow it; empty where it answers
    "Ask for a page as a reader's browser would"
    try: urlopen(Request(url, headers={'User-Agent': 'Mozilla/5.0'}), timeout=timeout).close()
    except HTTPError as e: return f'answers {e.code} {e.reason}'
    except (URLError, OSError, ValueError) as e: return f'does not answer: {getattr(e, "reason", e)}'
    return ''

def unpublished() -> dict[str, str]:  # Reason by name; empty when all is there
    "What a reader would be sent to in vain"
    found = {f'{name} {url}': why for name, url in addresses().items() if (why := problem(url))}
    asked = subprocess.run([sys.executable, '-m', 'pip', 'index', 'versions', config.lib_name], capture_output=True, text=True)
    if asked.returncode: found[f'Package {config.lib_name}'] = 'has no release on the package index that pip asks'
    return found

def change(
    folder: Path,         # Top of a repository
    files: list[str],     # Its files, from there
    old: dict[str, str],  # Addresses as they are
    new: dict[str, str],  # Addresses as they shall be, under the same names
) -> list[str]:           # Files that were changed
    "Write new addresses wherever the old ones stand"
    changed = []
    for name in files:
        if name.startswith(made) or Path(name).suffix in ('.png', '.jpg', '.svg'): continue
        text = before = (folder/name).read_text(encoding='utf-8')
        for key in old: text = re.sub(re.escape(old[key]) + r'(?![\w-])', lambda m: new[key], text)
        if text == before: continue
        (folder/name).write_text(text, encoding='utf-8', newline='\n')
        changed.append(name)
    return changed

def main():
    parser = argparse.ArgumentParser(description='Where the project is published: what is missing, and how to change it everywhere')
    parser.add_argument('--set', nargs=2, metavar=('REPOSITORY', 'DOCUMENTATION'), help='the addresses of the repository and of the site')
    given = parser.parse_args().set
    if given:
        if wrong := [url for url in given if not re.match(r'https?://[^/\s]+', url)]: sys.exit(f'{wrong[0]} is no address: it must begin with https://')
        files = subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
        changed = change(root, files, addresses(), dict(zip(addresses(), (url.rstrip('/') for url in given))))
        print('\n'.join(['Changed:', *changed]) if changed else 'Nothing to change')
        print('Now run: nbdev-export; python nbs/_sphinx/readme.py')
        return
    missing = unpublished()
    for name, why in missing.items(): print(f'{name}: {why}')
    if not missing: print('Repository, documentation and package can be reached')
    return bool(missing)

if __name__ == '__main__': sys.exit(main())
