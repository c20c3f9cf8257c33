"From an idea to an image classifier in other people's hands"
import warnings

# fastai calls a function of which torch announces the end; users of either can do nothing about it
warnings.filterwarnings('ignore', message='.*torch.jit.script', category=FutureWarning)

def __getattr__(name):
    "The version is read from the installed package, whose facts stand in `settings.ini`"
    if name == '__version__':
        from importlib.metadata import version
        return version('bearcls')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
