import json
from pathlib import Path
f=Path('/tmp/words/nbs/book/index.ipynb'); d=json.loads(f.read_text())
done=0
for c in d['cells']:
    s=''.join(c['source']); n=s
    if '| [pickles](06_pickles.ipynb)' in s and '07_rules' not in s:
        line=[l for l in s.split('\n') if l.startswith('| [pickles]')][0]
        n=s.replace(line,"""| [pickles](06_pickles.ipynb) | a Learner or a bundle from a fastai pickle, of any origin | for pickles of others | `load_learner`, `convert_pickle` |
| [rules](07_rules.ipynb) | what no longer works in old notebooks, and what stands there instead | if you add a rule | |
| [notebooks](08_notebooks.ipynb) | mends a whole notebook, and runs it | for a notebook of yours | `mend_notebook` |""")
    if "    'pickles': 'load_learner',\n" in s: n=s.replace("    'pickles': 'load_learner',\n","    'pickles': 'load_learner convert_pickle',\n    'notebooks': 'mend_notebook',\n")
    if n!=s:
        done+=1; lines=n.split('\n'); c['source']=[l+'\n' for l in lines[:-1]]+[lines[-1]]
f.write_text(json.dumps(d,indent=1,sort_keys=True,ensure_ascii=False)+'\n'); print(done)
