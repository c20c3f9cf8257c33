"What the benchmarks share: how they are called, and how they say and keep their figures"
import argparse, contextlib, json, os, tempfile
from pathlib import Path

def arguments(
    doc: str,         # The benchmark's docstring; its first line says what is measured
    keeps: str = '',  # What `--work` keeps for another run, see `working_folder`; '': there is no such option
) -> argparse.ArgumentParser:
    "A parser with `--out`, to which a benchmark adds its own options"
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='JSON file to write')
    if keeps: parser.add_argument('--work', type=Path, help=f'folder that keeps {keeps} for another run (default: a temporary one)')
    return parser

@contextlib.contextmanager
def working_folder(
    given: Path | None,  # `--work`; None: a temporary folder
):
    "The folder of a benchmark, which also keeps opened images apart from the user's own"
    with tempfile.TemporaryDirectory() as tmp:
        work = (given or Path(tmp)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        os.environ['BEARCLS_CACHE'] = str(work/'cache')
        yield work

def save(
    result: dict,   # Figures, and what they are made of
    out: Path,      # JSON file
    details: tuple[str, ...] = ('runs',),  # Names of what is kept in the file and not printed
    quiet: bool = False,  # Print nothing, since the benchmark has shown its figures already
):
    "Print the figures, and write them with all single runs"
    if not quiet: print(json.dumps({k: v for k, v in result.items() if k not in details}, indent=1, default=float))
    out.write_text(json.dumps(result, indent=1, default=float) + '\n', encoding='utf-8')
