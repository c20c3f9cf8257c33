"""Style sheets as text: read, without the rules that no page uses, short

The theme brings 380 kB of rules, and a page waits for all of them before it shows a word."""
import re
from dataclasses import dataclass, field

_text = r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\''
_comments = re.compile(rf'({_text})|/\*.*?\*/', re.DOTALL)
_marks = re.compile(rf'{_text}|url\([^"\')]*\)|[{{}};]', re.DOTALL)
_groups = ('@media', '@supports', '@layer', '@container')

@dataclass
class Names:
    "What the pages hold, and so what a selector can meet"
    classes: set[str] = field(default_factory=set)     # Of elements, and words in scripts, which add classes
    ids: set[str] = field(default_factory=set)         # Of elements
    tags: set[str] = field(default_factory=set)        # In small letters
    attributes: set[str] = field(default_factory=lambda: {'open'})  # Names only; a browser opens dialogs by itself

    def add_page(self,
        text: str,  # HTML
    ):
        "Everything that stands in the tags of a page"
        for tag, rest in re.findall(r'<([a-zA-Z][\w-]*)((?:[^>"\']|"[^"]*"|\'[^\']*\')*)>', text):
            self.tags.add(tag.lower())
            for name, value in re.findall(r'([\w-]+)(?:="([^"]*)")?', rest):
                self.attributes.add(name)
                if name == 'class': self.classes.update(value.split())
                if name == 'id': self.ids.add(value)

    def add_script(self,
        text: str,  # JavaScript
    ):
        "Every word in the strings of a script: each may be a class, an id, a tag or an attribute that it sets"
        strings = re.findall(r'"[^"\n]*"|\'[^\'\n]*\'|`[^`]*`', text)
        words = set(re.findall(r'[a-zA-Z][\w-]*', ' '.join(strings)))
        for kind in (self.classes, self.ids, self.tags, self.attributes): kind.update(words)
        for name in re.findall(r'dataset\.(\w+)', text): self.attributes.add('data-' + re.sub('([A-Z])', r'-\1', name).lower())

def without_comments(
    text: str,  # CSS
) -> str:       # CSS
    "A style sheet without its comments; strings are left alone"
    return _comments.sub(lambda m: m[1] or ' ', text)

def parts(
    text: str,               # CSS without comments
) -> list[tuple[str, str]]:  # What stands before a block and what in it; a statement such as `@charset` has an empty block
    "The outermost rules of a style sheet"
    found, depth, begin, opened = [], 0, 0, 0
    for mark in _marks.finditer(text):
        if mark[0] == '{':
            if not depth: opened = mark.end()
            depth += 1
        elif mark[0] == '}':
            depth -= 1
            if not depth:
                found.append((text[begin:opened - 1].strip(), text[opened:mark.start()].strip()))
                begin = mark.end()
        elif mark[0] == ';' and not depth:
            found.append((text[begin:mark.start()].strip(), ''))
            begin = mark.end()
    return found

def can_match(
    selector: str,  # One selector, without commas outside parentheses
    names: Names,   # What the pages hold
) -> bool:          # False where it names a class, an id, a tag or an attribute that no page has
    "Whether a selector can meet an element; what stands in parentheses is not looked at"
    flat = re.sub(rf'{_text}', '', selector)
    while '(' in flat and flat != (shorter := re.sub(r'\([^()]*\)', '', flat)): flat = shorter
    attributes = re.findall(r'\[([\w-]+)', flat)
    flat = re.sub(r'\[[^\]]*\]', '', flat)
    classes = [re.sub(r'\\(.)', r'\1', c) for c in re.findall(r'\.((?:\\.|[\w-])+)', flat)]
    flat = re.sub(r'\.(?:\\.|[\w-])+', '', flat)
    ids = re.findall(r'#([\w-]+)', flat)
    tags = re.findall(r'[a-zA-Z][\w-]*', re.sub(r'#[\w-]+|::?[\w-]+', '', flat))
    return all([set(classes) <= names.classes, set(ids) <= names.ids, set(attributes) <= names.attributes, {t.lower() for t in tags} <= names.tags])

def selectors(
    text: str,  # What stands before a block
) -> list[str]: # Selectors
    "One by one: commas inside parentheses part nothing"
    return [s.strip() for s in re.findall(r'(?:\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|[^,(])+', text)]

def used(
    text: str,      # CSS
    names: Names,   # What the pages hold
    skip: str = '', # Pattern: selectors that begin with it are left out as well
) -> str:           # CSS without comments and line breaks
    "The rules of a style sheet that some page can use. Fonts are left out: pages are set in those of the reader"
    kept = []
    for head, body in parts(without_comments(text)):
        if head.startswith(_groups):
            if body := used(body, names, skip): kept.append(f'{head}{{{body}}}')
        elif head.startswith('@'):
            if body and not head.startswith('@font-face'): kept.append(f'{head}{{{body}}}')
        else:
            found = [s for s in selectors(head) if can_match(s, names) and not (skip and re.match(skip, s))]
            if found and body: kept.append(f'{",".join(found)}{{{body}}}')
    return short('\n'.join(kept))

def short(
    text: str,  # CSS without comments
) -> str:       # CSS
    "Without the space that a browser doesn't need"
    pieces = re.split(f'({_text})', text, flags=re.DOTALL)
    pieces[::2] = [re.sub(r'\s*([{};,])\s*', r'\1', re.sub(r'\s+', ' ', p)).replace(';}', '}') for p in pieces[::2]]
    return ''.join(pieces).strip()

def without_idle_motion(
    text: str,  # CSS as `used` leaves it
) -> str:       # CSS
    "Without the animations that no rule starts"
    rules = parts(text)
    started = {word for value in re.findall(r'animation(?:-name)?:([^;}]*)', text) for word in re.findall(r'[\w-]+', value)}
    return ''.join(f'{head}{{{body}}}' for head, body in rules if not head.startswith('@keyframes') or head.split()[1] in started)

_value = r'(?:"[^"]*"|\'[^\']*\'|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)|[^;"\'()}])*'
_variable = re.compile(rf'(?<=[{{;])(--[\w-]+):{_value}(?:;|(?=\}}))')

def without_idle_variables(
    text: str,        # CSS as `used` leaves it
    others: str = '', # Pages and scripts, which may use variables too
) -> str:             # CSS
    "Without the variables that nothing reads, nor another variable that something reads"
    elsewhere = set(re.findall(r'--[\w-]+', others))
    while True:
        read = elsewhere | set(re.findall(r'var\(\s*(--[\w-]+)', text))
        shorter = _variable.sub(lambda m: m[0] if m[1] in read else '', text)
        if shorter == text: return short(re.sub(r'(?:(?<=[{}])|^)[^{}@]+\{\}', '', text))
        text = shorter
