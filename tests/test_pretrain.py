"Drawn images by formula, and the weights that a network learnt from them"
import hashlib, subprocess, sys
import numpy as np, pytest, torch
from notebooks import root
from bearcls.pretrain.figures import draw_formula, formula_kinds
from bearcls.pretrain.network import body_names, drawn_file, load_drawn, xresnet18_thin
from bearcls.pretrain.recipe import PretrainError, Recipe, draw_formulas, pretrain
from bearcls.sample.bears import draw_bears
from bearcls.train.arch import TrainError
from bearcls.train.learner import drawn_epochs, plan_training, train

def category(kind, number):
    return [draw_formula(kind, number, np.random.default_rng([number, i]), 48) for i in range(4)]

@pytest.mark.parametrize('kind', formula_kinds)
def test_categories_differ_and_repeat(kind):
    "The same numbers draw the same image, another one another"
    first, second = category(kind, 3), category(kind, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, category(kind, 3)))
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[0], second[0])
    assert {a.shape for a in first + second} == {(48, 48, 3)} and all(a.std() > 3 for a in first)

def test_another_process_draws_the_same():
    code = ('import hashlib, numpy as np\nfrom bearcls.pretrain.figures import draw_formula, formula_kinds\n'
        'print(hashlib.sha256(b"".join(draw_formula(k, 7, np.random.default_rng(1), 40).tobytes() for k in formula_kinds)).hexdigest())')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == hashlib.sha256(b''.join(draw_formula(k, 7, np.random.default_rng(1), 40).tobytes() for k in formula_kinds)).hexdigest()

@pytest.mark.parametrize('how, words', [(('bear', 0), 'must be one of fractal'), (('thing', -1), '0 or more'), (('thing', 1.5), '`number`')])
def test_no_such_category(how, words):
    with pytest.raises((ValueError, TypeError), match=words): draw_formula(*how, np.random.default_rng(0))

def test_interrupted_drawing_leaves_no_file(tmp_path, monkeypatch):
    "Half a file of images never gets the name of a whole one"
    monkeypatch.setattr('bearcls.pretrain.recipe._category', stopped)
    with pytest.raises(ZeroDivisionError): draw_formulas(tmp_path/'images.npy', 1, 2, 16, n_workers=1)
    assert not (tmp_path/'images.npy').exists()

def stopped(*how): return 1/0

def test_pretraining_refuses(tmp_path):
    images = np.zeros((5, 7, 80, 80, 3), np.uint8)
    with pytest.raises(PretrainError, match='are fewer than a batch of 128'): pretrain(images, tmp_path)
    with pytest.raises(PretrainError, match='6 images of a category'): pretrain(images[:, :6], tmp_path, Recipe(bs=2))
    with pytest.raises((PretrainError, TypeError), match='`recipe`'): pretrain(images, tmp_path, 'fast')
    with pytest.raises(TypeError, match='`images`'): pretrain('images.npy', tmp_path)

def test_the_file_in_the_package():
    "Numbers of two bytes for the body and nothing for the head, below a megabyte and a half, with the recipe in it"
    from safetensors import safe_open
    with safe_open(drawn_file(), 'pt') as f:
        recipe, names = f.metadata(), set(f.keys())
        assert all(f.get_tensor(n).dtype in (torch.float16, torch.int64) for n in names)
    assert names == set(body_names(xresnet18_thin(2))) and drawn_file().stat().st_size < 1.5e6
    assert recipe['epochs'] == str(Recipe().epochs) and recipe['categories'] == '500'

def test_loading_changes_the_body_alone():
    torch.manual_seed(1)
    model = xresnet18_thin(4)
    head = [p.clone() for p in list(model.children())[-1].parameters()]
    load_drawn(model)
    assert all(torch.equal(a, b) for a, b in zip(head, list(model.children())[-1].parameters()))
    other = xresnet18_thin(9)
    load_drawn(other)
    for name in body_names(model): assert torch.equal(model.state_dict()[name], other.state_dict()[name])

def test_plans(tmp_path, monkeypatch):
    "Where there are no ImageNet weights, those of drawn images are taken, unless none are wanted or another network is"
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    plan = plan_training(timeout=.1)
    assert (plan.route, plan.arch, plan.weights, plan.is_open) == ('drawn', 'xresnet18_thin', 'drawn', True)
    assert plan_training(epochs=3, timeout=.1).is_open is False
    assert plan_training(weights=None).route == plan_training(arch='resnet18', timeout=.1).route == 'scratch'
    assert plan_training('scratch').weights == ''
    with pytest.raises(TrainError, match='are of xresnet18_thin, not of resnet18'): plan_training('drawn', 'resnet18')
    with pytest.raises(TrainError, match='takes no weights of yours'): plan_training('drawn', 'xresnet18_thin', weights='mine.pth')
    assert [drawn_epochs(n) for n in (0, 1, 400, 700, 10**6)] == [30, 30, 30, 17, 8]

def test_it_learns_from_few_images(tmp_path):
    "On the same split and for the same epochs it is wrong on fewer bears than a network that starts from noise"
    path = draw_bears(tmp_path/'bears', n_per_label=150, seed=11, faults=False)
    errors = {route: train(path, route, epochs=8, quiet=True).training_log.rows[-1]['error_rate'] for route in ('drawn', 'scratch')}
    assert errors['drawn'] < .75*errors['scratch'], errors

def test_it_repeats(tmp_path):
    path = draw_bears(tmp_path/'bears', n_per_label=15, seed=2, faults=False)
    first, second = (train(path, 'drawn', epochs=1, size=32, quiet=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values()))

def test_a_checkpoint_goes_on(tmp_path):
    path = draw_bears(tmp_path/'bears', n_per_label=15, seed=2, faults=False)
    how = dict(route='drawn', epochs=2, size=32, bs=12, quiet=True)
    first = train(path, checkpoint=tmp_path/'run', **how)
    again = train(path, checkpoint=tmp_path/'run', **how)  # finished: nothing is trained anew
    assert all(torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values()))
    with pytest.raises(TrainError, match='is of another training'): train(path, checkpoint=tmp_path/'run', **dict(how, route='scratch'))
