"Reads `settings.ini`, where the version, the requirements, the extras and the console script stand, and README.md"
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

parser = ConfigParser(delimiters=['='], comment_prefixes=['#'])
here = Path(__file__).parent
parser.read(here/'settings.ini', encoding='utf-8')
settings = parser['DEFAULT']

def lines(key): return [line.strip() for line in settings[key].splitlines() if line.strip()]

def readme():
    "README.md for a page outside the repository, such as the package index's: its paths become addresses"
    repository = re.search(r'^Repository = "(.+)"', (here/'pyproject.toml').read_text(encoding='utf-8'), re.MULTILINE)[1]
    text = (here/'README.md').read_text(encoding='utf-8')
    text = re.sub(r'(!\[[^\]]*\]\(|<img[^>]* src=")(?=nbs/)', rf'\1{repository}/raw/main/', text)
    return re.sub(r'(\]\(|<a[^>]* href=")(?=nbs/)', rf'\1{repository}/blob/main/', text)

setup(
    long_description=readme(),
    long_description_content_type='text/markdown',
    version=settings['version'],
    install_requires=lines('requirements'),
    extras_require={key.removeprefix('extras_'): lines(key) for key in settings if key.startswith('extras_')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['bearcls=bearcls._modidx:d']},
)
