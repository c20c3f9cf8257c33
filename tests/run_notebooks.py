"""nbdev-test with a process for each notebook

Some pages change fastai, as their readers would; in a shared process the next page would run on what they left.
The processes are forked from one that has already imported what most pages import, so each begins at once.

python tests/run_notebooks.py takes the options of nbdev-test."""
import multiprocessing, sys
from functools import partial
import nbdev.test
from fastcore.parallel import parallel

def test_alone(file, **kwargs):
    "Test one notebook in a process that starts its own processes as a new one would"
    multiprocessing.set_start_method(None, force=True)  # a child of the fork server would use that one
    return nbdev.test.test_nb(file, **kwargs)

if __name__ == '__main__':
    multiprocessing.set_forkserver_preload(['nbdev.test', 'fastai.vision.all', 'bearcls.all', 'matplotlib.pyplot', 'onnxruntime', 'scipy.stats', 'IPython.core.interactiveshell'])
    if sys.version_info >= (3, 11):
        nbdev.test.test_nb, nbdev.test.parallel = test_alone, partial(parallel, max_tasks_per_child=1)
    nbdev.test.nbdev_test()
