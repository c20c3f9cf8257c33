"What a release uploads: a source archive from which the same wheel can be built as from a clone"
import io, os, subprocess, sys, tarfile, zipfile
import pytest
from notebooks import root

build = 'import os, sys\nfrom setuptools import build_meta\nprint(getattr(build_meta, sys.argv[1])(sys.argv[2]))'

def run_build(source, what, dest):
    "The file that the build makes, of a copy of the tracked files"
    done = subprocess.run([sys.executable, '-c', build, what, dest], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dest/done.stdout.strip().splitlines()[-1]

@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "The tracked files as they stand, without their history"
    if not (root/'.git').exists(): pytest.skip('no clone')
    dest = tmp_path_factory.mktemp('clone')
    names = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, check=True).stdout.decode().split('\0')
    for name in filter(None, names):
        if not (root/name).is_file(): continue
        (dest/name).parent.mkdir(parents=True, exist_ok=True)
        (dest/name).write_bytes((root/name).read_bytes())
    return dest

def test_wheel_from_source_archive(clone, tmp_path):
    "Package indexes keep both; the archive must be enough for those who build themselves"
    archive = run_build(clone, 'build_sdist', tmp_path)
    with tarfile.open(archive) as tar: tar.extractall(tmp_path/'unpacked', filter='data')
    source = next((tmp_path/'unpacked').iterdir())
    wheels = [run_build(folder, 'build_wheel', tmp_path/name) for folder, name in ((clone, 'clone'), (source, 'archive')) if not (tmp_path/name).mkdir()]
    files = [sorted(zipfile.ZipFile(wheel).namelist()) for wheel in wheels]
    assert files[0] == files[1]
    package = [f for f in files[0] if f.startswith('bearcls/')]
    tracked = [str(f.relative_to(clone).as_posix()) for f in (clone/'bearcls').rglob('*') if f.is_file()]
    assert sorted(package) == sorted(tracked), 'every file of the package is in the wheel'

def test_wheel_says_what_it_needs(clone, tmp_path):
    wheel = zipfile.ZipFile(run_build(clone, 'build_wheel', tmp_path))
    metadata = wheel.read(next(n for n in wheel.namelist() if n.endswith('METADATA'))).decode()
    assert 'Requires-Dist: fastai' in metadata and 'License-Expression: Apache-2.0' in metadata
    assert '](nbs/' not in metadata and 'src="nbs/' not in metadata, 'a path of the repository leads nowhere on the page of an index'
    assert 'bearcls = bearcls.cli:' in wheel.read(next(n for n in wheel.namelist() if n.endswith('entry_points.txt'))).decode()
