"Reads `settings.ini`, where the version, the requirements, the extras and the console script stand"
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

parser = ConfigParser(delimiters=['='], comment_prefixes=['#'])
parser.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
settings = parser['DEFAULT']

def lines(key): return [line.strip() for line in settings[key].splitlines() if line.strip()]

setup(
    version=settings['version'],
    install_requires=lines('requirements'),
    extras_require={key.removeprefix('extras_'): lines(key) for key in settings if key.startswith('extras_')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['bearcls=bearcls._modidx:d']},
)
