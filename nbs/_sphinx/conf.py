"Sphinx reads this: the pages come from `build.py`, their order and their links from `pages.py`"
import re, sys
from pathlib import Path
from docutils import nodes
from sphinx.transforms import SphinxTransform
sys.path.insert(0, str(Path(__file__).parent))
from pages import config, local_link, root, slug

project = config.title
author = config.author
copyright = f'{config.author}, Apache-2.0'
extensions = ['myst_nb', 'sphinx_copybutton']
exclude_patterns = ['**.md', '_*']
suppress_warnings = ['myst.header']  # API entries are third-level headings wherever they stand

nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'  # tables in the Markdown that a cell shows
nb_merge_streams = True
nb_ipywidgets_js = {}
myst_enable_extensions = ['attrs_block', 'attrs_inline', 'deflist', 'dollarmath', 'html_image', 'strikethrough']
myst_all_links_external = True  # links are resolved below, and every one is checked in the built pages
copybutton_exclude = '.linenos, .gp, .go'

html_theme = 'pydata_sphinx_theme'
html_title = project
html_logo = str(root/'nbs'/'images'/'logo.svg')
html_favicon = html_logo
html_static_path = [str(Path(__file__).parent/'static'), str(root/'nbs'/'design.css')]
html_css_files = ['design.css', 'site.css', 'icons.css']
html_js_files = ['menu.js']
templates_path = [str(Path(__file__).parent/'templates')]
html_sidebars = {'**': ['pages']}
html_copy_source = False
html_show_sourcelink = False
html_use_index = False
html_domain_indices = False
html_theme_options = dict(
    logo=dict(text=project),
    icon_links=[dict(name='Source on GitHub', url=config.git_url, icon='fa-brands fa-github')],
    navbar_center=[],
    navbar_persistent=[],
    navbar_end=['search-button', 'theme-switcher', 'navbar-icon-links'],
    secondary_sidebar_items=['page-toc'],
    show_toc_level=2,
    footer_start=['copyright'],
    footer_end=[],
    pygments_light_style='a11y-high-contrast-light',
    pygments_dark_style='a11y-high-contrast-dark',
)

class PageLinks(SphinxTransform):
    "Links to notebooks and to the published site lead to the pages beside this one"
    default_priority = 700
    def apply(self, **kwargs):
        page = self.env.docname
        for node in self.document.findall(nodes.reference):
            if 'refuri' in node: node['refuri'] = local_link(node['refuri'], page)
        for node in self.document.findall(nodes.raw):
            if 'html' not in node.get('format', ''): continue
            text = re.sub(r'(<a\b[^>]*\bhref=")([^"]+)', lambda m: m[1] + local_link(m[2], page), node.astext())
            node.clear()
            node += nodes.Text(text)

class Anchors(SphinxTransform):
    "Headings have the anchors that Quarto gives them, so that an address works on both sites"
    default_priority = 699
    def apply(self, **kwargs):
        seen = {}
        for section in self.document.findall(nodes.section):
            title = section.parent is self.document  # a page and its first function often share a name
            anchor = 'title-block-header' if title else slug(section[0].astext())
            seen[anchor] = seen.get(anchor, -1) + 1
            if seen[anchor]: anchor += f'-{seen[anchor]}'
            section['ids'] = [anchor, *(i for i in section['ids'] if i != anchor)]

class Captions(SphinxTransform):
    "An image alone in its paragraph is a figure, its alternative text the caption, as in Quarto"
    default_priority = 698
    def apply(self, **kwargs):
        for image in list(self.document.findall(nodes.image)):
            block = image.parent
            if not isinstance(block, nodes.paragraph) or len(block) != 1 or not image.get('alt'): continue
            figure = nodes.figure('', image, nodes.caption(image['alt'], image['alt']), ids=['fig-' + slug(image['alt'])])
            block.replace_self(figure)

def setup(app):
    for transform in (Captions, Anchors, PageLinks): app.add_transform(transform)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
